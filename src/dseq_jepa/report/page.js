"use strict";
for (const section of document.querySelectorAll("section.table")) {
  const table = section.querySelector("table");
  const bodies = [...table.tBodies];
  const systems = bodies.filter((body) => !body.classList.contains("section"));
  const headings = bodies.filter((body) => body.classList.contains("section"));
  const columns = [...table.querySelectorAll("thead th.value")];
  const [search, measured] = section.querySelectorAll(".controls input");

  // Our value; the paper's where we have none comes after all of ours.
  const value = (body, row, column) => parseFloat(body.querySelectorAll(`tr.${row} td.value`)[column]?.dataset.value);

  const arrange = () => {
    const words = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const sorted = columns.some((th) => th.ariaSort);
    for (const body of systems) {
      const text = body.textContent.toLowerCase();
      const ours = columns.some((_, i) => !Number.isNaN(value(body, "ours", i)));
      body.hidden = !words.every((word) => text.includes(word)) || (measured?.checked && !ours);
    }
    for (const heading of headings) heading.hidden = sorted || words.length > 0 || Boolean(measured?.checked);
  };

  const sortBy = (column, direction) => {
    columns.forEach((th, i) => {
      if (i === column && direction) th.ariaSort = direction;
      else th.ariaSort = null;
    });
    const sign = direction === "ascending" ? 1 : -1;
    const key = (body) => {
      const ours = value(body, "ours", column);
      return [Number.isNaN(ours) ? 1 : 0, sign * (Number.isNaN(ours) ? value(body, "paper", column) : ours)];
    };
    const compare = (a, b) => a[0] - b[0] || (Number.isNaN(a[1]) ? 1 : Number.isNaN(b[1]) ? -1 : a[1] - b[1]);
    const order = direction ? [...headings, ...[...systems].sort((a, b) => compare(key(a), key(b)))] : bodies;
    table.append(...order);
    arrange();
  };

  const next = { null: "descending", descending: "ascending", ascending: null };
  columns.forEach((th, i) =>
    th.querySelector("button")?.addEventListener("click", () => sortBy(i, next[th.ariaSort])),
  );
  search?.addEventListener("input", arrange);
  measured?.addEventListener("change", arrange);
}

// A link may lead into something that is folded away; paper shows everything.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
};
addEventListener("hashchange", unfold);
unfold();
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));

"""A table as one self-contained HTML page: no script, no network, light and dark, scrollable on a phone.

to_page(table, lay_out(table), base="..")
"""

from collections.abc import Iterable
from html import escape

from dseq_jepa.tables.assemble import Row, Table
from dseq_jepa.tables.layout import Entry, Line, Sheet

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --rule: #d4d8dd; --page: #ffffff; --own: #eef4fb;
  --link: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa3ad; --rule: #3a4149; --page: #15181c;
  --own: #1d2835; --link: #8ab8ec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.15rem; line-height: 1.35; margin: 0 0 .5rem; }
p, ol, ul { margin: .5rem 0; max-width: 48rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; white-space: nowrap;
  border-bottom: 2px solid var(--ink); }
th, td { padding: .25rem .6rem; text-align: left; }
thead > tr > * { border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom; }
th.value, td.value { text-align: right; }
tbody th { font-weight: 600; vertical-align: top; }
thead th:first-child, tbody th.name { position: sticky; left: 0; z-index: 1; background: var(--page);
  box-shadow: 1px 0 var(--rule); }
tr.start > * { border-top: 1px solid var(--rule); }
tr.section > th { padding-top: .7rem; font-style: italic; font-weight: 400; border-top: 1px solid var(--ink); }
tr.section span { position: sticky; left: .6rem; }
tr.paper td { color: var(--soft); }
tr.ours td { background: var(--own); }
tr.ours td.value { font-weight: 600; }
td a { text-decoration: underline dotted; text-underline-offset: .2em; }
small { display: inline-block; min-width: 2.7em; text-align: left; font-weight: 400; font-size: .78em; }
small.interval { display: block; text-align: right; color: var(--soft); }
sup a { text-decoration: none; font-weight: 400; }
ol.marks { list-style: none; padding: 0; }
.notes, .marks, details { font-size: .9em; }
"""


def to_page(table: Table, sheet: Sheet, base: str) -> str:
    """The page.

    Args:
        table: what the page is about; its runs are listed below the values.
        sheet: the layout of the same table.
        base: path from the page's folder to results/<experiment>, for links to runs.

    """
    title = escape(f"Table {sheet.number}. {sheet.title}")
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
        f"<p>{escape(' '.join(sheet.caption))}</p>",
        '<div class="scroll" role="region" aria-label="The table; it scrolls sideways" tabindex="0">',
        "<table>",
        f"<thead><tr>{''.join(_headings(sheet))}</tr></thead>",
        "<tbody>",
        *_body(sheet, base),
        "</tbody>",
        "</table>",
        "</div>",
        *_below(sheet),
        *_runs(table, base),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _headings(sheet: Sheet) -> Iterable[str]:
    for text in sheet.heads:
        yield f'<th scope="col">{escape(text)}</th>' if text else "<td></td>"
    for text in sheet.columns:
        yield f'<th scope="col" class="value">{escape(text)}</th>'


def _body(sheet: Sheet, base: str) -> Iterable[str]:
    width = len(sheet.heads) + len(sheet.columns)
    for line in sheet.lines:
        if line.section is not None:
            yield f'<tr class="section"><th colspan="{width}"><span>{escape(line.section)}</span></th></tr>'
        yield _line(line, sheet.name, base)


def _line(line: Line, table: str, base: str) -> str:
    name, *heads = line.heads
    starts = bool(name)  # the name stands beside both its lines
    cells = [f'<th scope="row" class="name" rowspan="2">{escape(name)}</th>'] if starts else []
    cells += [f"<td>{escape(head)}</td>" for head in heads]
    cells += [f'<td class="value">{_entry(entry, table, base)}</td>' for entry in line.entries]
    return f'<tr class="{line.source}{" start" if starts else ""}">{"".join(cells)}</tr>'


def _entry(entry: Entry, table: str, base: str) -> str:
    text = escape(entry.text if entry.deviation is None else f"{entry.text} ± {entry.deviation}")
    hint = "" if entry.detail is None else f' title="{escape(entry.detail)}"'
    if entry.run is not None:
        text = f'<a href="{escape(f"{base}/{entry.run}")}/"{hint}>{text}</a>'
    elif hint:
        text = f"<span{hint}>{text}</span>"
    text += "".join(f'<sup><a href="#{table}-{mark}">{mark}</a></sup>' for mark in entry.marks)
    span = "" if entry.interval is None else f'<small class="interval">{entry.interval.replace("-", "−")}</small>'
    return f"{text} <small>{(entry.delta or '').replace('-', '−')}</small>{span}"  # empty: values stay in one column


def _below(sheet: Sheet) -> Iterable[str]:
    if sheet.footnotes:
        yield '<ol class="marks">'
        for mark, text in sheet.footnotes:
            yield f'<li id="{sheet.name}-{mark}"><sup>{mark}</sup> {escape(text)}</li>'
        yield "</ol>"
    if sheet.notes:
        yield '<ul class="notes">'
        yield from (f"<li>{escape(note)}</li>" for note in sheet.notes)
        yield "</ul>"


def _runs(table: Table, base: str) -> Iterable[str]:
    """Where every number of ours comes from."""
    rows = [row for row in table.rows if row.method is not None]
    if not rows:
        return
    yield "<details><summary>The runs behind our numbers</summary>"
    yield "<ul>"
    for row in rows:
        links = [
            f'<a href="{escape(f"{base}/{run}")}/">{escape(run)}</a> ({escape(origin)})'
            for run, origin in _origins(row).items()
        ]
        yield f"<li>{escape(row.system)}, {escape(row.own_architecture or '')}: {'; '.join(links)}</li>"
    yield "</ul></details>"


def _origins(row: Row) -> dict[str, str]:
    """Run folder to what it was made with."""
    return {
        run: f"code {version}, settings {digest}"
        for cell in row.cells
        if (ours := cell.ours)
        for run, version, digest in zip(ours.runs, ours.code_versions, ours.config_digests, strict=True)
    }

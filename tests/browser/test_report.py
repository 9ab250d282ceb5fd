"""The report in a real browser: sorting, filtering, links, colours, a phone, paper; no errors and no network.

pytest tests/browser/test_report.py --basetemp /tmp/look      # screenshots lie in /tmp/look/screenshots0
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dseq_jepa.config import load
from dseq_jepa.report.job import report_job
from dseq_jepa.report.page import write_report
from tests.measured import REPORTED
from tests.workflow.project import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(micro: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the micro results with all rows of the paper's Table 1, most of them not measured."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(micro / "results", folder / "results")
    picture = folder / "figure2.png"
    Image.new("RGB", (1600, 300), "grey").save(picture)
    picture.with_name("figure2.caption.md").write_text(
        "**Figure 2.** A grey picture; train/n00000001/n00000001_570.JPEG,train/n00000004/n00000004_1293.JPEG"
    )
    job = report_job(load(micro / "micro.yaml"))
    first = job.tables[0]
    demo = report_job(load(ROOT / "configs" / "demo.yaml")).tables[0]
    more = [
        row.model_copy(update={"method": None, "architecture": None, "missing": "not here", "baseline": None})
        for row in demo.table.rows
        if row.reported_architecture != "ViT-B/16" or row.method is None
    ]
    table = first.table.model_copy(update={"rows": [*first.table.rows, *more]})
    names = [*first.systems, *(str(row.reported) for row in more)]
    job.tables[0] = first.model_copy(update={"table": table, "systems": names})
    return write_report(job, folder / "results" / "micro", REPORTED, [picture], folder / "report.html").resolve()


@pytest.fixture
def page(browser: "Browser", report: Path) -> "Iterator[Page]":
    """The opened report; a console message, an error or a request to anywhere fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    troubles: list[str] = []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda request: troubles.append(request.url) if request.url.startswith("http") else None)
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert troubles == []


def systems(page: "Page") -> list[str]:
    """Names of the visible rows of Table 1, top to bottom."""
    return page.locator("#table1 tbody:not(.section):visible tr.paper th").all_inner_texts()


def values(page: "Page", source: str, column: int) -> list[float]:
    script = """(bodies, [source, column]) => bodies.map(
        (body) => parseFloat(body.querySelectorAll(`tr.${source} td.value`)[column].dataset.value))"""
    found = page.locator("#table1 tbody:not(.section):visible").evaluate_all(script, [source, column])
    return [float("nan") if value is None else float(value) for value in found]


def is_sorted(numbers: list[float]) -> bool:
    return numbers == sorted(numbers)


def test_a_heading_sorts_by_our_values_then_by_the_papers(page: "Page") -> None:
    before = systems(page)
    heading = page.locator("#table1 thead button", has_text="CUB")
    heading.click()
    assert page.locator("#table1 th[aria-sort=descending]").inner_text().startswith("CUB")
    ours = values(page, "ours", 2)
    assert ours[0] >= ours[1]
    assert all(value != value for value in ours[2:])
    paper = [value for value in values(page, "paper", 2)[2:] if value == value]
    assert len(paper) > 5
    assert is_sorted(paper[::-1])
    heading.click()
    assert values(page, "ours", 2)[:2] == ours[1::-1]
    heading.click()
    assert systems(page) == before
    assert page.locator("#table1 th[aria-sort]").count() == 0


def test_rows_are_filtered_by_words_and_to_the_measured_ones(page: "Page") -> None:
    everything = len(systems(page))
    search = page.locator("#table1 input[type=search]")
    search.fill("i-jepa vit-l")
    assert systems(page) == ["I-JEPA"]
    search.fill("")
    assert len(systems(page)) == everything
    page.locator("#table1 input[type=checkbox]").check()
    assert systems(page) == ["I-JEPA", "DSeq-JEPA"]


def test_a_value_leads_to_its_run(page: "Page") -> None:
    link = page.locator("#table1 tr.ours td.value a[href^='#run-evaluate']").first
    target = str(link.get_attribute("href"))
    link.click()
    job = page.locator(target)
    box = job.bounding_box()
    assert box is not None
    assert 0 < box["y"] < 900  # below the header that stays
    assert "evaluate/" in job.locator("h4").inner_text()


def test_charts_are_drawn(page: "Page") -> None:
    lines = page.locator("#runs .chart polyline:visible, #curves .chart polyline:visible")
    assert lines.count() > 20
    box = lines.first.bounding_box()
    assert box is not None
    assert box["width"] > 50


def contrast(page: "Page", selector: str) -> float:
    """WCAG contrast of a text and what lies behind it."""
    script = """(element) => {
        const light = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        let behind = element;
        while (getComputedStyle(behind).backgroundColor.endsWith(", 0)")) behind = behind.parentElement;
        const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    return float(page.locator(selector).first.evaluate(script))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(page: "Page", scheme: Any, screenshots: Path) -> None:
    page.emulate_media(color_scheme=scheme)
    page.screenshot(path=screenshots / f"report-{scheme}.png", full_page=True)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) > 384) == (scheme == "light")
    for selector in (
        "main p",
        "#table1 tr.paper td.value",
        "#table1 tr.ours a",
        "h4 small",
        ".checks li",
        ".legend li",
    ):
        assert contrast(page, selector) >= 4.5, selector


def test_a_phone_scrolls_tables_and_not_the_page(page: "Page", screenshots: Path) -> None:
    page.set_viewport_size({"width": 375, "height": 740})
    page.screenshot(path=screenshots / "report-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    box = page.locator("#table1 .scroll")
    assert box.evaluate("(element) => element.scrollWidth > element.clientWidth")
    box.evaluate("(element) => { element.scrollLeft = 200; }")
    name = page.locator("#table1 tr.paper th").first.bounding_box()
    assert name is not None
    assert 0 <= name["x"] < 30  # names stay in sight


def test_paper_shows_everything_without_controls(page: "Page", screenshots: Path) -> None:
    (screenshots / "report.pdf").write_bytes(page.pdf(format="A4"))  # as a person's Ctrl-P does: folded parts open
    assert page.locator("details:not([open])").count() == 0
    page.set_viewport_size({"width": 760, "height": 1000})  # A4 between margins
    page.emulate_media(media="print", color_scheme="dark")
    page.screenshot(path=screenshots / "report-print.png", full_page=True)
    assert page.locator("nav").is_hidden()
    assert page.locator("#table1 .controls").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#table1 table").evaluate("(table) => table.offsetWidth") <= 760

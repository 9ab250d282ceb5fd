"""The four files of a table: same numbers, same reasons, valid markup, same bytes.

pytest tests/tables/test_render.py
"""

import csv
import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dseq_jepa.tables.assemble import Table, assemble
from dseq_jepa.tables.job import table_job
from dseq_jepa.tables.latex import escape, to_latex
from dseq_jepa.tables.layout import lay_out
from dseq_jepa.tables.page import to_page
from dseq_jepa.tables.render import build_table, to_csv, to_markdown

REPORTED = Path(__file__).parents[2] / "configs" / "reported_values.csv"
VOID = {"meta"}
SPECIAL = 'a & b_c 50% $x$ #1 {y} ~^ \\ <i>"q"</i> | ± *z* `k`'


@pytest.fixture
def table1(demo) -> Table:
    return assemble(table_job(demo[0], "table1"), demo[1], REPORTED)


@pytest.fixture
def table3(demo) -> Table:
    return assemble(table_job(demo[0], "table3"), demo[1], REPORTED)


class Page(HTMLParser):
    """Collects a page's tags, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def spoiled(table: Table) -> Table:
    """A table whose every text holds all that markup could trip over."""
    cells = tuple(replace(cell, reason=SPECIAL if cell.reason else None) for cell in table.rows[0].cells)
    row = replace(table.rows[0], system=SPECIAL, section=SPECIAL, cells=cells)
    return replace(table, title=SPECIAL, rows=(row, *table.rows[1:]), notes=(SPECIAL,))


def test_four_files_with_the_same_bytes_every_time(demo, tmp_path: Path):
    experiment, results = demo
    first = build_table(experiment, "table1", results / "tables", REPORTED)
    assert [path.name for path in first] == ["table1.csv", "table1.md", "table1.tex", "table1.html"]
    bytes_before = [path.read_bytes() for path in first]
    again = build_table(experiment, "table1", results / "other", REPORTED)
    assert [path.read_bytes() for path in again] == bytes_before
    assert sorted(path.name for path in (results / "tables").iterdir()) == sorted(path.name for path in first)


def test_csv_is_tidy_and_complete(table1: Table):
    records = list(csv.DictReader(io.StringIO(to_csv(table1))))
    assert len(records) == len(table1.rows) * len(table1.columns)
    by_key = {(r["row"], r["architecture"], r["metric"]): r for r in records}
    assert len(by_key) == len(records)
    record = by_key["DSeq-JEPA", "ViT-B/16", "cub_linear_top1"]
    assert (record["ours"], record["ours_delta"], record["reported"], record["reported_delta"]) == (
        "42.7",
        "2.5",
        "66.2",
        "0.9",
    )
    assert (record["images"], record["chance"], record["seeds"], record["values"]) == ("1000", "10.0", "0", "42.7")
    assert (record["code_version"], record["config_digest"]) == ("v1", "digest-dseq-jepa")
    assert record["run"] == "evaluate/transfer/dseq-jepa/vit-mini/seed0"
    assert all(bool(r["ours"]) != bool(r["reason"]) for r in records)


def test_differences_look_as_the_paper_prints_them(table1: Table):
    tex = to_latex(lay_out(table1))
    assert r"DSeq-JEPA & paper & ViT-B/16 & 600 & 73.5 {\scriptsize +1.1} & 84.0 {\scriptsize +0.5}" in tex
    assert r"& ours & ViT-mini/8 & 30 & 40.9 {\scriptsize $-$0.1}\textsuperscript{" in re.sub(
        r"ViT-mini/8 & \d+", "ViT-mini/8 & 30", tex
    )
    assert "| 73.5 <sub>+1.1</sub> |" in to_markdown(lay_out(table1))
    assert "73.5 <small>+1.1</small>" in to_page(table1, lay_out(table1), "..")


def test_intervals_stand_in_every_format_but_latex_and_a_doubtful_one_is_marked_in_all(table1: Table):
    sheet = lay_out(table1)
    sure, doubtful = (
        next(row for row in table1.rows if row.system == name).cells[0] for name in ("DSeq-JEPA", "DSeq-C-JEPA")
    )
    assert sure.ours_interval is not None
    assert doubtful.ours_interval is not None
    shown = [f"[{low:+.1f}, {round(high, 1) + 0.0:+.1f}]" for low, high in (sure.ours_interval, doubtful.ours_interval)]
    assert shown[1].endswith("+0.0]")
    (mark,) = [mark for mark, text in sheet.footnotes if "includes 0" in text]
    markdown, html, latex = to_markdown(sheet), to_page(table1, sheet, ".."), to_latex(sheet)
    assert f"<sub>+2.5 {shown[0]}</sub> |" in markdown
    assert f"<sub>-0.1 {shown[1]}</sub><sup>{mark}</sup> |" in markdown
    assert f'<small>+2.5</small><small class="interval">{shown[0]}</small>' in html
    assert shown[0] not in latex
    assert rf"{{\scriptsize $-$0.1}}\textsuperscript{{{mark}}}" in latex
    records = {(r["row"], r["architecture"], r["label"]): r for r in csv.DictReader(io.StringIO(to_csv(table1)))}
    for name, cell in (("DSeq-JEPA", sure), ("DSeq-C-JEPA", doubtful)):
        record = records[name, "ViT-B/16", "Linear"]
        ends = float(record["ours_delta_low"]), float(record["ours_delta_high"])
        assert ends == pytest.approx(cell.ours_interval, abs=1e-6)
    assert records["I-JEPA", "ViT-B/16", "Linear"]["ours_delta_low"] == ""


def test_the_caption_says_what_the_interval_covers(demo, measure):
    experiment, results = demo
    three = experiment.model_copy(update={"seeds": [0, 1, 2]})
    measure(three, results)
    one, several = (
        " ".join(lay_out(assemble(table_job(e, "table1"), results, REPORTED)).caption) for e in (experiment, three)
    )
    assert "over the test images with 2,000 resamples; it leaves out the variance of pre-training." in one
    assert "over the test images and the 3 seeds with 2,000 resamples." in several
    assert "leaves out" not in several


def test_what_has_no_interval_says_why(demo):
    experiment, results = demo
    sheet = lay_out(assemble(table_job(experiment, "table2"), results, REPORTED))
    assert not any(entry.interval for line in sheet.lines for entry in line.entries[:2])
    (note,) = [note for note in sheet.notes if "interval" in note]
    labels = ", ".join(sheet.columns[:2])
    assert note.startswith(f"Differences of {labels} have no interval")
    assert "does not follow from the records of single images" in note


def test_a_difference_that_rounds_to_nothing_is_not_negative(table1: Table):
    row = table1.rows[2]
    cells = (replace(row.cells[0], ours_delta=-0.04), *row.cells[1:])
    sheet = lay_out(replace(table1, rows=(replace(row, cells=cells),)))
    assert sheet.lines[1].entries[0].delta == "+0.0"


def test_every_dash_carries_a_footnote_that_exists(table1: Table):
    sheet = lay_out(table1)
    marks = dict(sheet.footnotes)
    dashes = [entry for line in sheet.lines for entry in line.entries if entry.text == "-"]
    assert len(dashes) > 50
    assert all(entry.marks and set(entry.marks) <= set(marks) for entry in dashes)
    used = {mark for line in sheet.lines for entry in line.entries for mark in entry.marks}
    assert used == set(marks), "a footnote that nothing refers to"
    assert list(marks) == sorted(marks)


def test_more_footnotes_than_letters(table1: Table):
    rows = [
        replace(
            row, cells=tuple(replace(cell, ours=None, reason=f"reason {i}.{j}") for j, cell in enumerate(row.cells))
        )
        for i, row in enumerate(table1.rows[:6])
    ]
    marks = [mark for mark, _ in lay_out(replace(table1, rows=tuple(rows))).footnotes]
    assert marks[25:28] == ["z", "aa", "ab"]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("kind", ["md", "tex", "html"])
def test_the_reader_learns_reasons_chance_and_what_is_not_comparable(table1: Table, kind: str):
    sheet = lay_out(table1)
    text = {"md": to_markdown, "tex": to_latex, "html": lambda sheet: to_page(table1, sheet, "..")}[kind](sheet)
    plain = " ".join(Page(text).text.split()) if kind == "html" else text.replace("\\_", "_")
    for sentence in (
        "not comparable with the paper's values",
        "The demo has one miniature architecture; its runs stand beside the ViT-B/16 rows.",
        "Chance level of ours: Linear 10.0 (1,000 images)",
        "Not reported in the paper.",
        "the mean of the values that it reports is 64.9",
        "for this difference; that of its own values is +0.7.",
        "intervals (in the CSV, the HTML and the Markdown) are a paired bootstrap over the test images with 2,000",
        "it leaves out the variance of pre-training.",
        "interval of this difference includes 0.",
    ):
        assert sentence in plain


def test_only_generated_data_are_called_not_comparable(table1: Table):
    assert "comparable" not in to_markdown(lay_out(replace(table1, miniature=False)))


def test_table_3_has_metrics_as_rows(table3: Table):
    text = to_markdown(lay_out(table3))
    assert "| Metric |  | I-JEPA | DSeq-JEPA | C-JEPA | DSeq-C-JEPA |" in text
    assert "| Clevr/Count | paper | 85.6 | 86.4 <sub>+0.8</sub> | 86.8 | 87.1 <sub>+0.3</sub> |" in text
    line = re.sub(r" \[[^]]*\]", "", next(line for line in text.splitlines() if "ours | 40.4" in line))
    assert line == "|  | ours | 40.4 | 42.9 <sub>+2.5</sub> | 41.4 | 41.3 <sub>-0.1</sub><sup>a</sup> |"
    assert "The paper's encoder: ViT-L/16, 600 epochs. Ours: ViT-mini/8" in text


def test_several_seeds_show_their_deviation(demo, measure):
    experiment, results = demo
    three = experiment.model_copy(update={"seeds": [0, 1, 2]})
    measure(three, results)
    table = assemble(table_job(three, "table1"), results, REPORTED)
    sheet = lay_out(table)
    assert "| 43.5 ± 1.0 <sub>+2.5 [" in to_markdown(sheet)
    assert r"43.5 $\pm$ 1.0 {\scriptsize +2.5}" in to_latex(sheet)
    assert "mean ± s.d. over 3 seeds" in to_markdown(sheet)
    assert "mean of 42.50 (seed 0), 43.50 (seed 1), 44.50 (seed 2)" in to_page(table, sheet, "..")


@pytest.mark.parametrize("spoil", [False, True])
def test_markdown_rows_have_as_many_cells_as_the_head(table1: Table, spoil: bool):
    text = to_markdown(lay_out(spoiled(table1) if spoil else table1))
    cells = {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}
    assert len(cells) == 1


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("name", ["table1", "table3"])
def test_latex_is_well_formed(request: pytest.FixtureRequest, name: str, spoil: bool):
    table: Table = request.getfixturevalue(name)
    sheet = lay_out(spoiled(table) if spoil else table)
    tex = to_latex(sheet)
    for rule in (r"\toprule", r"\bottomrule"):
        assert tex.count(rule) == 1
    assert re.findall(r"\\(begin|end)\{(\S+?)\}", tex) == [
        ("begin", "table*"),
        ("begin", "tabular"),
        ("end", "tabular"),
        ("end", "table*"),
    ]
    bare = tex.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    assert Counter(bare)["{"] == Counter(bare)["}"]
    width = len(sheet.heads) + len(sheet.columns)
    rows = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {width - 1}


def test_latex_escapes():
    assert escape('50% & a_b "q"') == r"50\% \& a\_b ``q''"
    assert escape("\\") == r"\textbackslash{}"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("name", ["table1", "table3"])
def test_latex_compiles(request: pytest.FixtureRequest, tmp_path: Path, name: str, spoil: bool):
    table: Table = request.getfixturevalue(name)
    tex = to_latex(lay_out(spoiled(table) if spoil else table))
    document = f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{tex}\\end{{document}}\n"
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.parametrize("spoil", [False, True])
@pytest.mark.parametrize("name", ["table1", "table3"])
def test_the_page_is_whole_and_needs_nothing_from_outside(request: pytest.FixtureRequest, name: str, spoil: bool):
    table: Table = request.getfixturevalue(name)
    text = to_page(spoiled(table) if spoil else table, lay_out(spoiled(table) if spoil else table), "..")
    page = Page(text)
    tags = Counter(tag for tag, _ in page.attributes)
    assert tags["script"] == tags["link"] == tags["img"] == tags["i"] == 0
    assert "://" not in text
    assert "url(" not in text
    targets = {attributes["id"] for _, attributes in page.attributes if "id" in attributes}
    anchors = {str(attributes["href"]) for tag, attributes in page.attributes if tag == "a"}
    assert {href[1:] for href in anchors if href.startswith("#")} == targets
    runs = {href for href in anchors if not href.startswith("#")}
    assert all(re.fullmatch(r"\.\./evaluate/[a-z0-9-]+/[a-z-]+/vit-mini/seed0/", href) for href in runs)
    if spoil:
        assert SPECIAL in page.text, "escaped more or less than once"


def test_links_lead_from_the_page_to_the_runs(demo):
    experiment, results = demo
    page = build_table(experiment, "table3", results / "tables", REPORTED)[-1]
    hrefs = [str(a["href"]) for tag, a in Page(page.read_text()).attributes if tag == "a" and "href" in a]
    folders = [page.parent / href for href in hrefs if not href.startswith("#")]
    assert len(folders) >= 8
    assert all((folder / "metrics.json").exists() for folder in folders)


def test_the_page_reads_in_the_dark_and_scrolls_on_a_phone(table1: Table):
    text = to_page(table1, lay_out(table1), "..")
    assert "prefers-color-scheme: dark" in text
    assert "overflow-x: auto" in text
    assert 'name="viewport"' in text

"""How a table is laid out, before any markup: lines of texts with footnote marks, the paper's line above ours.

    lay_out(assemble(job, results, reported)).lines

The same layout becomes Markdown, LaTeX and HTML, so that the three never disagree.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from dseq_jepa.tables.assemble import Cell, Measurement, Table
from dseq_jepa.tables.intervals import LEVEL, RESAMPLES

UNSURE = f"the {LEVEL}% interval of this difference includes 0"
NOT_REPORTED = "not reported in the paper"
MISSING = "-"


@dataclass(frozen=True)
class Entry:
    """One value as it is printed."""

    text: str
    """The value as it is printed, or "-"."""
    deviation: str | None = None
    """Standard deviation over seeds, where there are several."""
    delta: str | None = None
    """Difference from the baseline with its sign, as the paper prints it."""
    interval: str | None = None
    """Where the resampled differences lie; not in LaTeX, which follows the paper's form."""
    marks: tuple[str, ...] = ()
    """Footnotes."""
    detail: str | None = None
    """How the value came about."""
    run: str | None = None
    """Folder of its (first) run below results/<experiment>."""


@dataclass(frozen=True)
class Line:
    """One printed line: the paper's values or ours."""

    source: Literal["paper", "ours"]
    heads: tuple[str, ...]
    """Leading cells, the name first; the name is empty on a line that continues."""
    entries: tuple[Entry, ...]
    section: str | None = None
    """Heading above the line."""


@dataclass(frozen=True)
class Sheet:
    """A laid-out table."""

    name: str
    number: int
    title: str
    """With a full stop, without the number."""
    caption: tuple[str, ...]
    """Sentences that follow the title."""
    heads: tuple[str, ...]
    """Headings of the leading cells."""
    columns: tuple[str, ...]
    """Headings of the values."""
    lines: tuple[Line, ...]
    footnotes: tuple[tuple[str, str], ...]
    """Mark and text."""
    notes: tuple[str, ...]
    """Remarks about the whole table."""


@dataclass
class _Footnotes:
    """Marks a, b, c... in the order of first use; equal texts share one."""

    marks: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str | None) -> tuple[str, ...]:
        if text is None:
            return ()
        if text not in self.marks:
            self.marks[text] = _letters(len(self.marks))
        return (self.marks[text],)


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    high, low = divmod(number, 26)
    return (_letters(high - 1) if high else "") + chr(ord("a") + low)


def lay_out(table: Table) -> Sheet:
    """The lines of a table: systems top to bottom, or side by side if it is transposed."""
    footnotes = _Footnotes()
    lines = _metric_lines(table, footnotes) if table.transposed else _system_lines(table, footnotes)
    return Sheet(
        name=table.name,
        number=table.number,
        title=f"{table.title}.",
        caption=tuple(_caption(table)),
        heads=("Metric", "") if table.transposed else ("Method", "", "Arch.", "Epochs"),
        columns=tuple(_headings(table)),
        lines=tuple(lines),
        footnotes=tuple((mark, _sentence(text)) for text, mark in footnotes.marks.items()),
        notes=(*_chances(table), *_without_interval(table), *table.notes),
    )


def _headings(table: Table) -> list[str]:
    return [row.system for row in table.rows] if table.transposed else [column.label for column in table.columns]


def _system_lines(table: Table, footnotes: _Footnotes) -> Iterable[Line]:
    for row in table.rows:
        epochs, own_epochs = (MISSING if number is None else str(number) for number in (row.epochs, row.own_epochs))
        paper = ("paper", row.architecture, epochs)
        yield Line("paper", (row.system, *paper), tuple(_paper(cell, footnotes) for cell in row.cells), row.section)
        ours = ("ours", row.own_architecture or MISSING, own_epochs)
        cells = zip(row.cells, table.columns, strict=True)
        yield Line("ours", ("", *ours), tuple(_ours(cell, footnotes, column.decimals) for cell, column in cells))


def _metric_lines(table: Table, footnotes: _Footnotes) -> Iterable[Line]:
    for i, column in enumerate(table.columns):
        cells = [row.cells[i] for row in table.rows]
        yield Line("paper", (column.label, "paper"), tuple(_paper(cell, footnotes) for cell in cells))
        yield Line("ours", ("", "ours"), tuple(_ours(cell, footnotes, column.decimals) for cell in cells))


def _paper(cell: Cell, footnotes: _Footnotes) -> Entry:
    if cell.reported is None:
        return Entry(MISSING, marks=footnotes.mark(NOT_REPORTED), detail=NOT_REPORTED)
    marks = footnotes.mark(cell.reported_note)
    return Entry(f"{cell.reported:.1f}", delta=_signed(cell.reported_delta), marks=marks)


def _ours(cell: Cell, footnotes: _Footnotes, decimals: int) -> Entry:
    if cell.ours is None:
        return Entry(MISSING, marks=footnotes.mark(cell.reason), detail=cell.reason)
    span = cell.ours_interval
    return Entry(
        text=f"{cell.ours.mean:.{decimals}f}",
        deviation=None if cell.ours.deviation is None else f"{cell.ours.deviation:.{decimals}f}",
        delta=_signed(cell.ours_delta, decimals),
        interval=None if span is None else f"[{', '.join(str(_signed(end, decimals)) for end in span)}]",
        marks=(*footnotes.mark(cell.ours_note), *footnotes.mark(UNSURE if span and span[0] <= 0 <= span[1] else None)),
        detail=_detail(cell.ours),
        run=cell.ours.runs[0] if cell.ours.runs else None,
    )


def _signed(delta: float | None, decimals: int = 1) -> str | None:
    """+1.1 or -0.3; a difference that rounds to nothing is +0.0."""
    return None if delta is None else f"{round(delta, decimals) + 0.0:+.{decimals}f}"


def _detail(ours: Measurement) -> str:
    parts = [] if ours.chance is None else [f"chance {ours.chance:.1f}"]
    if ours.images is not None:
        parts.append(f"{ours.images:,} test images")
    if len(ours.seeds) > 1:
        values = ", ".join(f"{value:.2f} (seed {seed})" for value, seed in zip(ours.values, ours.seeds, strict=True))
        parts.append(f"mean of {values}")
    else:
        parts.append(f"seed {ours.seeds[0]}")
    if ours.code_versions:
        parts.append("code " + ", ".join(dict.fromkeys(ours.code_versions)))
    return "; ".join(parts)


def _caption(table: Table) -> Iterable[str]:
    if table.miniature:
        yield (
            "Ours are measured on miniature generated data with a small encoder and a short pre-training; they are not "
            "comparable with the paper's values."
        )
    seeds = f"seed {table.seeds[0]}" if len(table.seeds) == 1 else f"mean ± s.d. over {len(table.seeds)} seeds"
    yield f"Ours: configuration {table.experiment}, {seeds}."
    if table.transposed:
        yield from _sizes(table)
    pairs = dict.fromkeys(f"{row.system} from {row.baseline}" for row in table.rows if row.baseline)
    if pairs:
        yield f"Signed values: difference of {' and of '.join(pairs)} with the same encoder, taken before rounding."
    if any(cell.ours_interval for row in table.rows for cell in row.cells):
        what, left_out = "the test images", "; it leaves out the variance of pre-training"
        if len(table.seeds) > 1:
            what, left_out = f"the test images and the {len(table.seeds)} seeds", ""
        yield (
            f"Their {LEVEL}% intervals (in the CSV, the HTML and the Markdown) are a paired bootstrap over {what} with "
            f"{RESAMPLES:,} resamples{left_out}."
        )


def _sizes(table: Table) -> Iterable[str]:
    """What the leading cells of a table that is not transposed would say."""
    theirs = dict.fromkeys(f"{row.architecture}, {row.epochs} epochs" for row in table.rows if row.epochs)
    ours = dict.fromkeys(f"{row.own_architecture}, {row.own_epochs} epochs" for row in table.rows if row.method)
    for source, sizes in (("The paper's encoder", theirs), ("Ours", ours)):
        if sizes:
            yield f"{source}: {'; '.join(sizes)}."


def _chances(table: Table) -> Iterable[str]:
    """What guessing would give in each column, and on how many images."""
    parts = []
    for i, column in enumerate(table.columns):
        measured = [ours for row in table.rows if (ours := row.cells[i].ours)]
        known = [(ours.chance, ours.images) for ours in measured if ours.chance is not None and ours.images is not None]
        levels = dict.fromkeys(f"{chance:.1f} ({images:,} images)" for chance, images in known)
        if levels:
            parts.append(f"{column.label} {' or '.join(levels)}")
    if parts:
        yield f"Chance level of ours: {', '.join(parts)}."


def _without_interval(table: Table) -> Iterable[str]:
    """Why some differences on test images have no interval."""
    labels = [
        column.label
        for i, column in enumerate(table.columns)
        for cells in [[row.cells[i] for row in table.rows]]
        if any(cell.ours_delta is not None and cell.ours_interval is None and _of_images(cell) for cell in cells)
    ]
    if labels:
        yield (
            f"Differences of {', '.join(labels)} have no interval: a value of resampled test images does not follow "
            "from the records of single images."
        )


def _of_images(cell: Cell) -> bool:
    return cell.ours is not None and cell.ours.images is not None


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."

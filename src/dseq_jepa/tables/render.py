"""Write a table as CSV, Markdown, LaTeX and HTML; the same inputs give the same bytes.

    dseq-jepa tables --config configs/demo.yaml --table table1 --reported configs/reported_values.csv

The CSV is tidy (one line per row and column, unrounded); the other three are one layout in three markups.
"""

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from dseq_jepa.config import Experiment
from dseq_jepa.files import write_atomically
from dseq_jepa.tables.assemble import Cell, Column, Row, Table, assemble
from dseq_jepa.tables.job import TableJob, table_job
from dseq_jepa.tables.latex import to_latex
from dseq_jepa.tables.layout import Entry, Sheet, lay_out
from dseq_jepa.tables.page import to_page


def build_table(experiment: Experiment, table: str, out: Path, reported: Path) -> list[Path]:
    """Assemble a table from results/<experiment> and write it; see `write_table`."""
    return write_table(table_job(experiment, table), experiment.directory, reported, out)


def write_table(job: TableJob, results: Path, reported: Path, out: Path) -> list[Path]:
    """Write <table>.csv, .md, .tex and .html into `out`, each whole or not at all.

    Args:
        job: what the table shows.
        results: folder of the experiment, results/<experiment>.
        reported: the paper's values, configs/reported_values.csv.
        out: folder to write to, such as results/<experiment>/tables.

    Returns:
        The four files.

    Raises:
        UserError: when a measurement is missing or a file cannot be written.

    """
    table = assemble(job, results, reported)
    sheet = lay_out(table)
    base = Path(os.path.relpath(results, out)).as_posix()
    texts = {
        "csv": to_csv(table),
        "md": to_markdown(sheet),
        "tex": to_latex(sheet),
        "html": to_page(table, sheet, base),
    }
    paths = []
    for suffix, text in texts.items():
        paths.append(out / f"{job.name}.{suffix}")
        write_atomically(paths[-1], text)
    return paths


def to_csv(table: Table) -> str:
    """One line per row and column; fields that do not apply are empty, several seeds are joined by spaces."""
    text = io.StringIO()
    records = [
        _record(table, row, column, cell)
        for row in table.rows
        for column, cell in zip(table.columns, row.cells, strict=True)
    ]
    writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _record(table: Table, row: Row, column: Column, cell: Cell) -> dict[str, object]:
    ours = cell.ours
    return {
        "table": table.number,
        "row": row.system,
        "architecture": row.architecture,
        "epochs": row.epochs,
        "metric": column.metric,
        "label": column.label,
        "ours": _number(ours.mean if ours else None),
        "ours_sd": _number(ours.deviation if ours else None),
        "ours_delta": _number(cell.ours_delta),
        "ours_delta_low": _number(cell.ours_interval[0] if cell.ours_interval else None),
        "ours_delta_high": _number(cell.ours_interval[1] if cell.ours_interval else None),
        "reported": _number(cell.reported),
        "reported_delta": _number(cell.reported_delta),
        "baseline": row.baseline,
        "reason": cell.reason,
        "note": "; ".join(note for note in (cell.ours_note, cell.reported_note) if note),
        "images": ours.images if ours else None,
        "chance": _number(ours.chance if ours else None),
        "skipped": ours.skipped if ours else None,
        "seeds": _joined(ours.seeds if ours else ()),
        "values": _joined(map(_number, ours.values if ours else ())),
        "method": row.method,
        "own_architecture": row.own_architecture,
        "own_epochs": row.own_epochs,
        "code_version": _joined(dict.fromkeys(ours.code_versions if ours else ())),
        "config_digest": _joined(ours.config_digests if ours else ()),
        "run": _joined(ours.runs if ours else ()),
    }


def _number(value: float | None) -> str:
    """Six decimals at most: below any measurement, above the noise of binary subtraction."""
    return "" if value is None else repr(round(value, 6) + 0.0)


def _joined(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def to_markdown(sheet: Sheet) -> str:
    """A pipe table with its caption above, footnotes and notes below."""
    rule = ["---"] * len(sheet.heads) + ["---:"] * len(sheet.columns)
    lines = [
        _markdown(f"Table {sheet.number}. {sheet.title}").join(("**", "**")),
        "",
        _markdown(" ".join(sheet.caption)),
        "",
        _pipes(map(_markdown, (*sheet.heads, *sheet.columns))),
        _pipes(rule),
    ]
    for line in sheet.lines:
        if line.section is not None:
            lines.append(_pipes([f"*{_markdown(line.section)}*", *[""] * (len(rule) - 1)]))
        lines.append(_pipes([*map(_markdown, line.heads), *map(_entry, line.entries)]))
    footnotes = [f"<sup>{mark}</sup> {_markdown(text)}" for mark, text in sheet.footnotes]
    for text in (*footnotes, *map(_markdown, sheet.notes)):
        lines += ["", text]
    return "\n".join(lines) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _entry(entry: Entry) -> str:
    text = entry.text if entry.deviation is None else f"{entry.text} ± {entry.deviation}"
    if entry.delta is not None:
        text += f" <sub>{' '.join(filter(None, (entry.delta, entry.interval)))}</sub>"
    return text + "".join(f"<sup>{mark}</sup>" for mark in entry.marks)


def _markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\`*_|<>" else character for character in text)

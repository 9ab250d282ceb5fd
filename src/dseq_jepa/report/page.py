"""Write the report of an experiment: results/<config>/report.html, one file that opens without a network.

    dseq-jepa report --config configs/demo.yaml
    snakemake report

Everything in it comes from artefacts; the same artefacts give the same bytes.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from dseq_jepa.errors import UserError
from dseq_jepa.files import write_atomically
from dseq_jepa.report import sections
from dseq_jepa.report.collect import Collected, collect
from dseq_jepa.report.job import ReportJob
from dseq_jepa.report.sheets import table_section
from dseq_jepa.tables.assemble import Table, assemble
from dseq_jepa.tables.layout import lay_out

_PARTS = {
    "overview": "At a glance", "tables": "Tables", "figures": "Figures", "curves": "Curves", "runs": "Runs",
    "cost": "Cost", "data": "Data", "missing": "Missing", "environment": "Environment",
}  # fmt: skip
_CAPTION = ".caption.md"


def write_report(
    job: ReportJob, results: Path, reported: Path, figures: Sequence[Path], out: Path, incomplete: bool = False
) -> Path:
    """Write the page.

    Args:
        job: what the report shows.
        results: folder of the experiment, results/<experiment>.
        reported: the paper's values, configs/reported_values.csv.
        figures: PNG files in the order of the page; a caption lies beside each as <name>.caption.md.
        out: the file to write.
        incomplete: name a table whose measurements are missing, and go on without it.

    Returns:
        The file.

    Raises:
        UserError: when a measurement or a figure is missing, an artefact is corrupt, or the page cannot be written.

    """
    tables, unfinished = [], []
    for table in job.tables:
        try:
            tables.append(assemble(table, results, reported))
        except UserError as error:
            if not incomplete:
                raise
            unfinished.append(f"Table {table.table.number} is not finished: {error}")
    write_atomically(out, "\n".join(_page(job, collect(results), tables, unfinished, figures)) + "\n")
    return out


def _page(
    job: ReportJob, collected: Collected, tables: Sequence[Table], unfinished: Sequence[str], figures: Sequence[Path]
) -> Iterator[str]:
    parts = {
        "overview": sections.overview(collected, tables),
        "tables": _tables(tables, str(collected.results)),
        "figures": _figures(figures),
        "curves": sections.curves(collected, job.labels),
        "runs": sections.runs(collected, job.labels, str(collected.results)),
        "cost": sections.cost(collected),
        "data": sections.data_sets(collected),
        "missing": sections.missing(collected, tables, unfinished),
        "environment": sections.environment(collected),
    }
    written = {name: "\n".join(lines) for name, lines in parts.items()}
    title = f"DSeq-JEPA: {job.experiment}"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<link rel="icon" href="data:,">'
    yield f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>"
    links = (f'<a href="#{name}">{text}</a>' for name, text in _PARTS.items() if written[name])
    yield f"<header><h1>{escape(title)}</h1><nav>{''.join(links)}</nav></header>\n<main>"
    yield from (text for text in written.values() if text)
    yield f"</main>\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>"


def _tables(tables: Sequence[Table], results: str) -> Iterator[str]:
    if not tables:
        return
    yield '<section id="tables"><h2>Tables</h2>'
    yield "<p>The paper's value stands above ours, and ours leads to its run; our best is bold. Headings sort.</p>"
    command = f"dseq-jepa why {results}/tables/{tables[0].name}.csv --cell ROW:COLUMN"
    yield f"<p>Where a number comes from, down to file hashes: <code>{escape(command)}</code></p>"
    for table in tables:
        yield from table_section(table, lay_out(table))
    yield "</section>"


def _figures(figures: Sequence[Path]) -> Iterator[str]:
    if not figures:
        return
    yield '<section id="figures"><h2>Figures</h2>'
    for path in figures:
        caption = path.with_name(path.stem + _CAPTION)
        try:
            picture = base64.b64encode(path.read_bytes()).decode()
            text = caption.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read: {(error.strerror or '').lower()}; draw it again."
            ) from None
        alt = escape(text.partition("\n")[0].replace("**", "") or path.stem)
        name = re.sub(r"(\d+)", r" \1", path.stem).capitalize()
        yield f'<figure id="{escape(path.stem)}"><h3>{escape(name)}</h3>'
        yield f'<img alt="{alt}" src="data:image/png;base64,{picture}">'
        yield f"<figcaption>{_paragraphs(text)}</figcaption></figure>"
    yield "</section>"


def _paragraphs(text: str) -> str:
    """Markdown of a caption: paragraphs, and emphasis with **."""
    parts = []
    for paragraph in text.split("\n\n"):
        pieces = escape(" ".join(paragraph.split())).split("**")
        bold = (f"<strong>{piece}</strong>" if i % 2 else piece for i, piece in enumerate(pieces))
        parts.append(f"<p>{''.join(bold)}</p>")
    return "".join(parts)


def _asset(name: str) -> str:
    return (resources.files("dseq_jepa.report") / name).read_text(encoding="utf-8")

"""A laid-out table as part of the report: rows that sort and filter, cells that lead to their runs.

"".join(table_section(table, lay_out(table)))
"""

from collections.abc import Iterator
from html import escape

from dseq_jepa.tables.assemble import Table
from dseq_jepa.tables.layout import MISSING, Entry, Line, Sheet


def anchor(place: str) -> str:
    """Where the page speaks about a job: its id."""
    return "run-" + place.replace("/", "-")


def table_section(table: Table, sheet: Sheet) -> Iterator[str]:
    """The table with its caption, footnotes and notes.

    One <tbody> per system, the paper's line and ours, so that sorting keeps them together.
    """
    yield f'<section class="table" id="{sheet.name}"><h3>Table {sheet.number}. {escape(sheet.title)}</h3>'
    yield f"<p>{escape(' '.join(sheet.caption))}</p>"
    if not table.transposed:
        yield (
            '<p class="controls"><label>Filter <input type="search" placeholder="method, architecture"></label> '
            '<label><input type="checkbox"> measured rows only</label></p>'
        )
    yield '<div class="scroll" role="region" aria-label="The table; it scrolls sideways" tabindex="0"><table>'
    yield f"<thead><tr>{''.join(_headings(sheet, sortable=not table.transposed))}</tr></thead>"
    best = {} if table.transposed else _best(sheet)
    yield from _bodies(sheet, best)
    yield "</table></div>"
    yield from _below(sheet)
    yield "</section>"


def _headings(sheet: Sheet, sortable: bool) -> Iterator[str]:
    for text in sheet.heads:
        yield f'<th scope="col">{escape(text)}</th>' if text else "<td></td>"
    for text in sheet.columns:
        inner = f'<button type="button" title="Sort by our value">{escape(text)}</button>' if sortable else escape(text)
        yield f'<th scope="col" class="value">{inner}</th>'


def _best(sheet: Sheet) -> dict[int, float]:
    """Our highest value of every column in which we have several."""
    best = {}
    for i in range(len(sheet.columns)):
        ours = [_number(line.entries[i]) for line in sheet.lines if line.source == "ours"]
        values = [value for value in ours if value is not None]
        if len(values) > 1:
            best[i] = max(values)
    return best


def _number(entry: Entry) -> float | None:
    return None if entry.text == MISSING else float(entry.text.replace(",", ""))


def _bodies(sheet: Sheet, best: dict[int, float]) -> Iterator[str]:
    width = len(sheet.heads) + len(sheet.columns)
    opened = False
    for line in sheet.lines:
        if line.heads[0]:  # a name stands beside both its lines
            yield "</tbody>" if opened else ""
            if line.section is not None:
                yield f'<tbody class="section"><tr><th colspan="{width}">{escape(line.section)}</th></tr></tbody>'
            yield "<tbody>"
            opened = True
        yield _line(line, sheet.name, best)
    yield "</tbody>" if opened else ""


def _line(line: Line, table: str, best: dict[int, float]) -> str:
    name, *heads = line.heads
    cells = [f'<th scope="row" rowspan="2">{escape(name)}</th>'] if name else []
    cells += [f"<td>{escape(head)}</td>" for head in heads]
    for i, entry in enumerate(line.entries):
        value = _number(entry)
        is_best = line.source == "ours" and value is not None and value == best.get(i)
        kind = "value best" if is_best else "value"
        cells.append(f'<td class="{kind}" data-value="{"" if value is None else value}">{_entry(entry, table)}</td>')
    return f'<tr class="{line.source}">{"".join(cells)}</tr>'


def _entry(entry: Entry, table: str) -> str:
    text = escape(entry.text if entry.deviation is None else f"{entry.text} ± {entry.deviation}")
    hint = "" if entry.detail is None else f' title="{escape(entry.detail)}"'
    if entry.run is not None:
        text = f'<a href="#{anchor(entry.run)}"{hint}>{text}</a>'
    elif hint:
        text = f"<span{hint}>{text}</span>"
    text += "".join(f'<sup><a href="#{table}-{mark}">{mark}</a></sup>' for mark in entry.marks)
    span = "" if entry.interval is None else f'<small class="interval">{entry.interval.replace("-", "−")}</small>'
    return f"{text} <small>{(entry.delta or '').replace('-', '−')}</small>{span}"


def _below(sheet: Sheet) -> Iterator[str]:
    if sheet.footnotes:
        yield '<ol class="marks">'
        yield from (
            f'<li id="{sheet.name}-{mark}"><sup>{mark}</sup> {escape(text)}</li>' for mark, text in sheet.footnotes
        )
        yield "</ol>"
    if sheet.notes:
        yield f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in sheet.notes)}</ul>'

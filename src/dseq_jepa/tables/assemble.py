"""Join what we measured and what the paper reports into one table; reads metrics.json and records.csv.gz files.

    dseq-jepa tables --config configs/demo.yaml --table table1 --reported configs/reported_values.csv

Every cell holds both values, both differences from the row's baseline, the interval of ours, and the reason where
something is missing.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from dseq_jepa.config import nearest
from dseq_jepa.errors import UserError
from dseq_jepa.jobs import Model
from dseq_jepa.tables.intervals import READERS, RECORDS, Records, Values, interval, resampled
from dseq_jepa.tables.job import TableJob
from dseq_jepa.tables.reported import Reported, ReportedRow, read_reported
from dseq_jepa.tables.settings import ColumnSettings, RowSettings, TableSettings

AVERAGE = "average"


@dataclass(frozen=True)
class Measurement:
    """One quantity of one system of ours, over its seeds; values in the metric's unit (% for accuracies)."""

    values: tuple[float, ...]
    """One per seed."""
    seeds: tuple[int, ...]
    chance: float | None = None
    """What guessing gives; None where that means nothing."""
    images: int | None = None
    """Test images counted; None for an average."""
    skipped: int = 0
    """Test images that could not be read, over all seeds."""
    note: str | None = None
    """What the evaluation says about how the value came about."""
    code_versions: tuple[str, ...] = ()
    config_digests: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    """Folders of the runs below results/<experiment>, one per seed."""
    metric: str | None = None
    """What the evaluation calls it, such as top1; None for a further value and for an average."""
    resampled: Values | None = field(default=None, compare=False, repr=False)
    """The values under R resamples of the test images, one column per seed; None where there is no way to resample."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Cell:
    """One system, one metric."""

    ours: Measurement | None
    reason: str | None
    """Why there is no value of ours."""
    reported: float | None
    ours_delta: float | None = None
    """Ours minus the baseline row's; None without a baseline or where either is missing."""
    ours_interval: tuple[float, float] | None = None
    """Where 95% of the resampled differences lie; None without a difference, or where nothing can be resampled."""
    reported_delta: float | None = None
    ours_note: str | None = None
    """What a reader of our value has to know."""
    reported_note: str | None = None
    """What a reader of the paper's value has to know."""


@dataclass(frozen=True)
class Row:
    """One system."""

    system: str
    architecture: str
    """The paper's."""
    epochs: int | None
    """The paper's; None for a system that it does not report."""
    section: str | None
    baseline: str | None
    method: str | None
    own_architecture: str | None
    """Label of the architecture that ours was measured on."""
    own_epochs: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """One metric."""

    metric: str
    label: str
    decimals: int = 1
    """Of our values, as printed."""


@dataclass(frozen=True)
class Table:
    """Everything that a rendered table says."""

    name: str
    number: int
    title: str
    experiment: str
    seeds: tuple[int, ...]
    miniature: bool
    transposed: bool
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class _Evaluation(BaseModel):
    value: float
    """The main value."""
    values: dict[str, float] = {}
    """Further ones by name."""
    notes: dict[str, str] = {}
    """What a reader of a further value has to know, by name."""
    metric: str | None = None
    n: int | None = None
    chance: float | None = None
    skipped_images: int = 0


class _Metrics(BaseModel):
    """The part of a metrics.json that tables show."""

    version: Literal[1] = Field(alias="schema")
    model: Model
    group: str
    code_version: str
    config_digest: str
    evaluations: dict[str, _Evaluation]


def assemble(job: TableJob, results: Path, reported: Path) -> Table:
    """The table of a job.

    Args:
        job: what the table shows.
        results: folder of the experiment, results/<experiment>; it has evaluate/<group>/....
        reported: the paper's values, configs/reported_values.csv.

    Raises:
        UserError: naming the file that is missing, unreadable, of another model, or without the evaluation, and a row
            or metric that the paper does not have.

    """
    paper = read_reported(reported, job.table.number)
    for column in job.table.columns:
        paper.check_metric(column.metric)
    measured = _resampled(job, [_read_row(job, row, results) for row in job.table.rows], results)
    rows = [_row(job, i, measured[i], paper) for i in range(len(job.table.rows))]
    by_system = {(row.system, row.architecture): row for row in rows}
    compared = tuple(_with_printed(_with_deltas(row, by_system), job.table, paper) for row in rows)
    columns = [Column(column.metric, column.label, column.decimals) for column in job.table.columns]
    if job.table.average is not None:
        columns.append(Column(AVERAGE, "Avg."))
    return Table(
        name=job.name,
        number=job.table.number,
        title=job.table.title,
        experiment=job.experiment,
        seeds=tuple(job.seeds),
        miniature=job.miniature,
        transposed=job.table.transposed,
        columns=tuple(columns),
        rows=compared,
        notes=(*job.table.notes, *_code_versions(compared)),
    )


def _row(job: TableJob, index: int, measured: dict[str, Measurement], paper: Reported) -> Row:
    settings = job.table.rows[index]
    printed = paper.row(settings.reported, settings.reported_architecture) if settings.reported else None
    own = job.architectures[settings.architecture] if settings.architecture is not None else None
    cells = [_cell(settings, column, measured.get(column.metric), printed) for column in job.table.columns]
    if job.table.average is not None:
        cells.append(_average(job, settings, cells, printed))
    return Row(
        system=job.systems[index],
        architecture=settings.reported_architecture,
        epochs=printed.epochs if printed else None,
        section=settings.section,
        baseline=settings.baseline,
        method=settings.method,
        own_architecture=own.label if own else None,
        own_epochs=own.epochs if own else None,
        cells=tuple(cells),
    )


def _cell(row: RowSettings, column: ColumnSettings, ours: Measurement | None, printed: ReportedRow | None) -> Cell:
    skipped = f"{ours.skipped} unreadable test images are not counted" if ours and ours.skipped else None
    remarks = [remark for remark in (skipped, ours.note if ours else None) if remark]
    return Cell(
        ours=ours,
        reason=None if ours else row.missing or column.missing,
        reported=printed.values.get(column.metric) if printed else None,
        ours_note="; ".join(remarks) or None,
    )


def _average(job: TableJob, row: RowSettings, cells: Sequence[Cell], printed: ReportedRow | None) -> Cell:
    """The last column, recomputed from the others; only where all of them exist."""
    wanted = [i for i, column in enumerate(job.table.columns) if column.metric in (job.table.average or ())]
    missing = [job.table.columns[i].label for i in wanted if cells[i].ours is None]
    ours = [measurement for i in wanted if (measurement := cells[i].ours)]
    values = [value for i in wanted if (value := cells[i].reported) is not None]
    reported = statistics.fmean(values) if len(values) == len(wanted) else None
    incomplete = f"the average needs every column; there is no {', '.join(missing)}" if missing else None
    return Cell(
        ours=None if missing else _mean(ours),
        reason=row.missing or incomplete,
        reported=reported,
        reported_note=_disagreement(reported, printed.values.get(AVERAGE) if printed else None),
    )


def _mean(columns: Sequence[Measurement]) -> Measurement:
    """The mean over columns, seed by seed."""
    chances = [column.chance for column in columns if column.chance is not None]
    samples = [column.resampled for column in columns if column.resampled is not None]
    return Measurement(
        values=tuple(statistics.fmean(values) for values in zip(*(column.values for column in columns), strict=True)),
        seeds=columns[0].seeds,
        chance=statistics.fmean(chances) if len(chances) == len(columns) else None,
        resampled=np.mean(samples, axis=0) if len(samples) == len(columns) else None,
    )


def _disagreement(recomputed: float | None, printed: float | None) -> str | None:
    ours, theirs = (f"{value:.1f}" if value is not None else "-" for value in (recomputed, printed))
    if ours == theirs:
        return None
    return f'the paper prints "{theirs}" for the average; the mean of the values that it reports is {ours}'


def _with_deltas(row: Row, by_system: dict[tuple[str, str], Row]) -> Row:
    if row.baseline is None:
        return row
    baseline = by_system[row.baseline, row.architecture]
    cells = tuple(_compared(cell, other) for cell, other in zip(row.cells, baseline.cells, strict=True))
    return replace(row, cells=cells)


def _compared(cell: Cell, baseline: Cell) -> Cell:
    if cell.ours and baseline.ours:
        ours, other = cell.ours.resampled, baseline.ours.resampled
        cell = replace(
            cell,
            ours_delta=cell.ours.mean - baseline.ours.mean,
            ours_interval=None if ours is None or other is None else interval(ours, other),
        )
    if cell.reported is not None and baseline.reported is not None:
        cell = replace(cell, reported_delta=cell.reported - baseline.reported)
    return cell


def _with_printed(row: Row, table: TableSettings, paper: Reported) -> Row:
    """Notes where the paper prints another difference than its own values have."""
    if row.baseline is None or row.epochs is None:
        return row
    printed = paper.rows[row.system, row.architecture].deltas
    metrics = [*(column.metric for column in table.columns), AVERAGE]
    pairs = zip(row.cells, metrics, strict=False)
    return replace(row, cells=tuple(_with_note(cell, printed.get(metric)) for cell, metric in pairs))


def _with_note(cell: Cell, printed: float | None) -> Cell:
    if printed is None or cell.reported_delta is None or f"{printed:+.1f}" == f"{cell.reported_delta:+.1f}":
        return cell
    note = (
        f'the paper prints "{printed:+.1f}" for this difference; that of its own values is {cell.reported_delta:+.1f}'
    )
    return replace(cell, reported_note="; ".join(part for part in (cell.reported_note, note) if part))


def _read_row(job: TableJob, row: RowSettings, results: Path) -> dict[str, Measurement]:
    """A row's measured columns by metric, over all seeds."""
    if row.method is None or row.architecture is None:
        return {}
    read: dict[str, _Metrics] = {}
    measured = {}
    for column in job.table.columns:
        if column.evaluation is None:
            continue
        runs = []
        for seed in job.seeds:
            model = Model(experiment=job.experiment, method=row.method, architecture=row.architecture, seed=seed)
            run = run_directory(job.groups[column.evaluation], model)
            if run not in read:
                read[run] = _read_metrics(results / run / "metrics.json", model)
            runs.append(run)
        measured[column.metric] = _measurement({run: read[run] for run in runs}, column, results)
    return measured


def run_directory(group: str, model: Model) -> str:
    """Where a group of evaluations of a model is written, below results/<experiment>."""
    return f"evaluate/{group}/{model.method}/{model.architecture}/seed{model.seed}"


def _measurement(files: dict[str, _Metrics], column: ColumnSettings, results: Path) -> Measurement:
    """One column over the seeds; `files` by run directory."""
    evaluation = str(column.evaluation)
    for run, file in files.items():
        if evaluation not in file.evaluations:
            raise UserError(
                f'{results / run}/metrics.json: has no evaluation "{evaluation}" (it has '
                f"{', '.join(file.evaluations)}); delete the file and run the workflow again."
            )
        known = file.evaluations[evaluation].values
        if column.value is not None and column.value not in known:
            raise UserError(
                f'{results / run}/metrics.json: {evaluation} has no value "{column.value}", which the column of '
                f"{column.metric} shows; {nearest(column.value, known)}."
            )
    found = [file.evaluations[evaluation] for file in files.values()]
    return Measurement(
        values=tuple(entry.value if column.value is None else entry.values[column.value] for entry in found),
        seeds=tuple(file.model.seed for file in files.values()),
        chance=found[0].chance,
        images=found[0].n,
        skipped=sum(entry.skipped_images for entry in found),
        note=found[0].notes.get(column.value or ""),
        code_versions=tuple(file.code_version for file in files.values()),
        config_digests=tuple(file.config_digest for file in files.values()),
        runs=tuple(files),
        metric=found[0].metric if column.value is None else None,
    )


def _resampled(job: TableJob, rows: list[dict[str, Measurement]], results: Path) -> list[dict[str, Measurement]]:
    """The rows' measurements by column, with their values under resamples where a row is compared with another."""
    names = [(job.systems[i], row.reported_architecture) for i, row in enumerate(job.table.rows)]
    baselines = {(row.baseline, row.reported_architecture) for row in job.table.rows if row.baseline}
    compared = [i for i, row in enumerate(job.table.rows) if row.baseline or names[i] in baselines]
    records, rows = Records(), [dict(row) for row in rows]
    for column in job.table.columns:
        measured = {i: ours for i in compared if (ours := rows[i].get(column.metric)) and ours.metric in READERS}
        examples = {
            (i, run): records.examples(results / run / RECORDS, str(column.evaluation), str(ours.metric))
            for i, ours in measured.items()
            for run in ours.runs
        }
        values = resampled(examples, str(column.evaluation)) if examples else {}
        for i, ours in measured.items():
            rows[i][column.metric] = replace(ours, resampled=np.stack([values[i, run] for run in ours.runs], axis=1))
    return rows


def _read_metrics(path: Path, model: Model) -> _Metrics:
    try:
        metrics = _Metrics.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {(error.strerror or '').lower()}; it is written by the evaluations of "
            f"{model.method} on {model.architecture}, run the workflow to make it."
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: not a metrics file of this version: {where}: {first['msg']}.") from None
    if metrics.model != model:
        raise UserError(f"{path}: is of {metrics.model}, expected {model}; delete it and run the workflow again.")
    return metrics


def _code_versions(rows: Sequence[Row]) -> list[str]:
    """A note when the table's numbers come from different versions of the code."""
    systems: dict[str, list[str]] = {}
    for row in rows:
        for cell in row.cells:
            for version in cell.ours.code_versions if cell.ours else ():
                names = systems.setdefault(version, [])
                name = f"{row.system} {row.architecture}"
                if name not in names:
                    names.append(name)
    if len(systems) < 2:
        return []
    listed = "; ".join(f"{version}: {', '.join(names)}" for version, names in systems.items())
    return [f"Our numbers come from different versions of the code ({listed})."]

"""The paper's printed values: configs/reported_values.csv.

read_reported(Path("configs/reported_values.csv"), number=1).row("MAE", "ViT-B/16").values
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from dseq_jepa.config import nearest
from dseq_jepa.errors import UserError

DELTA = "_delta"
"""End of a metric's name in the lines of a difference that the paper prints beside the metric's value."""
COLUMNS = ["table", "row", "architecture", "epochs", "metric", "value"]


@dataclass
class ReportedRow:
    """What the paper prints for one system."""

    epochs: int
    values: dict[str, float] = field(default_factory=dict)
    """Metric to value, in the unit of the paper (% for accuracies); `average` where the paper prints one."""
    deltas: dict[str, float] = field(default_factory=dict)
    """Metric to the difference that the paper prints beside the value."""


@dataclass(frozen=True)
class Reported:
    """One table of the paper: its rows by system and architecture."""

    source: Path
    number: int
    rows: dict[tuple[str, str], ReportedRow]

    def row(self, system: str, architecture: str) -> ReportedRow:
        """A row; an error with the nearest name where the paper has none."""
        try:
            return self.rows[system, architecture]
        except KeyError:
            hint = nearest(f"{system}, {architecture}", [", ".join(key) for key in self.rows])
            raise UserError(
                f"{self.source}: Table {self.number} has no row {system}, {architecture}; {hint}. "
                "A system that the paper does not report has no `reported` in the configuration."
            ) from None

    def check_metric(self, metric: str) -> None:
        """An error with the nearest name where no row of the table has a metric."""
        known = sorted({name for row in self.rows.values() for name in row.values})
        if metric not in known:
            raise UserError(f'{self.source}: Table {self.number} has no metric "{metric}"; {nearest(metric, known)}.')


def read_reported(path: Path, number: int) -> Reported:
    """The rows of one table.

    Raises:
        UserError: naming the file and the line that cannot be read.

    """
    rows: dict[tuple[str, str], ReportedRow] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise UserError(f"{path}: the first line is {reader.fieldnames}, expected {','.join(COLUMNS)}.")
            for entry in reader:
                _add(rows, entry, number, f"{path}: line {reader.line_num}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    return Reported(path, number, rows)


def _add(rows: dict[tuple[str, str], ReportedRow], entry: dict[str, str], number: int, where: str) -> None:
    try:
        table, epochs, value = int(entry["table"]), int(entry["epochs"]), float(entry["value"])
    except (TypeError, ValueError):
        raise UserError(f"{where}: table and epochs must be whole numbers and value a number, got {entry}.") from None
    if table != number:
        return
    row = rows.setdefault((entry["row"], entry["architecture"]), ReportedRow(epochs))
    metric = entry["metric"].removesuffix(DELTA)
    known = row.deltas if entry["metric"].endswith(DELTA) else row.values
    if metric in known:
        raise UserError(f"{where}: {entry['row']}, {entry['architecture']}, {entry['metric']} is given twice.")
    known[metric] = value

"""Many points into a database that this process opens itself: MLflow's own table, one statement for thousands of rows.

    log_points(client, run_id, points, direct=True)      # 1e6 points into sqlite in under three minutes

MLflow's `log_batch` makes an object per point, asks the database about each metric and takes 1,000 points at most: ten
minutes for a month of curves. It still logs the newest point of each metric, first of all: from that MLflow knows the
metric and its latest value. The others only have to be rows of its table `metrics`. MLflow is pinned to one minor
version, whose table this is; a test compares both ways row by row.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dseq_jepa.thinning import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

_PER_CALL = 1000
_PER_TRANSACTION = 20_000


def log_points(client: "MlflowClient", run_id: str, points: Sequence[Point], direct: bool) -> Iterator[Sequence[Point]]:
    """Log points that the store does not hold; yields each part when it is there for good.

    Args:
        client: of the store.
        run_id: of the run.
        points: none of which is there.
        direct: the store is a database that this process opens, not a server.

    """
    if not direct:
        yield from _through_mlflow(client, run_id, points)
        return
    newest: dict[str, Point] = {}
    for point in points:
        known = newest.get(point.name)
        if known is None or (point.step, point.time_ms) >= (known.step, known.time_ms):
            newest[point.name] = point
    last = set(map(id, newest.values()))
    yield from _through_mlflow(client, run_id, list(newest.values()))
    rest = [point for point in points if id(point) not in last]
    for part in _parts(rest, _PER_TRANSACTION):
        _insert(client, run_id, part)
        yield part


def _through_mlflow(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    from mlflow.entities import Metric

    for part in _parts(points, _PER_CALL):
        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in part]
        client.log_batch(run_id, metrics=metrics, synchronous=True)
        yield part


def _insert(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> None:
    """Rows of the table `metrics`, in one transaction."""
    from mlflow.store.tracking.dbmodels.models import SqlMetric
    from sqlalchemy import insert

    store: Any = client._tracking_client.store
    rows = []
    for point in points:
        is_nan, value = store.sanitize_metric_value(point.value)
        rows.append({
            "run_uuid": run_id, "key": point.name, "value": value, "timestamp": point.time_ms, "step": point.step,
            "is_nan": is_nan,
        })  # fmt: skip
    with store.ManagedSessionMaker(read_only=False) as session:
        session.execute(insert(SqlMetric), rows)


def _parts(points: Sequence[Point], size: int) -> Iterator[Sequence[Point]]:
    for begin in range(0, len(points), size):
        yield points[begin : begin + size]

"""Rows that are written directly are those that MLflow writes, and a kill between leaves nothing hidden."""

import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.bulk import log_points
from dseq_jepa.thinning import Point

POINTS = [
    Point("loss", 1, 1000, 0.5), Point("loss", 2, 2000, math.nan), Point("loss", 3, 2000, math.inf),
    Point("loss", 3, 3000, 0.25), Point("loss", 2, 4000, -math.inf), Point("rank/x y", 7, 1000, 2.0),
    Point("loss", -1, 1, 1e-300),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


def rows(client: Any, run_id: str) -> list[list[tuple[Any, ...]]]:
    path = client._tracking_client.store.db_uri.removeprefix("sqlite:///")
    with sqlite3.connect(path) as database:
        return [
            sorted(database.execute(
                f"select key, value, timestamp, step, is_nan from {table} where run_uuid = ?", [run_id]
            ))
            for table in ("metrics", "latest_metrics")
        ]  # fmt: skip


def test_direct_rows_equal_mlflows(client: Any) -> None:
    written = []
    for direct in (False, True):
        run = client.create_run("0")
        parts = list(log_points(client, run.info.run_id, POINTS, direct))
        assert sorted(point for part in parts for point in part if point.value == point.value) == sorted(
            point for point in POINTS if point.value == point.value
        )
        written.append(rows(client, run.info.run_id))
    assert written[0] == written[1]
    assert len(written[0][0]) == len(POINTS)


def test_the_newest_point_of_every_metric_comes_first(client: Any) -> None:
    """A killed sync leaves metrics that the next one sees and completes."""
    run = client.create_run("0")
    next(iter(log_points(client, run.info.run_id, POINTS, True)))
    held = client.get_run(run.info.run_id).data.metrics
    assert held == {"loss": 0.25, "rank/x y": 2.0}


def test_a_run_that_was_deleted_is_refused(client: Any, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    run = client.create_run("0")
    client.delete_run(run.info.run_id)
    with pytest.raises(MlflowException):
        list(log_points(client, run.info.run_id, POINTS, True))

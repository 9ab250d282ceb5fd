"""MLflow as a mirror of the journals: the journals are the truth, the store can be filled again at any time.

    dseq-jepa sync --config configs/demo.yaml            # fills results/demo/mlflow.db
    MLFLOW_TRACKING_URI=https://server dseq-jepa sync --config configs/paper.yaml

A sync makes the store agree with the results folder, however often it runs and wherever the one before was killed:
every run is found again by a tag, its histories are compared with the journal, and only missing points are logged. A
run that holds a point which its journal no longer holds (a process was killed and its last steps were computed again
after the live mirror had sent them) is deleted in MLflow and mirrored anew, for points cannot be taken back. A mark,
set last, says that a run is complete for these files; such a run costs nothing.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dseq_jepa.bulk import log_points
from dseq_jepa.errors import UserError
from dseq_jepa.files import write_atomically
from dseq_jepa.lock import locked
from dseq_jepa.masking import masked
from dseq_jepa.registry import Links, log_datasets, register, set_aliases
from dseq_jepa.sources import JOURNAL, Source, sources
from dseq_jepa.stores import answering, check_place, is_server, make_tables, open_experiment, store_uri
from dseq_jepa.thinning import Point
from dseq_jepa.tracked import Run, read_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as StoredRun

_KEY, _PLACE, _MARK, _POINTS, _FILES = (f"dseq_jepa.{name}" for name in ("key", "place", "mark", "points", "files"))
_PARENT = "mlflow.parentRunId"
_PARAMS_PER_CALL = 100
_SPOKEN = (".log", ".jsonl")


@dataclass(frozen=True)
class Summary:
    """What a sync left and did."""

    store: str
    experiment: str
    runs: int
    points: int
    """In the store for these results."""
    new_runs: int
    new_points: int
    """Logged by this sync."""


def sync(results: Path, experiment: str, uri: str | None = None, out: Path | None = None) -> Summary:
    """Make an MLflow experiment agree with the journals and result files of results/<config>.

    Args:
        results: results/<config>.
        experiment: name of the MLflow experiment; made if missing.
        uri: of the store; MLFLOW_TRACKING_URI unless given, else sqlite in the results folder.
        out: receives the summary as JSON.

    Raises:
        UserError: when the store does not answer, refuses, or is being filled by another sync. What was mirrored so
            far stays; the next sync goes on.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; there is nothing to mirror before the workflow has run.")
    uri = store_uri(results, uri)
    (results / "tracking").mkdir(exist_ok=True)
    runs = points = new_runs = new_points = 0
    with alone(results / "tracking"), answering(uri):
        store = Store(uri, experiment, results / "mlartifacts")
        for source in sources(results):
            with alone(source.folders[0]) if (source.folders[0] / JOURNAL).exists() else nullcontext():
                mirrored = store.mirror(source)
            runs, points = runs + 1, points + mirrored.points
            new_runs, new_points = new_runs + mirrored.new_run, new_points + mirrored.new_points
        store.link()
    summary = Summary(masked(uri), experiment, runs, points, new_runs, new_points)
    if out:
        write_atomically(out, json.dumps({"schema": 1, **summary.__dict__}, indent=1) + "\n")
    return summary


@dataclass(frozen=True)
class Mirrored:
    """One run after `Store.mirror`."""

    points: int
    new_run: bool
    new_points: int


class Store:
    """An experiment in an MLflow store. Use inside `answering`, which turns MLflow's errors into sentences.

    Args:
        uri: of the store.
        experiment: its name; made if missing.
        artefacts: folder for artefacts where the store is a database without a server.
    """

    def __init__(self, uri: str, experiment: str, artefacts: Path) -> None:
        from mlflow import MlflowClient

        check_place(uri)
        make_tables(uri)
        self.client: MlflowClient = MlflowClient(tracking_uri=uri)
        self.name, self._direct = experiment, not is_server(uri)
        self.experiment_id = open_experiment(self.client, experiment, None if is_server(uri) else artefacts)
        self.runs: dict[str, list[StoredRun]] = {}
        self.ids: dict[str, str] = {}
        self.known: dict[str, dict[str, set[tuple[int, int]]]] = {}
        for run in _all_runs(self.client, self.experiment_id):
            self.runs.setdefault(run.data.tags[_KEY], []).append(run)
            self.ids[run.data.tags[_PLACE]] = run.info.run_id

    def mirror(self, source: Source) -> Mirrored:
        """Make the stored run agree with a job's files.

        Raises:
            UserError: for a corrupt journal or result file.
        """
        mark = source.fingerprint()
        parent = self.ids.get(source.parent) if source.parent else None
        for stored in (run for runs in self.runs.values() for run in runs):
            tags = stored.data.tags
            if (tags[_PLACE], tags.get(_MARK), tags.get(_PARENT)) == (source.place, mark, parent):
                self.ids[source.place] = stored.info.run_id
                return Mirrored(int(tags[_POINTS]), new_run=False, new_points=0)
        return self._agree(read_run(source), mark, parent)

    def link(self) -> None:
        """What concerns several runs: descriptions that lead from one to the other, and the registry's aliases."""
        current = [run for runs in self.runs.values() for run in runs if run.info.run_id in self.ids.values()]
        Links(self.client, self.experiment_id, current).write()
        set_aliases(self.client, self.name, current)

    def _agree(self, run: Run, mark: str, parent: str | None) -> Mirrored:
        stored = self._now(self._only(run.key))
        if stored is not None and not self._within(stored, run):
            self.client.delete_run(stored.info.run_id)
            stored = None
        new_run = stored is None
        if stored is None:
            stored = self.client.create_run(
                self.experiment_id, run.start_ms, {_KEY: run.key, _PLACE: run.place, **run.tags}, run.name
            )
            self.known[stored.info.run_id] = {}
        self.runs[run.key], self.ids[run.place] = [stored], stored.info.run_id
        self._log_params(stored, run)
        new_points = self._log_points(stored.info.run_id, run.points)
        files = self._log_files(stored, run)
        log_datasets(self.client, stored, run)
        register(self.client, self.name, stored, run)
        marks = {_FILES: files, _POINTS: str(len(run.points)), _MARK: mark}
        self._set_state(stored, run)
        self._set_tags(stored, run, marks | ({_PARENT: parent} if parent else {}))
        self.runs[run.key] = [self.client.get_run(stored.info.run_id)]
        return Mirrored(len(run.points), new_run, new_points)

    def _only(self, key: str) -> "StoredRun | None":
        """The run with this key. A request that was answered too late may have made it twice: one is kept."""
        runs = sorted(self.runs.get(key, []), key=lambda run: str(run.info.run_id))
        for extra in runs[1:]:
            self.client.delete_run(extra.info.run_id)
        return runs[0] if runs else None

    def _now(self, stored: "StoredRun | None") -> "StoredRun | None":
        """The run as it is now: another process may have mirrored or deleted it since this one looked."""
        if stored is None:
            return None
        run = self.client.get_run(stored.info.run_id)
        if run.data.tags.get(_MARK) != stored.data.tags.get(_MARK):
            self.known.pop(run.info.run_id, None)
        return run if run.info.lifecycle_stage == "active" else None

    def _within(self, stored: "StoredRun", run: Run) -> bool:
        """Whether the store holds nothing that the journal does not hold."""
        if any(run.params.get(key) != value for key, value in stored.data.params.items()):
            return False
        expected: dict[str, set[tuple[int, int]]] = {}
        for point in run.points:
            expected.setdefault(point.name, set()).add((point.step, point.time_ms))
        held = self._held(stored)
        return all(points <= expected.get(name, set()) for name, points in held.items())

    def _held(self, stored: "StoredRun") -> dict[str, set[tuple[int, int]]]:
        """Steps and times of every stored point; asked for once per process and kept up to date."""
        run_id = stored.info.run_id
        if run_id not in self.known:
            self.known[run_id] = {
                name: {(point.step, point.timestamp) for point in self.client.get_metric_history(run_id, name)}
                for name in stored.data.metrics
            }
        return self.known[run_id]

    def _log_params(self, stored: "StoredRun", run: Run) -> None:
        from mlflow.entities import Param

        missing = [Param(key, value) for key, value in run.params.items() if key not in stored.data.params]
        for begin in range(0, len(missing), _PARAMS_PER_CALL):
            part = missing[begin : begin + _PARAMS_PER_CALL]
            self.client.log_batch(stored.info.run_id, params=part, synchronous=True)

    def _log_points(self, run_id: str, points: list[Point]) -> int:
        held = self.known[run_id]
        missing = [point for point in points if (point.step, point.time_ms) not in held.get(point.name, ())]
        for part in log_points(self.client, run_id, missing, self._direct):
            for point in part:
                held.setdefault(point.name, set()).add((point.step, point.time_ms))
        return len(missing)

    def _log_files(self, stored: "StoredRun", run: Run) -> str:
        """Upload the artefacts when one of them changed; returns what identifies them."""
        state = [
            f"{folder}/{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path, folder in run.artefacts
        ]
        state.append(json.dumps(run.config, sort_keys=True))
        files = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
        run_id = stored.info.run_id
        if stored.data.tags.get(_FILES) == files:
            return files
        if run.config:
            self.client.log_text(run_id, json.dumps(run.config, indent=1) + "\n", "config.json")
        for path, folder in run.artefacts:
            self._log_file(run_id, path, folder)
        return files

    def _log_file(self, run_id: str, path: Path, folder: str | None) -> None:
        """Upload a file; one that other programs wrote to as well may hold what nobody shall see."""
        if path.suffix in _SPOKEN:
            said = path.read_text(errors="replace")
            if (shown := masked(said)) != said:
                self.client.log_text(run_id, shown, f"{folder}/{path.name}" if folder else path.name)
                return
        self.client.log_artifact(run_id, str(path), folder)

    def _set_tags(self, stored: "StoredRun", run: Run, marks: dict[str, str]) -> None:
        """All tags in one call, so that the mark is never set without what it stands for."""
        from mlflow.entities import RunTag

        wanted = {**run.tags, "mlflow.runName": run.name, **marks}
        changed = [RunTag(key, value) for key, value in wanted.items() if stored.data.tags.get(key) != value]
        self.client.log_batch(stored.info.run_id, tags=changed, synchronous=True)

    def _set_state(self, stored: "StoredRun", run: Run) -> None:
        if stored.info.status == run.status and (run.end_ms is None or stored.info.end_time == run.end_ms):
            return
        if run.status == "RUNNING":
            self.client.update_run(stored.info.run_id, status="RUNNING")
        else:
            self.client.set_terminated(stored.info.run_id, run.status, run.end_ms)


def alone(folder: Path) -> AbstractContextManager[None]:
    """Hold a folder's mirror lock: two processes that find the same point missing would both log it.

    Raises:
        UserError: when another process holds it for a minute.
    """
    return locked(folder / ".mirror.lock", f"{folder}: another process is mirroring this folder to MLflow")


def _all_runs(client: "MlflowClient", experiment_id: str) -> Iterator["StoredRun"]:
    """Our active runs of an experiment, oldest first; runs that somebody else logged there are left alone."""
    token: str | None = None
    while True:
        page: Any = client.search_runs([experiment_id], order_by=["attributes.start_time ASC"], page_token=token)
        yield from (run for run in page if _KEY in run.data.tags)
        token = page.token
        if not token:
            return

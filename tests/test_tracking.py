"""The MLflow store agrees with the journals: every mirrored point once, whatever was killed on the way."""

import itertools
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal, encode, read
from dseq_jepa.live import LiveMirror
from dseq_jepa.sources import sources
from dseq_jepa.thinning import MAX_POINTS, stride_of
from dseq_jepa.tracked import read_run
from dseq_jepa.tracking import sync

MODEL = "dseq-jepa/vit-b/seed0"
JOB = {
    "model": {"experiment": "demo", "method": "dseq-jepa", "architecture": "vit-b", "seed": 0},
    "architecture": {"label": "ViT-B/16", "width": 768, "heads": None},
    "recipe": {"learning_rate": {"peak": 0.001}, "betas": [0.9, 0.999], "note": "x" * 7000},
    "data": {"layout": "imagenet", "root": "/data"},
}
TAGS = {
    "step": "pretrain", "experiment": "demo", "method": "dseq-jepa", "architecture": "vit-b", "seed": "0",
    "config_digest": "abc", "code_version": "c0de", "host": "here",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with MLflow's tables, made once: the migrations take seconds."""
    results = tmp_path_factory.mktemp("empty")
    sync(results, "other")
    return results / "mlflow.db"


@pytest.fixture
def results(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "demo").mkdir()
    shutil.copy(empty_store, tmp_path / "demo" / "mlflow.db")
    return tmp_path / "demo"


def pretrain(results: Path, steps: int = 20, model: str = MODEL, finished: bool = True, every: int = 1) -> Path:
    """A journal of a pre-training; times are those of long ago, so that the store's own clock would show."""
    folder = results / "pretrain" / model
    folder.mkdir(parents=True, exist_ok=True)
    method, architecture, seed = model.split("/")
    tags = TAGS | {"method": method, "architecture": architecture, "seed": seed.removeprefix("seed")}
    lines: list[dict[str, Any]] = [
        {"t": 1000.0, "kind": "run", "tags": tags, "steps": steps},
        {"t": 1000.0, "kind": "params", "values": JOB},
    ]
    for step in range(every, steps + 1, every):
        values = {"loss": 1 / step, "regions/mean": float(step)}
        lines.append({"t": 1000.0 + step / 8, "kind": "metrics", "step": step, "values": values})
    if finished:
        lines.append({"t": 1001.0 + steps, "kind": "event", "name": "finished"})
    (folder / "journal.jsonl").write_text("".join(encode(line) + "\n" for line in lines))
    return folder


def evaluated(results: Path) -> None:
    """What scoring, export and a group of evaluations of the same model leave."""
    checkpoints = [{"percent": 50, "knn_top1": 30.5, "file": "a"}, {"percent": 100, "knn_top1": 31.5, "file": "b"}]
    made = {
        "job": JOB | {"data": {"cub": {}, "cars": {}}}, "config_digest": "e7a1", "code_version": "c0de", "host": "here",
        "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:01:00+00:00", "device": "cpu",
    }  # fmt: skip
    found = {"cub": {"value": 71.25, "metric": "top1", "skipped_images": 2}}
    content: dict[str, dict[str, Any]] = {
        "score": {"scores.json": {"checkpoints": checkpoints}, "provenance.json": made},
        "export": {"selection.json": {"chosen": checkpoints[1], "reason": "best"}, "provenance.json": made},
        "evaluate/fine-grained": {"metrics.json": {"evaluations": found}, "provenance.json": made},
    }
    for step, files in content.items():
        folder = results / step / MODEL
        folder.mkdir(parents=True)
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))
    (results / "tables").mkdir()
    (results / "tables" / "table1.csv").write_text("system,top1\n")


def stored(results: Path, experiment: str = "demo", uri: str | None = None) -> dict[str, Any]:
    """Active runs of an experiment by name; two with one name fail."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{results.resolve()}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    for run in runs:
        run.histories = {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
    return dict(zip(names, runs, strict=True))


def journal_points(folder: Path) -> dict[str, list[tuple[int, int, float]]]:
    """Every point of a journal, as the store should hold it; the slow way."""
    points: dict[str, list[tuple[int, int, float]]] = {}
    for line in read(folder / "journal.jsonl"):
        for name, value in line.get("values", {}).items() if line["kind"] == "metrics" else ():
            points.setdefault(name, []).append((line["step"], round(line["t"] * 1000), value))
    return points


def assert_mirrored(results: Path, experiment: str = "demo", uri: str | None = None) -> None:
    """Every journal's points are in the store exactly once, with the journal's times."""
    runs = stored(results, experiment, uri)
    folders = {read_run(source).name: source.folders[0] for source in sources(results) if source.step == "pretrain"}
    assert folders
    for name, folder in folders.items():
        held = {metric: sorted(points) for metric, points in runs[name].histories.items()}
        assert held == journal_points(folder)


NAME = "dseq-jepa / ViT-B/16 / seed 0"


def test_a_model_is_a_tree_of_runs_that_people_can_read(results: Path) -> None:
    pretrain(results)
    evaluated(results)
    summary = sync(results, "demo", out=results / "tracking" / "synced.json")
    runs = stored(results)
    assert set(runs) == {NAME, f"select: {NAME}", f"fine-grained: {NAME}", "tables and figures"}
    root = runs[NAME]
    assert "mlflow.parentRunId" not in root.data.tags
    for child in (f"select: {NAME}", f"fine-grained: {NAME}"):
        assert runs[child].data.tags["mlflow.parentRunId"] == root.info.run_id
    assert TAGS.items() <= root.data.tags.items()
    assert root.data.tags["dataset"] == "imagenet"
    assert (root.info.status, root.info.start_time, root.info.end_time) == ("FINISHED", 1_000_000, 1_021_000)
    tags = runs[f"fine-grained: {NAME}"].data.tags
    assert (tags["step"], tags["dataset"], tags["config_digest"]) == ("evaluate", "cars,cub", "e7a1")
    assert json.loads((results / "tracking" / "synced.json").read_text()) == {"schema": 1} | summary.__dict__
    assert (summary.runs, summary.new_runs, summary.points) == (4, 4, summary.new_points)


def test_parameters_metrics_and_artefacts(results: Path) -> None:
    pretrain(results)
    evaluated(results)
    sync(results, "demo")
    runs = stored(results)
    params = runs[NAME].data.params
    assert params["recipe.learning_rate.peak"] == "0.001"
    assert params["recipe.betas"] == "[0.9, 0.999]"
    assert params["architecture.heads"] == "null"
    assert len(params["recipe.note"]) == 6000
    assert runs[f"fine-grained: {NAME}"].data.metrics == {"cub/top1": 71.25, "cub/skipped_images": 2.0}
    select = runs[f"select: {NAME}"]
    assert [(step, value) for step, _, value in select.histories["knn_top1"]] == [(50, 30.5), (100, 31.5)]
    assert select.data.metrics["selected/percent"] == 100
    artefacts = {path.relative_to(results / "mlartifacts").as_posix().partition("artifacts/")[2]: path
                 for path in (results / "mlartifacts").rglob("*") if path.is_file()}  # fmt: skip
    assert {"config.json", "score/scores.json", "export/selection.json", "metrics.json", "tables/table1.csv"} < set(
        artefacts
    )
    assert json.loads(artefacts["metrics.json"].read_text())["evaluations"]["cub"]["value"] == 71.25


def test_a_result_that_the_journal_holds_too_is_one_point(results: Path) -> None:
    evaluated(results)
    folder = results / "evaluate" / "fine-grained" / MODEL
    with Journal(folder / "journal.jsonl") as journal:
        journal.start(TAGS | {"step": "evaluate", "group": "fine-grained"})
        journal.metrics(28, {"cub/top1": 71.25})
    os.utime(folder / "metrics.json")
    run = next(read_run(source) for source in sources(results) if source.step == "evaluate")
    assert [(point.name, point.step) for point in run.points] == [("cub/top1", 28), ("cub/skipped_images", 0)]
    assert (run.status, run.place) == ("FINISHED", f"evaluate/fine-grained/{MODEL}")


def test_points_are_mirrored_once_however_often(results: Path) -> None:
    folder = pretrain(results)
    assert sync(results, "demo").new_points == 40
    assert_mirrored(results)
    assert sync(results, "demo").new_points == 0
    os.utime(folder / "journal.jsonl")  # looks changed: compared, and nothing found missing
    again = sync(results, "demo")
    assert (again.points, again.new_points, again.new_runs) == (40, 0, 0)
    assert_mirrored(results)


def test_a_run_that_went_on_gets_its_new_points_only(results: Path) -> None:
    pretrain(results, steps=20, finished=False)
    sync(results, "demo")
    assert stored(results)[NAME].info.status == "RUNNING"
    first = stored(results)[NAME].info.run_id
    pretrain(results, steps=25)
    assert sync(results, "demo").new_points == 10
    run = stored(results)[NAME]
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert_mirrored(results)


def test_steps_computed_again_after_a_kill_are_there_once(results: Path) -> None:
    """The mirror saw steps that the resumed process computed again at other times."""
    folder = results / "pretrain" / MODEL
    with Journal(folder / "journal.jsonl") as journal:
        journal.start(TAGS, steps=20)
        journal.params(JOB)
        journal.metrics(1, {"loss": 1.0})
        position = journal.sync()
        journal.metrics(2, {"loss": 0.5})
        journal.metrics(3, {"loss": 0.4})
    sync(results, "demo")
    time.sleep(0.01)
    with Journal.resume(folder / "journal.jsonl", position) as journal:
        journal.start(TAGS | {"host": "there"}, steps=20)
        for step in range(2, 6):
            journal.metrics(step, {"loss": 1 / step})
    evaluated(results)
    sync(results, "demo")
    assert_mirrored(results)
    runs = stored(results)
    assert runs[NAME].data.tags["host"] == "there"
    assert runs[f"select: {NAME}"].data.tags["mlflow.parentRunId"] == runs[NAME].info.run_id


def test_children_follow_a_parent_that_was_mirrored_anew(results: Path) -> None:
    pretrain(results)
    evaluated(results)
    sync(results, "demo")
    before = stored(results)[NAME].info.run_id
    folder = pretrain(results, steps=10)
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"t":1000.', '"t":2000.'))
    sync(results, "demo")
    runs = stored(results)
    assert runs[NAME].info.run_id != before
    assert runs[f"select: {NAME}"].data.tags["mlflow.parentRunId"] == runs[NAME].info.run_id
    assert_mirrored(results)


def test_another_configuration_is_another_run(results: Path) -> None:
    folder = pretrain(results)
    sync(results, "demo")
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"abc"', '"xyz"').replace("ViT-B/16", "ViT-B/8"))
    sync(results, "demo")
    assert set(stored(results)) == {NAME, "dseq-jepa / ViT-B/8 / seed 0"}


def test_a_deleted_store_is_filled_again(results: Path, empty_store: Path) -> None:
    pretrain(results)
    sync(results, "demo")
    shutil.copy(empty_store, results / "mlflow.db")
    assert sync(results, "demo").new_points == 40
    assert_mirrored(results)


def test_runs_that_others_logged_are_left_alone(results: Path) -> None:
    from mlflow import MlflowClient

    pretrain(results)
    sync(results, "demo")
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    client.create_run(client.get_experiment_by_name("demo").experiment_id, run_name="mine")
    os.utime(results / "pretrain" / MODEL / "journal.jsonl")
    sync(results, "demo")
    assert set(stored(results)) == {NAME, "mine"}


def test_a_run_that_was_made_twice_is_kept_once(results: Path) -> None:
    """A server may carry out a request whose answer never came."""
    from mlflow import MlflowClient

    folder = pretrain(results)
    sync(results, "demo")
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    run = stored(results)[NAME]
    tags = {key: value for key, value in run.data.tags.items() if key != "dseq_jepa.mark"}
    client.create_run(run.info.experiment_id, tags=tags, run_name=NAME)
    os.utime(folder / "journal.jsonl")
    sync(results, "demo")
    assert_mirrored(results)


def test_not_finite_values_are_mirrored(results: Path) -> None:
    folder = results / "pretrain" / MODEL
    with Journal(folder / "journal.jsonl") as journal:
        journal.start(TAGS)
        journal.metrics(1, {"loss": math.nan, "rank": math.inf})
    sync(results, "demo")
    assert sync(results, "demo").new_points == 0
    run = stored(results)[NAME.replace("ViT-B/16", "vit-b")]
    assert math.isnan(run.histories["loss"][0][2])
    assert run.histories["rank"][0][2] > 1e300


@pytest.mark.parametrize(
    ("interval", "last"), [(1, 0), (1, 9_998), (1, 9_999), (10, 375_000), (625, 375_000), (7, 10**6)]
)
def test_the_stride_leaves_at_most_10000_points(interval: int, last: int) -> None:
    stride = stride_of(interval, last)
    assert stride % interval == 0
    assert last // stride + 2 <= MAX_POINTS
    assert stride == interval or last // (stride // 2) + 2 > MAX_POINTS


def test_long_curves_are_thinned_at_a_fixed_stride_with_the_last_point(results: Path) -> None:
    folder = pretrain(results, steps=25_007, every=1)
    (source,) = sources(results)
    steps = [point.step for point in read_run(source).points if point.name == "loss"]
    assert steps[-1] == 25_007
    assert {after - before for before, after in itertools.pairwise(steps[:-1])} == {4}
    assert len(steps) == 25_007 // 4 + 2
    half = (folder / "journal.jsonl").read_text().splitlines(keepends=True)[:9_000]
    (folder / "journal.jsonl").write_text("".join(half))
    early = [point.step for point in read_run(source).points if point.name == "loss"]
    assert early == steps[: len(early)]


def test_a_rare_metric_keeps_all_its_points(results: Path) -> None:
    folder = pretrain(results, steps=40_000, every=10_000, finished=False)
    with (folder / "journal.jsonl").open("a") as file:
        file.write(encode({"t": 9.0, "kind": "metrics", "step": 40_000, "values": {"often": 1.0}}) + "\n")
    (source,) = sources(results)
    assert [p.step for p in read_run(source).points if p.name == "loss"] == [10_000, 20_000, 30_000, 40_000]


def test_nothing_to_mirror_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to mirror before the workflow has run"):
        sync(tmp_path / "none", "demo")


def test_a_corrupt_result_is_named(results: Path) -> None:
    evaluated(results)
    (results / "score" / MODEL / "scores.json").write_text("{")
    with pytest.raises(UserError, match=r"scores\.json: cannot be read as JSON"):
        sync(results, "demo")


@pytest.mark.parametrize("uri", ["htp://me:secret@host", "sqlite:////no/such/folder/x.db", "file:///tmp/x"])
def test_an_impossible_store_is_one_sentence_without_secrets(results: Path, uri: str) -> None:
    with pytest.raises(UserError) as caught:
        sync(results, "demo", uri=uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deleted_experiment_says_how_to_bring_it_back(results: Path) -> None:
    from mlflow import MlflowClient

    sync(results, "demo")
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    with pytest.raises(UserError, match="mlflow experiments restore --experiment-id"):
        sync(results, "demo")


def test_an_older_store_says_how_to_upgrade_it(results: Path) -> None:
    with sqlite3.connect(results / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '0a8213491aaa'")
    database.close()
    with pytest.raises(UserError, match="older MLflow; copy it, then run `mlflow db upgrade"):
        sync(results, "demo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_not_there_is_one_quick_sentence(results: Path) -> None:
    pretrain(results)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=r"does not answer.*journals hold everything; run `dseq-jepa sync` again"
    ) as caught:
        sync(results, "demo", uri=f"http://me:secret@127.0.0.1:{free_port()}")
    assert time.monotonic() - start < 20
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_full_disk_leaves_a_store_that_the_next_sync_completes(results: Path) -> None:
    """The store may not grow by more than 100 kB: the kernel then refuses as on a full disk."""
    pretrain(results, steps=3000)
    size = (results / "mlflow.db").stat().st_size
    code = (
        "import resource, sys; from pathlib import Path; from dseq_jepa.tracking import sync\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size} + 100_000,) * 2)\n"
        "sync(Path(sys.argv[1]), 'demo')"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(results)], capture_output=True, text=True)
    assert "UserError: MLflow store" in answer.stderr.splitlines()[-1]
    assert "Nothing is lost" in answer.stderr
    sync(results, "demo")
    assert_mirrored(results)


def spawn_sync(results: Path, experiment: str = "demo", uri: str = "") -> "subprocess.Popen[bytes]":
    code = "import sys; from pathlib import Path; from dseq_jepa.tracking import sync\n"
    code += "sync(Path(sys.argv[1]), sys.argv[2])"
    environment = os.environ | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    return subprocess.Popen(
        [sys.executable, "-c", code, str(results), experiment], env=environment, stderr=subprocess.PIPE
    )


def points_in(database: Path) -> int:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return int(connection.execute("select count(*) from metrics").fetchone()[0])
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_store_whose_making_was_killed_is_made_anew(tmp_path: Path) -> None:
    results = tmp_path / "demo"
    pretrain(results, steps=5)
    code = "import sys; from pathlib import Path; from dseq_jepa.tracking import sync; sync(Path(sys.argv[1]), 'demo')"
    partial = results / ".mlflow.db.partial"
    process = subprocess.Popen([sys.executable, "-c", code, str(results)])
    while not (partial.exists() and partial.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (results / "mlflow.db").exists()
    assert sync(results, "demo").new_runs == 1
    assert not partial.exists()


@pytest.mark.slow
def test_a_sync_that_was_killed_is_completed_by_the_next(results: Path) -> None:
    for seed in range(3):
        pretrain(results, steps=3000, model=f"dseq-jepa/vit-b/seed{seed}")
    for enough in (1, 5000):
        process = spawn_sync(results)
        wait_for(lambda enough=enough: points_in(results / "mlflow.db") >= enough)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert enough <= points_in(results / "mlflow.db") < 18_000
    sync(results, "demo")
    assert_mirrored(results)
    assert points_in(results / "mlflow.db") == 18_000


@pytest.mark.slow
def test_two_syncs_at_once_log_nothing_twice(results: Path) -> None:
    pretrain(results, steps=2000)
    processes = [spawn_sync(results), spawn_sync(results)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert_mirrored(results)
    assert points_in(results / "mlflow.db") == 4000


class Server:
    """A real MLflow server on a sqlite store."""

    def __init__(self, folder: Path, empty_store: Path) -> None:
        self.database, self.port = folder / "server.db", free_port()
        shutil.copy(empty_store, self.database)
        self.uri = f"http://127.0.0.1:{self.port}"
        self.before = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", str(self.database.parent / "artefacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def new_points(self) -> int:
        return points_in(self.database) - self.before

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), empty_store)
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, up; starting one for every test would take most of the time."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one_server.before = points_in(one_server.database)
    return one_server


@pytest.mark.slow
def test_a_server_killed_during_a_sync_gets_the_rest_from_the_next(results: Path, server: Server) -> None:
    for seed in range(3):
        pretrain(results, steps=3000, model=f"dseq-jepa/vit-b/seed{seed}")
    evaluated(results)
    process = spawn_sync(results, "killed", server.uri)
    wait_for(lambda: server.new_points() >= 4000)
    server.kill()
    _, said = process.communicate(timeout=60)
    assert b"does not answer" in said
    server.start()
    sync(results, "killed", uri=server.uri)
    assert_mirrored(results, "killed", uri=server.uri)
    assert sync(results, "killed", uri=server.uri).new_points == 0


@pytest.mark.slow
def test_a_running_job_is_mirrored_and_never_waits_for_the_server(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server works, freezes, dies and comes back while the job goes on; then everything is there once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = results / "pretrain" / MODEL
    step = 0
    with Journal(folder / "journal.jsonl") as journal, LiveMirror(folder, "running"):
        journal.start(TAGS, steps=300)
        journal.params(JOB)
        journal.metrics(step, {"loss": 1.0})
        wait_for(lambda: server.new_points() > 0)
        longest = 0.0
        for trouble in (signal.SIGSTOP, signal.SIGCONT):
            server.send(trouble)
            for _ in range(100):
                began = time.monotonic()
                step += 1
                journal.metrics(step, {"loss": 1 / (1 + step)})
                longest = max(longest, time.monotonic() - began)
        server.kill()
        journal.event("finished")
        leaving = time.monotonic()
    assert longest < 0.5
    assert time.monotonic() - leaving < 10
    server.start()
    sync(results, "running")
    assert_mirrored(results, "running", uri=server.uri)


class SlowRoad:
    """A port whose every request reaches the server 5 s late."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port, self.uri = port, f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            threading.Thread(target=self._carry, args=(client, server, 5.0), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, 0.0), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, seconds: float) -> None:
        try:
            while data := source.recv(1 << 16):
                self.calls += bool(seconds)
                time.sleep(seconds)
                target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_a_server_that_needs_5_s_a_call_costs_the_job_nothing(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    road = SlowRoad(server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", road.uri)
    folder = results / "pretrain" / MODEL
    waits = []
    began = time.process_time()
    with Journal(folder / "journal.jsonl") as journal, LiveMirror(folder, "slow"):
        journal.start(TAGS, steps=400)
        journal.params(JOB)
        until, step = time.monotonic() + 60, 0
        while road.calls < 2 and time.monotonic() < until:  # MLflow's import takes a while
            step += 1
            before = time.monotonic()
            journal.metrics(step, {"loss": 1 / step})
            waits.append(time.monotonic() - before)
            time.sleep(0.05)
        journal.event("finished")
        leaving = time.monotonic()
    assert road.calls >= 2
    assert time.monotonic() - leaving < 10
    assert max(waits) < 0.5
    assert time.process_time() - began < 2  # of this process: the journal's own lines, and one process that was started
    road.close()
    sync(results, "slow", uri=server.uri)
    assert_mirrored(results, "slow", uri=server.uri)


@pytest.mark.slow
def test_the_live_mirror_ends_with_a_job_that_was_killed(results: Path, server: Server) -> None:
    folder = results / "pretrain" / MODEL
    code = (
        "import sys, time; from pathlib import Path; from dseq_jepa.journal import Journal\n"
        "from dseq_jepa.live import LiveMirror\n"
        "folder = Path(sys.argv[1]); journal = Journal(folder / 'journal.jsonl')\n"
        f"journal.start({TAGS!r}, steps=10)\n"
        "mirror = LiveMirror(folder, 'orphan'); print(mirror._process.pid, flush=True)\n"
        "journal.metrics(1, {'loss': 1}); time.sleep(600)"
    )
    environment = os.environ | {"MLFLOW_TRACKING_URI": server.uri}
    job = subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE)
    assert job.stdout is not None
    mirror = int(job.stdout.readline())
    wait_for(lambda: server.new_points() > 0)
    job.kill()
    job.communicate()
    wait_for(lambda: not alive(mirror))
    sync(results, "orphan", uri=server.uri)
    assert_mirrored(results, "orphan", uri=server.uri)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_without_a_server_there_is_no_live_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/x.db")
    with LiveMirror(tmp_path, "demo") as mirror:
        assert mirror._process is None


def test_importing_it_is_light() -> None:
    code = (
        "import sys, dseq_jepa.tracking, dseq_jepa.live, dseq_jepa.dashboard\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'pandas', 'requests')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

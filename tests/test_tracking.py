"""The MLflow store agrees with the journals: every mirrored point once, whatever was killed on the way."""

import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal, encode
from dseq_jepa.sources import sources
from dseq_jepa.stores import answering
from dseq_jepa.thinning import MAX_POINTS, stride_of
from dseq_jepa.tracked import read_run
from dseq_jepa.tracking import sync
from tests.mirrored import JOB, MODEL, NAME, TAGS, assert_mirrored, evaluated, pretrain, stored
from tests.servers import free_port, points_in, spawn_sync, wait_for


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def results(tmp_path: Path, empty_store: Path) -> Path:
    (tmp_path / "demo").mkdir()
    shutil.copy(empty_store, tmp_path / "demo" / "mlflow.db")
    return tmp_path / "demo"


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
    assert {
        "slurm_job": "4711",
        "workflow": "20260101T100000-7",
        "device": "cpu",
        "state": "finished",
    }.items() <= tags.items()
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


def test_no_credentials_reach_the_store(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even those of a log, which other programs write to, or of a journal that was edited."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    address = "https://me:hunter2@host"
    folder = pretrain(results)
    lines = [
        {"t": 1.0, "kind": "run", "tags": TAGS | {"uri": address}, "steps": 1},
        {"t": 1.0, "kind": "params", "values": JOB | {"uri": address, "said": "correct horse"}},
        {"t": 2.0, "kind": "event", "name": "failed", "text": f"{address} refuses correct horse"},
    ]
    (folder / "journal.jsonl").write_text("".join(encode(line) + "\n" for line in lines))
    log = results / "logs" / "pretrain" / f"{MODEL}.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"Traceback: {address} refuses correct horse\n")
    failed = {"t": 2.0, "kind": "event", "name": "job_failed", "rule": "x", "logs": {"log": f"at {address}"}}
    invocation = results / "workflow" / "20260101T100000-7" / "journal.jsonl"
    invocation.parent.mkdir(parents=True)
    begun = {"t": 1.0, "kind": "run", "tags": {"step": "workflow", "command": f"snakemake {address}"}}
    invocation.write_text("".join(encode(line) + "\n" for line in (begun, failed)))
    sync(results, "demo")
    assert stored(results)[NAME].data.params["uri"] == "https://***@host"
    written = [path for path in [results / "mlflow.db", *results.glob("mlartifacts/**/*")] if path.is_file()]
    assert {path.name for path in written} == {"mlflow.db", "config.json", log.name, "journal.jsonl"}
    held = [path for path in written if b"hunter2" in path.read_bytes() or b"correct horse" in path.read_bytes()]
    assert [path.name for path in held] == []


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


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        (
            "htp://me:secret@host",
            r"URI 'htp://\*\*\*@host' is neither a server nor a database; expected something like",
        ),
        (
            "sqlite:////no/such/folder/x.db",
            r"/no/such/folder/x\.db: the folder of this database does not exist; make it",
        ),
        ("file:///tmp/x", "is neither a server nor a database"),
    ],
)
def test_an_impossible_store_is_one_sentence_without_secrets(results: Path, uri: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        sync(results, "demo", uri=uri)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refusal_is_told_from_a_number_in_an_answer() -> None:
    from mlflow.exceptions import MlflowException

    for message, said in (
        ("failed with exception: port=54014, run_uuid=1401f403 (refused)", "does not answer"),
        ("API request to endpoint /x failed with error code 401 != 200.", "refuses"),
        ("API request to endpoint /x failed with error code 403 != 200.", "refuses"),
        ("PERMISSION_DENIED: no", "refuses"),
    ):
        with pytest.raises(UserError, match=said), answering("http://host"):
            raise MlflowException(message)


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


@pytest.mark.slow
@pytest.mark.parametrize("experiments", [("one", "two"), ("same", "same")])
def test_two_workflows_on_one_new_sqlite_file_both_get_through(tmp_path: Path, experiments: tuple[str, str]) -> None:
    """Neither knows the other's folder; the file that both make is one."""
    uri = f"sqlite:///{tmp_path}/shared.db"
    folders = [tmp_path / name for name in ("a", "b")]
    for seed, folder in enumerate(folders):
        pretrain(folder, steps=3000, model=f"dseq-jepa/vit-b/seed{seed}")
    processes = [spawn_sync(folder, name, uri) for folder, name in zip(folders, experiments, strict=True)]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    for folder, name in zip(folders, experiments, strict=True):
        assert_mirrored(folder, name, uri=uri)
    assert points_in(tmp_path / "shared.db") == 12_000


def test_importing_it_is_light() -> None:
    code = (
        "import sys, dseq_jepa.tracking, dseq_jepa.live, dseq_jepa.dashboard\n"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'pandas', 'requests')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

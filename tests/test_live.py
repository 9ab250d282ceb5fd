"""A running job shows itself on a real server and never waits for it, whatever the server does.

pytest tests/test_live.py
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal
from dseq_jepa.live import PAUSE_SECONDS, PERIOD_SECONDS, LiveMirror, Mirror
from dseq_jepa.tracking import sync
from tests.mirrored import JOB, MODEL, TAGS, assert_mirrored, evaluated, pretrain
from tests.servers import Server, SlowRoad, free_port, points_in, spawn_sync, wait_for


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "demo").mkdir()
    return tmp_path / "demo"


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


def journal_of(folder: Path, steps: int = 3) -> Journal:
    """A job that has begun and goes on."""
    journal = Journal(folder / "journal.jsonl")
    journal.start(TAGS, steps=steps)
    journal.params(JOB)
    journal.metrics(1, {"loss": 1.0})
    return journal


@pytest.mark.slow
def test_the_mirror_goes_on_when_its_server_was_started_again(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a run, and twice without an answer: that is said once."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = results / "pretrain" / MODEL
    mirror = Mirror(folder, "restarted")
    with journal_of(folder) as journal:
        assert mirror.once() < PAUSE_SECONDS
        journal.metrics(2, {"loss": 0.5})
        server.kill()
        assert [mirror.once(), mirror.once()] == [PAUSE_SECONDS, PAUSE_SECONDS]
        assert capsys.readouterr().err.count("does not answer") == 1
        server.start()
        journal.metrics(3, {"loss": 0.25})
        assert mirror.once() < PAUSE_SECONDS
        assert capsys.readouterr().err == "tracking: the live mirror works again.\n"
        assert_mirrored(results, "restarted", uri=server.uri)
        journal.event("finished")
    mirror.once()
    assert sync(results, "restarted").new_points == 0


@pytest.mark.slow
def test_a_frozen_server_gets_what_it_missed_when_it_wakes_up(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is frozen before it knows the run, and again in the middle."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    folder = results / "pretrain" / MODEL
    mirror = Mirror(folder, "frozen")
    with journal_of(folder) as journal:
        for step in (2, 3):
            server.send(signal.SIGSTOP)
            journal.metrics(step, {"loss": 1 / step})
            assert mirror.once() == PAUSE_SECONDS
            assert "does not answer" in capsys.readouterr().err
            server.send(signal.SIGCONT)
            wait_for(server.answers)
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
            assert mirror.once() < PAUSE_SECONDS
            monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
            assert_mirrored(results, "frozen", uri=server.uri)


@pytest.mark.slow
def test_a_server_whose_disk_is_full_gets_the_rest_later(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    folder = pretrain(results, steps=3000)
    server.kill()
    server.start(room=100_000)
    mirror = Mirror(folder, "full")
    assert mirror.once() == PAUSE_SECONDS
    assert "Nothing is lost" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"Nothing is lost: the journals hold everything; run `dseq-jepa sync` again"):
        sync(results, "full")
    assert server.new_points() < 6000
    server.kill()
    server.start()
    sync(results, "full")
    assert_mirrored(results, "full", uri=server.uri)


@pytest.mark.slow
def test_wrong_credentials_are_one_sentence_without_them(
    results: Path, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The server is the dashboard, which asks for a password."""
    (tmp_path / "served").mkdir()
    shutil.copy(empty_store, tmp_path / "served" / "mlflow.db")
    secret, port = tmp_path / "secret", free_port()
    secret.write_text("correct horse battery")
    secret.chmod(0o600)
    command = [sys.executable, "-m", "dseq_jepa", "dashboard", "--results", str(tmp_path / "served")]
    process = subprocess.Popen([*command, "--port", str(port), "--password-file", str(secret)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"until Ctrl-C" in process.stdout.readline()
        folder = results / "pretrain" / MODEL
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://dseq:wrong-horse@127.0.0.1:{port}")
        mirror = Mirror(folder, "private")
        with journal_of(folder) as journal:
            assert mirror.once() == PAUSE_SECONDS
            journal.event("finished")
        said = capsys.readouterr().err
        assert "refuses" in said
        assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
        assert "horse" not in said
        right = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "dseq")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret.read_text())
        sync(results, "private", uri=right)
        assert_mirrored(results, "private", uri=right)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@pytest.mark.slow
def test_a_deleted_experiment_is_said_and_the_job_goes_on(
    results: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    client = MlflowClient(server.uri)
    number = client.create_experiment("gone")
    client.delete_experiment(number)
    folder = results / "pretrain" / MODEL
    mirror = Mirror(folder, "gone")
    with journal_of(folder):
        assert mirror.once() == PAUSE_SECONDS
        assert f"mlflow experiments restore --experiment-id {number}" in capsys.readouterr().err
        client.restore_experiment(number)
        assert mirror.once() < PAUSE_SECONDS
    assert_mirrored(results, "gone", uri=server.uri)


@pytest.mark.parametrize("host", ["no-such-host.invalid:5000", "127.0.0.1:{port}"])
def test_a_server_that_does_not_exist_is_said_and_the_job_goes_on(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{host.format(port=free_port())}")
    folder = results / "pretrain" / MODEL
    mirror = Mirror(folder, "nowhere")
    with journal_of(folder) as journal:
        assert mirror.once() == PAUSE_SECONDS
        journal.event("finished")
    said = capsys.readouterr().err
    assert said.startswith("tracking: MLflow store http://***@")
    assert "does not answer" in said
    assert "secret" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("call", ["create_experiment", "create_run", "log_batch"])
def test_a_request_that_was_carried_out_without_an_answer_is_not_made_twice(
    results: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    shutil.copy(empty_store, results / "mlflow.db")
    uri = f"sqlite:///{results}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    real, unanswered = getattr(MlflowClient, call), [True]

    def late(*arguments: object, **named: object) -> object:
        answer = real(*arguments, **named)
        if unanswered:
            unanswered.pop()
            raise MlflowException("timed out")
        return answer

    monkeypatch.setattr(MlflowClient, call, late)
    folder = results / "pretrain" / MODEL
    mirror = Mirror(folder, "late")
    with journal_of(folder) as journal:
        assert mirror.once() == PAUSE_SECONDS
        journal.metrics(2, {"loss": 0.5})
        assert mirror.once() < PAUSE_SECONDS
    assert_mirrored(results, "late", uri=uri)


def test_a_slow_server_is_not_asked_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only what costs a core lengthens the pause; waiting does not."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    mirror = Mirror(tmp_path, "slow")
    with journal_of(tmp_path):
        monkeypatch.setattr(mirror, "_mirror", lambda source: time.sleep(0.8))
        assert mirror.once() == PERIOD_SECONDS
        monkeypatch.setattr(mirror, "_mirror", lambda source: busy(0.8))
        assert mirror.once() > PERIOD_SECONDS


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.slow
def test_a_sync_that_was_killed_leaves_every_point_once_on_a_server(results: Path, server: Server) -> None:
    for seed in range(3):
        pretrain(results, steps=3000, model=f"dseq-jepa/vit-b/seed{seed}")
    process = spawn_sync(results, "halfway", server.uri)
    wait_for(lambda: server.new_points() >= 4000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 4000 <= server.new_points() < 18_000
    sync(results, "halfway", uri=server.uri)
    assert_mirrored(results, "halfway", uri=server.uri)
    assert server.new_points() == 18_000


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

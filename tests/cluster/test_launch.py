"""What the launcher makes of whatever a scheduler says; the scheduler is scripted, the rest is real.

pytest tests/cluster/test_launch.py
"""

import dataclasses
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import submitit

from dseq_jepa.cluster import launch as module
from dseq_jepa.cluster.launch import launch
from dseq_jepa.cluster.order import Order, Resources
from dseq_jepa.cluster.records import Attempt, End
from dseq_jepa.cluster.scheduler import Life, Machine, NoAnswerError, State, started
from dseq_jepa.cluster.task import Task
from dseq_jepa.errors import UserError
from dseq_jepa.files import write_atomically

RUNNING = State("RUNNING", "", Life.ALIVE)


def over(name: str) -> State:
    """The end of a job."""
    return State(name, "", Life.OVER)


class Script:
    """A cluster on which the n-th job that is submitted has the n-th end, and leaves the n-th record."""

    name = "slurm"
    elsewhere = False

    def __init__(self, *ends: tuple[State, End | None], starts: list[int] | None = None) -> None:
        self.ends, self.tasks, self.cancelled = ends, [], []
        self.starts = starts or [1] * len(ends)

    def describe(self) -> str:
        return "a script"

    def submit(self, order: Order, task: Task, folder: Path, name: str, noted: Path) -> str:
        """In place of sbatch."""
        del order, name
        self.tasks.append(task)
        _, record = self.ends[len(self.tasks) - 1]
        if record is not None:
            Attempt(folder, self.starts[len(self.tasks) - 1] - 1).write(record)
        write_atomically(noted, str(len(self.tasks)))
        return str(len(self.tasks))

    def state(self, job: str) -> State:
        return over("CANCELLED") if job in self.cancelled else self.ends[int(job) - 1][0]

    def find(self, name: str) -> str | None:
        del name
        return None

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(("select",), tmp_path / "out", Resources(max_requeues=2))


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.01)
    monkeypatch.setattr(module, "_ASK_LEAST", 0.01)
    monkeypatch.setattr(module, "_ASK_MOST", 0.01)


@pytest.fixture
def play(order: Order, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Launch the order on a scripted cluster; its status and what was said."""

    def played(script: Script) -> tuple[int, str]:
        monkeypatch.setattr(module, "scheduler", lambda cluster: script)
        monkeypatch.setattr(module, "submit", script.submit)
        return launch(order), capsys.readouterr().err

    return played


def ended(code: int, note: str = "") -> End:
    """How the only rank ended."""
    return End(0, code, time.time(), "n1", note)


def test_all_starts_of_all_jobs_count(play) -> None:
    """Two requeues allow three starts: one that left nothing, and two of a second job."""
    lost = over("NODE_FAIL")
    script = Script((lost, None), (lost, ended(75, "interrupted")), starts=[0, 2])
    status, said = play(script)
    assert status == 1
    assert [task.before for task in script.tasks] == [0, 1]
    assert "3 starts are all that --max-requeues allows" in said


@pytest.mark.parametrize("name", ["NODE_FAIL", "BOOT_FAIL", "PREEMPTED"])
def test_a_job_that_the_cluster_lost_before_its_start_is_submitted_again(name: str, play) -> None:
    script = Script((over(name), None), (over("COMPLETED"), ended(0)))
    status, said = play(script)
    assert status == 0, said
    assert len(script.tasks) == 2
    assert "file system" not in said


def test_a_pending_job_that_is_cancelled_was_cancelled_and_no_more(play) -> None:
    script = Script((over("CANCELLED"), None))
    status, said = play(script)
    assert (status, len(script.tasks)) == (1, 1)
    assert "it was cancelled; its log: none was written" in said
    assert "file system" not in said


def test_a_job_that_saved_its_state_and_was_not_put_back_is_submitted_again(play) -> None:
    """A controller that was away for minutes, or submitit's local one, which stops after some starts."""
    saved = ended(75, "interrupted")
    for end in (over("FAILED"), over("GONE")):
        script = Script((end, saved), (over("COMPLETED"), ended(0)))
        status, said = play(script)
        assert (status, len(script.tasks)) == (0, 2), said


@pytest.mark.parametrize("record", [None, ended(75, "interrupted")], ids=["before its start", "later"])
def test_memory_that_ran_out_without_a_failed_rank_has_its_advice(record: End | None, play) -> None:
    status, said = play(Script((over("OUT_OF_MEMORY"), record)))
    assert status == 1
    assert "ask for more with --mem-mb" in said


def test_a_job_that_failed_and_left_nothing_may_not_see_its_folder(play) -> None:
    status, said = play(Script((over("FAILED"), None)))
    assert status == 1
    assert "file system that the compute nodes share" in said


@pytest.mark.parametrize(
    ("code", "expected"), [(255, "exit status 255"), (163, "exit status 163"), (139, "killed by SIGSEGV")]
)
def test_every_exit_status_can_be_said(code: int, expected: str, play) -> None:
    status, said = play(Script((over("FAILED"), ended(code))))
    assert status == code
    assert f"failed: rank 0 on n1: {expected}." in said


def test_ctrl_c_right_after_the_submission_cancels_its_job(play, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "Submission", interrupted)
    script = Script((RUNNING, None))
    status, said = play(script)
    assert status == 130
    assert script.cancelled == ["1"], said


def test_a_cancellation_that_nobody_confirms_is_not_called_one(play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CANCELLING_SECONDS", 0.1)
    script = Script((State("UNREACHABLE", "no answer", Life.UNKNOWN), None))

    def interrupted(self: module.Waiter, submission: module.Submission) -> int:
        script.cancel = lambda job: asked.append(job)
        raise KeyboardInterrupt

    asked: list[str] = []
    monkeypatch.setattr(module.Waiter, "_follow", interrupted)
    status, said = play(script)
    assert status == 130
    assert len(asked) > 1, "asked again"
    assert "not over yet; UNREACHABLE (no answer). Cancel job 1 yourself" in said


def test_ctrl_c_within_the_submission_ends_a_process_of_this_machine_too(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread does not block the signal, so it is the one that gets it."""
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    submit = submitit.AutoExecutor.submit

    def submitted(self: submitit.AutoExecutor, task: Task) -> object:
        job = submit(self, task)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # until that thread has run
        return job

    monkeypatch.setattr(submitit.AutoExecutor, "submit", submitted)
    assert launch(dataclasses.replace(order, cluster="local")) == 130
    job = (order.claims.folder / "job-000001").read_text()
    assert Machine().state(job).life is Life.OVER
    over.set()
    other.join()


class Queue(Script):
    """A cluster where a job of a name runs already, though its id is written down nowhere, and then ends well."""

    def __init__(self, folder: Path, wanted: str, job: str, answers: int = 1) -> None:
        super().__init__()
        self.folder, self.wanted, self.job, self.answers, self.asked = folder, wanted, job, answers, 0

    def find(self, name: str) -> str | None:
        self.answers -= 1
        if self.answers > 0:
            raise NoAnswerError("squeue does not answer")
        return self.job if name == self.wanted else None

    def state(self, job: str) -> State:
        assert job == self.job
        self.asked += 1
        if self.asked == 2:
            Attempt(self.folder, 0).write(ended(0))
        return RUNNING


@pytest.mark.parametrize("answers", [1, 3], ids=["at once", "when squeue answers"])
def test_a_job_that_another_login_node_submitted_is_found_by_its_name(answers: int, order: Order, play) -> None:
    """That node's launcher died before it wrote the id down and gave the job its task."""
    about = {"kind": "submission", "cluster": "slurm", "command": order.command, "host": "login2"}
    token = order.claims.take({**about, "pid": 1, "started": "1", "before": 0}, after=0)
    folder = order.claims.folder / "jobs" / "000001"
    write_atomically(folder / "0a1b.pkl", "task")
    began = time.monotonic()
    script = Queue(folder, f"{order.name}-{token}", "77", answers)
    status, said = play(script)
    assert status == 0, said
    assert time.monotonic() - began < 60
    assert script.tasks == []
    assert "runs or waits already" in said
    assert (folder / "77_submitted.pkl").read_text() == "task"
    assert (order.claims.folder / "job-000001").read_text() == "77"


@pytest.mark.parametrize("over", [True, False])
def test_a_folder_where_another_scheduler_had_a_job_is_taken_once_that_is_over(
    over: bool, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"kind": "submission", "cluster": "local", "command": order.command, "host": socket.gethostname()}
    token = order.claims.take({**about, "pid": 1, "started": "1", "before": 0}, after=0)
    start = "1" if over else started(os.getpid())
    write_atomically(order.claims.folder / f"job-{token:06d}", f"{socket.gethostname()}:{os.getpid()}:{start}")
    script = Script((State("COMPLETED", "", Life.OVER), ended(0)))
    monkeypatch.setattr(module, "scheduler", lambda cluster: script if cluster == "slurm" else Machine())
    monkeypatch.setattr(module, "submit", script.submit)
    if over:
        assert launch(order) == 0
    else:
        with pytest.raises(UserError, match="a job that --cluster local started may work here"):
            launch(order)
    assert len(script.tasks) == int(over)

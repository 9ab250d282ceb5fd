"""Run one command through a scheduler, once, and stay with it to its end.

    dseq-jepa launch --cluster slurm --minutes 1440 --partition gpu -- pretrain --config configs/paper.yaml --out out/
    dseq-jepa launch --cluster local -- pretrain --config configs/demo.yaml --out out/      # the same, on this machine

Whoever comes second for the same folder waits for the job of the first. Killing this process leaves the job alone; the
same command finds it again. Ctrl-C ends the job.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dseq_jepa.cluster.gpus import visible_gpus
from dseq_jepa.cluster.order import Order, described, sbatch_parameters
from dseq_jepa.cluster.records import SUPERSEDED, Attempt, End
from dseq_jepa.cluster.scheduler import Life, Scheduler, Slurm, State, scheduler, started
from dseq_jepa.cluster.task import Task, cancelled
from dseq_jepa.errors import UserError
from dseq_jepa.fence import Claim
from dseq_jepa.files import write_atomically

_LOST = {"TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"}
"""Ends that are nobody's fault: the command is submitted again and goes on from its state."""
_LOOK = 0.5
_ASK_LEAST, _ASK_MOST = 2.0, 20.0
_TAIL_LINES = 30
_SUBMITTING_SECONDS = 300.0


class DetachedError(Exception):
    """This process was told to go; the job stays."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


@dataclass(frozen=True)
class Submission:
    """A job under the claim that it was submitted with."""

    token: int
    job: str
    own: bool
    """Whether this process submitted it."""


def launch(order: Order) -> int:
    """Run an order to its end and return its exit status.

    What happens is told on stderr; the log of rank 0 goes to stdout as it grows.

    Raises:
        UserError: before anything is submitted, when the order cannot work or somebody else works in its folder.

    """
    order.check()
    waiter = Waiter(order, _scheduler(order))
    with _hang_up_detaches():
        try:
            return waiter.run()
        except KeyboardInterrupt:
            waiter.cancel()
            return 128 + signal.SIGINT
        except DetachedError as reason:
            with suppress(OSError):  # the terminal may be gone
                waiter.say(f"{reason}: left alone; the same command goes on waiting for it.")
            return 128 + reason.number


def _scheduler(order: Order) -> Scheduler:
    if order.cluster != "slurm" and order.resources.gpus * order.resources.nodes > len(visible_gpus()):
        raise UserError(
            f"--gpus {order.resources.gpus}: this machine shows {len(visible_gpus())} GPUs; ask for fewer, or use "
            "--cluster slurm"
        )
    return scheduler(order.cluster)


@contextmanager
def _hang_up_detaches() -> Iterator[None]:
    def leave(number: int, _frame: FrameType | None) -> None:
        raise DetachedError(number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Waiter:
    """One order and whoever runs it."""

    def __init__(self, order: Order, scheduler: Scheduler) -> None:
        self.order, self.scheduler, self.claims = order, scheduler, order.claims
        self.submission: Submission | None = None
        self.token: int | None = None
        """The claim that is being submitted."""

    def say(self, text: str) -> None:
        """One line for the person or the log."""
        job = f"job {self.submission.job}" if self.submission else "launch"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {job}: {text}\n")
        sys.stderr.flush()

    def run(self) -> int:
        """Submit or attach, follow, and submit again what the cluster lost."""
        for lost in range(self.order.resources.max_requeues + 1):
            self.submission = self._submission()
            attached = "" if self.submission.own else ", which runs or waits already"
            self.say(f"{self.order.name}{attached}; states from {self.scheduler.describe()}")
            outcome = self._follow(self.submission)
            if isinstance(outcome, int):
                return outcome
            self.say(f"{outcome}; the same command is submitted again ({lost + 1})")
            self.submission = None
        self.say(f"lost {self.order.resources.max_requeues + 1} times, which is all that --max-requeues allows")
        return 1

    # -- who works here ---------------------------------------------------------------------------------------------

    def _submission(self) -> Submission:
        """The living job of this folder, or a new one."""
        while True:
            current = self.claims.current()
            found = self._living(current) if current else None
            if found:
                return found
            about = {
                "kind": "submission",
                "cluster": self.scheduler.name,
                "command": self.order.command,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": started(os.getpid()),
                "time": time.time(),
            }
            token = self.claims.take(about, after=current.token if current else 0)
            if token is not None:
                return Submission(token, self._submit(token), own=True)

    def _living(self, current: Claim) -> Submission | None:
        """The job of the claim that holds; None once it is over. One that is being submitted or ending is awaited."""
        token = current.content.get("submission", current.token)
        submitted = self.claims.read(token)
        waiting_since = time.monotonic()
        while (job := self._job_of(token, submitted)) is not None:
            if job != "":
                state = self.scheduler.state(job)
                if state.life is Life.OVER:
                    return None
                if not self._finished(token):
                    self._same_command(submitted, job)
                    return Submission(token, job, own=False)
            elif time.monotonic() - waiting_since > _SUBMITTING_SECONDS:
                return None
            time.sleep(_LOOK)
        return None

    def _same_command(self, submitted: dict[str, Any], job: str) -> None:
        if submitted["command"] != self.order.command:
            raise UserError(
                f"{self.order.place}: job {job} works here with another command ({submitted['command']}). Wait for "
                "its end or cancel it; nothing was started."
            )

    def _job_of(self, token: int, submitted: dict[str, Any]) -> str | None:
        """The id of a claim's job; "" while it is being submitted, None when there is none and never will be."""
        path = self._job_file(token)
        if path.exists():
            return path.read_text()
        if submitted["cluster"] != self.scheduler.name:
            raise UserError(
                f"{self.order.place}: a job that --cluster {submitted['cluster']} started may work here; look with "
                f"that option, or delete {self.claims.folder} when you know that it is over."
            )
        here = submitted["host"] == socket.gethostname()
        if here and started(submitted["pid"]) != submitted["started"]:
            job = self.scheduler.find(self._name(token))  # it died between submitting and writing the id down
            if job is not None:
                write_atomically(path, job)
            return job
        return ""

    def _finished(self, token: int) -> bool:
        """Whether every rank is done, though the scheduler may not have noticed."""
        attempt = Attempt.newest(self._folder(token))
        return attempt is not None and self._succeeded(attempt.ends())

    def _succeeded(self, ends: list[End]) -> bool:
        return len(ends) == self.order.resources.ranks and all(end.code == 0 for end in ends)

    def _folder(self, token: int) -> Path:
        return self.claims.folder / "jobs" / f"{token:06d}"

    def _job_file(self, token: int) -> Path:
        return self.claims.folder / f"job-{token:06d}"

    def _name(self, token: int) -> str:
        return f"{self.order.name}-{token}"

    # -- submission ---------------------------------------------------------------------------------------------------

    def _submit(self, token: int) -> str:
        """Hand the order to submitit; the job's id."""
        self.token = token
        wanted = self.order.resources
        local = self.order.cluster != "slurm"
        task = Task(
            self.order.words,
            self.claims.folder,
            token,
            wanted.max_requeues,
            self.order.python,
            gpus=wanted.gpus if local else 0,
            visible=tuple(visible_gpus()) if local else (),
        )
        if self.order.cluster == "debug":
            return self._here(task, token)
        job = self._submitted(task, token)
        write_atomically(self._job_file(token), job)
        self.token = None
        return job

    def _here(self, task: Task, token: int) -> str:
        """Run the task in this process; its output goes to the terminal."""
        import submitit

        job = f"{socket.gethostname()}:{os.getpid()}:{started(os.getpid())}"
        write_atomically(self._job_file(token), job)
        executor = submitit.AutoExecutor(self._folder(token), cluster="debug")
        with suppress(SystemExit):  # the status is in the record
            executor.submit(task).result()
        return f"{socket.gethostname()}:{os.getpid()}:over"

    def _submitted(self, task: Task, token: int) -> str:
        import submitit

        try:
            executor = submitit.AutoExecutor(self._folder(token), cluster=self.order.cluster)
            executor.update_parameters(**sbatch_parameters(self.order, self._name(token)))
            with _quiet_children():
                job = executor.submit(task)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(self._refused(str(error))) from None
        if self.order.cluster == "local":
            return f"{socket.gethostname()}:{job.job_id}:{started(int(job.job_id))}"
        return str(job.job_id)

    def _refused(self, text: str) -> str:
        """Why sbatch refused, and what there is."""
        reasons = [line.strip() for line in text.splitlines() if line.strip()]
        reason = next((line for line in reasons if "error" in line.lower()), reasons[-1])
        offer = Slurm().offer()
        return (
            f"sbatch refused the job ({described(self.order.resources)}): {reason}\nThis cluster has (partition, time "
            f"limit, nodes, GPUs per node):\n{offer}\nNothing was started."
        )

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _follow(self, submission: Submission) -> int | State:
        """Wait for a job, showing its log; its exit status, or the state in which the cluster lost it."""
        log = _Tail(self._log(submission, 0), from_end=not submission.own)
        said, asked = "", 0.0
        began = time.monotonic()
        while True:
            log.copy()
            attempt = Attempt.newest(self._folder(submission.token))
            if attempt is not None and self._succeeded(attempt.ends()):
                log.copy()
                return 0
            pause = min(_ASK_MOST, max(_ASK_LEAST, (time.monotonic() - began) / 30))
            if time.monotonic() - asked > pause:
                state, asked = self.scheduler.state(submission.job), time.monotonic()
                if str(state) != said:
                    said = str(state)
                    self.say(said)
                if state.life is Life.OVER:
                    time.sleep(_LOOK)
                    log.copy()
                    return self._over(submission, state)
            time.sleep(_LOOK)

    def _log(self, submission: Submission, rank: int) -> Path:
        """The output of a rank."""
        job = submission.job.split(":")[1] if ":" in submission.job else submission.job
        return self._folder(submission.token) / f"{job}_{rank}_log.out"

    def _over(self, submission: Submission, state: State) -> int | State:
        """What the end of a job means."""
        attempt = Attempt.newest(self._folder(submission.token))
        if attempt is None:
            if cancelled(self.claims, submission.token).exists():
                return 128 + signal.SIGINT
            self.say(
                f"{state}; it left nothing in {self._folder(submission.token)}, not even a log of its start. Is this "
                "folder on a file system that the compute nodes share, and does the environment exist there?"
            )
            return 1
        ends = attempt.ends()
        if self._succeeded(ends):
            return 0
        if any(end.note == SUPERSEDED for end in ends):
            return state
        failure = attempt.first_failure()
        if failure is None and state.name == "COMPLETED":
            return 0
        if failure is None and state.name in _LOST:
            return state
        self._explain(submission, state, failure)
        return failure.code if failure else 1

    def _explain(self, submission: Submission, state: State, failure: End | None) -> None:
        """Why a job failed: the rank that did first, the end of its log, and where the rest is."""
        if failure is None:
            log = self._log(submission, 0)
            what = "was cancelled" if state.name == "CANCELLED" else "ended without a word of its own"
            self.say(f"{state}: it {what}; its log: {log}")
            return
        log = self._log(submission, failure.rank)
        signalled = failure.code - 128
        why = f"exit status {failure.code}"
        if failure.note:
            why = failure.note
        elif signalled > 0:
            why = f"killed by {signal.Signals(signalled).name}" + (
                "; the kernel does that when memory runs out: ask for more with --mem-mb, or lower the batch"
                if signalled == signal.SIGKILL
                else ""
            )
        lines = _last_lines(log)
        self.say(f"failed: rank {failure.rank} on {failure.host}: {why}. The end of {log}:")
        sys.stderr.write("".join(f"    {line}\n" for line in lines))
        sys.stderr.flush()

    def cancel(self) -> None:
        """End the job, and see to it that it does not start again."""
        token = self.submission.token if self.submission else self.token
        if token is None:
            return
        write_atomically(cancelled(self.claims, token), "")
        job = self.submission.job if self.submission else self.scheduler.find(self._name(token))
        if job is None:
            return
        self.scheduler.cancel(job)
        until = time.monotonic() + 60
        while self.scheduler.state(job).life is not Life.OVER and time.monotonic() < until:
            time.sleep(_LOOK)
        self.say(f"cancelled; {self.scheduler.state(job)}")


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Processes that are started in this block take no notice of Ctrl-C and of the end of the terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # what came meanwhile is delivered now


class _Tail:
    """Copies a growing file to stdout."""

    def __init__(self, path: Path, *, from_end: bool) -> None:
        self.path, self.position = path, 0
        if from_end and path.exists():
            self.position = path.stat().st_size - len("\n".join([*_last_lines(path), ""]).encode())

    def copy(self) -> None:
        """What was added since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(max(0, self.position))
            added = file.read()
        self.position = max(0, self.position) + len(added)
        if added:
            sys.stdout.buffer.write(added)
            sys.stdout.buffer.flush()


def _last_lines(path: Path) -> list[str]:
    if not path.exists():
        return ["(no log was written)"]
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        return file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]

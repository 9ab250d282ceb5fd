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

from dseq_jepa.cluster.endings import ENDED, LOST, of_job, of_rank
from dseq_jepa.cluster.gpus import visible_gpus
from dseq_jepa.cluster.notify import notify
from dseq_jepa.cluster.order import Order
from dseq_jepa.cluster.records import INTERRUPTED, SUPERSEDED, Attempt, End
from dseq_jepa.cluster.scheduler import Life, NoAnswerError, Scheduler, State, scheduler, started
from dseq_jepa.cluster.shared import require_shared
from dseq_jepa.cluster.submit import adopt, submit, task_of
from dseq_jepa.cluster.tail import Tail, last_lines
from dseq_jepa.cluster.task import cancelled
from dseq_jepa.errors import UserError
from dseq_jepa.fence import Claim
from dseq_jepa.files import write_atomically

_LOOK = 0.5
_ASK_LEAST, _ASK_MOST = 2.0, 20.0
_SUBMITTING_SECONDS, _CANCELLING_SECONDS = 300.0, 60.0


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
    before: int
    """Starts of the same order's earlier jobs, which the cluster lost."""


def launch(order: Order) -> int:
    """Run an order to its end and return its exit status.

    What happens is told on stderr; the log of rank 0 goes to stdout as it grows. $DSEQ_NOTIFY is run after a failure,
    for a workflow that goes on with other jobs ends much later.

    Raises:
        UserError: before anything is submitted, when the order cannot work or somebody else works in its folder.

    """
    failed = f"dseq-jepa {order.words[0]} for {order.place} failed"
    try:
        status, at_will = _stayed_with(order)
    except UserError as error:
        notify(f"{failed}: {str(error).splitlines()[0]}")
        raise
    if status and not at_will:
        notify(f"{failed} with status {status}")
    return status


def _stayed_with(order: Order) -> tuple[int, bool]:
    """The exit status of an order, and whether somebody wanted this end."""
    order.check()
    waiter = Waiter(order, _scheduler(order))
    with _hang_up_detaches():
        try:
            status = waiter.run()
            return status, status == 128 + signal.SIGINT
        except KeyboardInterrupt:
            waiter.cancel()
            return 128 + signal.SIGINT, True
        except DetachedError as reason:
            with suppress(OSError):  # the terminal may be gone
                waiter.say(f"{reason}: left alone; the same command goes on waiting for it.")
            return 128 + reason.number, True


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
        """The claim that is being submitted, until its job is remembered."""

    def say(self, text: str) -> None:
        """One line for the person or the log."""
        job = f"job {self.submission.job}" if self.submission else "launch"
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {job}: {text}\n")
        sys.stderr.flush()

    def run(self) -> int:
        """Submit or attach, follow, and submit again what the cluster lost."""
        before = 0
        while True:
            self.submission = self._submission(before)
            self.token = None
            attached = "" if self.submission.own else ", which runs or waits already"
            self.say(f"{self.order.name}{attached}; states from {self.scheduler.describe()}")
            outcome = self._follow(self.submission)
            if isinstance(outcome, int):
                return outcome
            before = self.submission.before + self._starts(self.submission.token)
            if before > self.order.resources.max_requeues:
                self.say(f"{outcome}; {before} starts are all that --max-requeues allows")
                return 1
            self.say(f"{outcome}; the same command is submitted again, for start {before + 1}")
            self.submission = None

    # -- who works here ---------------------------------------------------------------------------------------------

    def _submission(self, before: int) -> Submission:
        """The living job of this folder, or a new one after so many starts of earlier ones."""
        while True:
            current = self.claims.current()
            found = self._living(current) if current else None
            if found:
                return found
            warning = require_shared(self.claims.folder, elsewhere=self.scheduler.elsewhere)
            if warning:
                self.say(warning)
            about = {
                "kind": "submission",
                "cluster": self.scheduler.name,
                "command": self.order.command,
                "before": before,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "started": started(os.getpid()),
                "time": time.time(),
            }
            token = self.claims.take(about, after=current.token if current else 0)
            job = self._submit(token, before) if token is not None else None
            if token is not None and job is not None:
                return Submission(token, job, True, before)

    def _living(self, current: Claim) -> Submission | None:
        """The job of the claim that holds; None once it is over. One that is being submitted or ending is awaited."""
        token = current.content.get("submission", current.token)
        submitted = self.claims.read(token)
        if submitted["cluster"] != self.scheduler.name:
            self._require_over_there(token, submitted["cluster"])
            return None
        waiting_since = time.monotonic()
        while (job := self._job_of(token, submitted)) is not None:
            if job != "":
                state = self.scheduler.state(job)
                if state.life is Life.OVER:
                    return None
                if not self._finished(token):
                    self._same_command(submitted, job)
                    return Submission(token, job, False, submitted["before"])
            elif time.monotonic() - waiting_since > _SUBMITTING_SECONDS:
                return None
            time.sleep(_ASK_LEAST)
        return None

    def _require_over_there(self, token: int, cluster: str) -> None:
        """Refuse a folder whose last job another scheduler has, unless that one says that it is over."""
        path = self._job_file(token)
        try:
            over = path.exists() and scheduler(cluster).state(path.read_text()).life is Life.OVER
        except UserError:  # there is no such scheduler here
            over = False
        if not over:
            raise UserError(
                f"{self.order.place}: a job that --cluster {cluster} started may work here; look with that option, or "
                f"delete {self.claims.folder} when you know that it is over."
            )

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
        submitting = self._submitting(submitted)  # before the look: it may submit between the two
        job = self._found(token)
        return "" if job is None and submitting else job

    def _submitting(self, submitted: dict[str, Any]) -> bool:
        """Whether another process, which took a claim, may still submit; of another login node nobody can tell."""
        if submitted["host"] != socket.gethostname():
            return True
        own: bool = submitted["pid"] == os.getpid()
        return not own and started(submitted["pid"]) == submitted["started"]

    def _found(self, token: int) -> str | None:
        """The job of a claim by its name, once the scheduler answers; the id is written down for whoever comes next."""
        while True:
            try:
                job = self.scheduler.find(self._name(token))
                break
            except NoAnswerError as error:
                self.say(f"{error}; it is asked again in {_ASK_MOST:g} s")
                time.sleep(_ASK_MOST)
        if job is not None:
            adopt(self._folder(token), job)
            write_atomically(self._job_file(token), job)
        return job

    def _finished(self, token: int) -> bool:
        """Whether every rank is done, though the scheduler may not have noticed."""
        attempt = Attempt.newest(self._folder(token))
        return attempt is not None and self._succeeded(attempt.ends())

    def _succeeded(self, ends: list[End]) -> bool:
        return len(ends) == self.order.resources.ranks and all(end.code == 0 for end in ends)

    def _starts(self, token: int) -> int:
        """How often a job was started; one that left nothing counts too, for it took its turn."""
        attempt = Attempt.newest(self._folder(token))
        return 1 if attempt is None else attempt.number + 1

    def _folder(self, token: int) -> Path:
        return self.claims.folder / "jobs" / f"{token:06d}"

    def _job_file(self, token: int) -> Path:
        return self.claims.folder / f"job-{token:06d}"

    def _name(self, token: int) -> str:
        return f"{self.order.name}-{token}"

    # -- submission ---------------------------------------------------------------------------------------------------

    def _submit(self, token: int, before: int) -> str | None:
        """Hand the order to submitit; the job's id, or None where nobody knows yet whether there is a job."""
        self.token = token
        task = task_of(self.order, token, before)
        try:
            job = submit(self.order, task, self._folder(token), self._name(token), self._job_file(token))
        except NoAnswerError as error:
            self.say(f"{error}; it may be in the queue all the same, so it is looked for in {_ASK_MOST:g} s")
            time.sleep(_ASK_MOST)
            return None
        return job

    # -- waiting ------------------------------------------------------------------------------------------------------

    def _follow(self, submission: Submission) -> int | State:
        """Wait for a job, showing its log; its exit status, or the state in which the cluster lost it."""
        log = Tail(self._log(submission, 0), from_end=not submission.own)
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
        ends = attempt.ends() if attempt else []
        if self._succeeded(ends):
            return 0
        if any(end.note == SUPERSEDED for end in ends):
            return state
        if cancelled(self.claims, submission.token).exists():
            self.say(f"{state}: somebody cancelled it with Ctrl-C")
            return 128 + signal.SIGINT
        failure = attempt.first_failure() if attempt else None
        if failure is not None:
            self._explain(submission, failure)
            return failure.code
        if state.name in LOST or (state.name not in ENDED and any(end.note == INTERRUPTED for end in ends)):
            return state
        if attempt is not None and state.name == "COMPLETED":
            return 0
        self.say(f"{state}: {of_job(state, self._log(submission, 0), began=attempt is not None)}")
        return 1

    def _explain(self, submission: Submission, failure: End) -> None:
        """Why a job failed: the rank that did first, the end of its log, and where the rest is."""
        log = self._log(submission, failure.rank)
        self.say(f"failed: rank {failure.rank} on {failure.host}: {of_rank(failure)}. The end of {log}:")
        sys.stderr.write("".join(f"    {line}\n" for line in last_lines(log)))
        sys.stderr.flush()

    def cancel(self) -> None:
        """End the job, and see to it that it does not start again."""
        token = self.submission.token if self.submission else self.token
        if token is None:
            return
        write_atomically(cancelled(self.claims, token), "")
        try:
            job = self.submission.job if self.submission else self._submitted_by_now(token)
        except NoAnswerError as error:
            self.say(f"{error}; if it does, it ends when it starts")
            return
        if job is None:
            return
        self.scheduler.cancel(job)
        until = time.monotonic() + _CANCELLING_SECONDS
        while (state := self.scheduler.state(job)).life is not Life.OVER and time.monotonic() < until:
            time.sleep(_LOOK)
            if state.life is Life.UNKNOWN:  # then it may not have heard of the cancellation either
                self.scheduler.cancel(job)
        if state.life is Life.OVER:
            self.say(f"cancelled; {state}")
        else:
            self.say(f"not over yet; {state}. Cancel job {job} yourself; once it ends, nothing starts it again.")

    def _submitted_by_now(self, token: int) -> str | None:
        """The job of a submission that was interrupted."""
        path = self._job_file(token)
        return path.read_text() if path.exists() else self.scheduler.find(self._name(token))

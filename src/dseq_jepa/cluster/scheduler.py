"""What the scheduler knows of a job: Slurm's squeue, with sacct where there is accounting, or this machine's processes.

    slurm = Slurm()
    slurm.state("17")           # State(name="PENDING", reason="Resources", life=Life.ALIVE)
    slurm.find("dseq-1f03")     # ids of the jobs of that name

squeue is asked first: it also knows what waits, it needs no accounting, and it still lists a job for a while
after its end (MinJobAge, 5 minutes by default). sacct answers for older ones. A controller that does not answer is no
news about a job: it counts as alive until something else is known.
"""

import enum
import functools
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dseq_jepa.errors import UserError

_ANSWER_SECONDS = 60
_NO_ANSWER = (
    "timed out", "unable to contact slurm controller", "communication connection failure",
    "zero bytes were transmitted", "standby mode",
)  # fmt: skip
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


class NoAnswerError(UserError):
    """The controller does not answer; what it was asked to do may be done all the same."""


class Life(enum.Enum):
    """Whether a job can still do anything."""

    ALIVE = "alive"
    """Waiting, running, ending or about to be started again."""
    OVER = "over"
    UNKNOWN = "unknown"
    """The scheduler does not answer."""


@dataclass(frozen=True)
class State:
    """A job at one moment."""

    name: str
    """Slurm's word, such as RUNNING, or GONE for a job that it has forgotten."""
    reason: str
    """Why it waits or ended, where that is known."""
    life: Life
    nodes: str = ""
    """Where it runs."""

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else ""
        return f"{self.name}{where}" + (f" ({self.reason})" if self.reason else "")


class Scheduler(Protocol):
    """What `launch` asks of whoever runs jobs."""

    name: str

    def describe(self) -> str:
        """One line: who is asked."""

    def state(self, job: str) -> State:
        """A job's state."""

    def find(self, name: str) -> str | None:
        """The id of the newest living job of this name, where jobs have names."""

    def cancel(self, job: str) -> None:
        """End a job."""

    @property
    def elsewhere(self) -> bool:
        """Whether jobs may run on other machines."""


class Slurm:
    """The Slurm cluster that this machine belongs to.

    Raises:
        UserError: when there is no Slurm here.

    """

    name = "slurm"

    def __init__(self) -> None:
        if shutil.which("sbatch") is None:
            raise UserError(
                "--cluster slurm: no sbatch on this machine; run this on a login node, or use --cluster local"
            )

    def describe(self) -> str:
        """Where the states come from."""
        return "squeue and sacct" if self.accounting else "squeue (this cluster keeps no accounting)"

    @functools.cached_property
    def accounting(self) -> bool:
        """Whether sacct answers."""
        return shutil.which("sacct") is not None and _ask("sacct", "-n", "-X", "-j", "1").returncode == 0

    def state(self, job: str) -> State:
        """A job's state, from squeue and then from sacct."""
        answer = _ask("squeue", "-h", "-a", "-t", "all", "-j", job, "-o", "%T|%r|%N")
        if answer.returncode == 0 and answer.stdout.strip():
            name, reason, nodes = answer.stdout.strip().splitlines()[-1].split("|")
            return _state(name, "" if reason == "None" else reason, nodes)
        if answer.returncode and "invalid job id" not in answer.stderr.lower():
            return State("UNREACHABLE", _last_line(answer.stderr), Life.UNKNOWN)
        return self._accounted(job) if self.accounting else State("GONE", "Slurm no longer lists it", Life.OVER)

    def _accounted(self, job: str) -> State:
        answer = _ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode,NodeList")
        if answer.returncode:
            return State("UNREACHABLE", _last_line(answer.stderr), Life.UNKNOWN)
        if not answer.stdout.strip():
            return State("GONE", "Slurm no longer lists it", Life.OVER)
        name, code, nodes = answer.stdout.strip().splitlines()[-1].split("|")
        return _state(name.split()[0], f"exit code {code}", nodes)  # "CANCELLED by 0"

    def find(self, name: str) -> str | None:
        """The id of the newest job of this name that is not over.

        Raises:
            NoAnswerError: when the controller does not answer; guessing could start a second job.

        """
        answer = _ask("squeue", "-h", "-a", "--name", name, "-o", "%A")
        if answer.returncode:
            raise NoAnswerError(
                f"squeue does not answer ({_last_line(answer.stderr)}), and without it nobody knows whether the job "
                f"{name} exists"
            )
        return max(answer.stdout.split(), key=int, default=None)

    @property
    def elsewhere(self) -> bool:
        """Whether any node is another machine; a controller that does not answer says nothing."""
        hosts = _ask("sinfo", "-h", "-a", "-N", "-o", "%n").stdout.split()
        return any(host.partition(".")[0] != socket.gethostname().partition(".")[0] for host in hosts)

    def offer(self) -> str:
        """Partitions with their time limits, nodes and GPUs, one per line."""
        return _ask("sinfo", "-h", "-o", "  %R %l %D %G").stdout.rstrip()

    def cancel(self, job: str) -> None:
        """Scancel; ending a job that is over is fine."""
        _ask("scancel", job)


class Machine:
    """Jobs that are processes of this machine."""

    name = "local"
    elsewhere = False

    def describe(self) -> str:
        """Where the states come from."""
        return "this machine's processes"

    def state(self, job: str) -> State:
        """Whether the job's first process lives; `job` is HOST:PID:START (start time in clock ticks)."""
        host, pid, start = job.split(":")
        if host != socket.gethostname():
            return State("UNREACHABLE", f"it runs on {host}; look there", Life.UNKNOWN)
        alive = started(int(pid)) == start
        return State("RUNNING", "", Life.ALIVE, host) if alive else State("GONE", "no such process", Life.OVER)

    def find(self, name: str) -> str | None:
        """None: processes have no names to be found by."""
        del name
        return None

    def cancel(self, job: str) -> None:
        """SIGTERM to the first process, which hands it on."""
        if self.state(job).life is Life.ALIVE:
            os.kill(int(job.split(":")[1]), signal.SIGTERM)


def unanswered(text: str) -> bool:
    """Whether a command of Slurm failed with these words because the controller did not answer."""
    return any(words in text.lower() for words in _NO_ANSWER)


def scheduler(cluster: str) -> Scheduler:
    """Whoever runs the jobs of `--cluster slurm` or `--cluster local`."""
    return Slurm() if cluster == "slurm" else Machine()


def started(pid: int) -> str | None:
    """When a process of this machine was started, in clock ticks since boot; None where there is none or it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _state(name: str, reason: str, nodes: str) -> State:
    return State(name, reason, Life.OVER if name in _OVER else Life.ALIVE, nodes)


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {_ANSWER_SECONDS} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]

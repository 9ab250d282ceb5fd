"""What runs on the node: one process per rank, which runs the verb, hands signals on and asks for the next start.

Started by submitit (launch.py), never by hand. The verb is a process of its own, so that a rank which the kernel kills
leaves somebody behind who can say so. Rank 0 takes the claim of this attempt before anything runs; without it nothing
does.
"""

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dseq_jepa.cluster.gpus import slots
from dseq_jepa.cluster.records import INTERRUPTED, SUPERSEDED, Attempt, End
from dseq_jepa.cluster.scheduler import Slurm
from dseq_jepa.errors import INTERRUPTED_CODE
from dseq_jepa.fence import Claims, Fence

_PATIENCE = 300.0
_REQUEUE_CODE = 144
"""submitit's local controller starts a job again that exits with this."""
_PR_SET_PDEATHSIG = 1
_STOPS = (signal.SIGTERM, signal.SIGUSR2)


def cancelled(claims: Claims, submission: int) -> Path:
    """The mark of a submission that a person cancelled."""
    return claims.folder / f"cancelled-{submission:06d}"


@dataclass(frozen=True)
class Task:
    """One order, as it is sent to the nodes."""

    words: tuple[str, ...]
    claims_folder: Path
    submission: int
    """Token of the claim under which the job was submitted."""
    max_requeues: int
    before: int
    """Starts of the same order's earlier jobs, which count too."""
    python: str
    """The interpreter that runs the verb; this process may be in another environment."""
    gpus: int = 0
    """GPUs to take on this machine; 0 where the scheduler hands them out."""
    visible: tuple[int, ...] = ()
    """The GPUs to take them from."""

    def __call__(self) -> None:
        """Run the verb on this rank."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        _Rank(self, environment).run()


class _Rank:
    """One process of a job."""

    def __init__(self, task: Task, environment: Any) -> None:
        self.task, self.environment = task, environment
        self.claims = Claims(task.claims_folder)
        self.rank: int = environment.global_rank
        self.stopped_by: int | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.attempt = Attempt(task.claims_folder / "jobs" / f"{task.submission:06d}", self._number())

    def _number(self) -> int:
        """Which start of the job this is; Slurm counts, elsewhere it is seen from what this rank left before."""
        if self.environment.cluster == "slurm":
            return int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        folder = self.task.claims_folder / "jobs" / f"{self.task.submission:06d}"
        return len(list(folder.glob(f"attempt-*/rank-{self.rank:03d}.json")))

    def run(self) -> None:
        """Claim, run, record how it ended; exits with the verb's status."""
        for number in _STOPS:
            signal.signal(number, self._stop)
        if self._again() > self.task.max_requeues:  # Slurm puts a preempted job back without asking
            self._end(1, self._enough())
        wanted = self.task.gpus if self.rank == 0 else 0
        with slots(wanted, self.task.visible, lambda: self.stopped_by is None) as taken:
            start = (self._claim(taken) if self.rank == 0 else self._told()) or {"token": None}
            if start["token"] is None:
                _say("another job owns this folder by now; nothing is run.")
                self._end(1, SUPERSEDED)
            code = self._child(Fence(self.task.claims_folder, start["token"]), start["gpus"])
        if code == 0:
            self.attempt.write(self._record(0, ""))
            return
        stopped = (INTERRUPTED_CODE, *(128 + number for number in _STOPS))
        if self.stopped_by is not None and code in stopped:
            self._interrupted(code)
        self._end(code, "")

    def _told(self) -> dict[str, Any] | None:
        """What rank 0 announced; it may first have to wait for GPUs, as long as it takes."""
        patience = math.inf if self.task.gpus else _PATIENCE
        return self.attempt.announced(patience, lambda: self.stopped_by is None)

    def _claim(self, gpus: list[int] | None) -> dict[str, Any]:
        """Take the claim of this attempt, if the folder still belongs to this job."""
        current = self.claims.current()
        mine = self.task.submission
        token = None
        owner = None if current is None else current.content.get("submission", current.token)
        if current is not None and owner == mine and not cancelled(self.claims, mine).exists():
            about = {
                "kind": "start",
                "submission": mine,
                "job": self.environment.job_id,
                "restart": self.attempt.number,
                "host": socket.gethostname(),
                "time": time.time(),
            }
            token = self.claims.take(about, after=current.token)
        start = {"token": token, "gpus": gpus}
        self.attempt.announce(start)
        return start

    def _child(self, fence: Fence, gpus: list[int] | None) -> int:
        """Run the verb; 128 + the signal when one killed it, as a shell has it."""
        variables = dict(os.environ) | fence.environment()
        variables["TORCHELASTIC_ERROR_FILE"] = str(self.attempt.error_file(self.rank))
        variables |= self._ranks()
        if gpus is not None:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        if self.stopped_by is not None:
            return INTERRUPTED_CODE
        command = [self.task.python, "-m", "dseq_jepa", *self.task.words]
        self.child = subprocess.Popen(command, env=variables, close_fds=False, preexec_fn=_die_with_parent)
        if self.stopped_by is not None:  # it came while the process was being started
            self.child.send_signal(self.stopped_by)
        code = self.child.wait()
        return code if code >= 0 else 128 - code

    def _ranks(self) -> dict[str, str]:
        """What torch.distributed reads, from submitit's helper; nothing for one process, which then is no rank."""
        if self.environment.num_tasks == 1:
            return {}
        from submitit.helpers import TorchDistributedEnvironment

        found = TorchDistributedEnvironment()
        return {
            "MASTER_ADDR": _address(found.master_addr),
            "MASTER_PORT": str(found.master_port),
            "RANK": str(found.rank),
            "WORLD_SIZE": str(found.world_size),
            "LOCAL_RANK": str(found.local_rank),
            "LOCAL_WORLD_SIZE": str(found.local_world_size),
        }

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = number
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)

    def _interrupted(self, code: int) -> None:
        """The state is saved: ask for the next start, unless somebody wants the job to end."""
        if cancelled(self.claims, self.task.submission).exists():
            self._end(code, "cancelled")
        if self.attempt.failed_untold():  # srun ends all ranks of a job when one fails; starting again would not help
            self._end(code, "stopped, for another rank had failed")
        slurm = self.environment.cluster == "slurm"
        if not slurm and self.stopped_by != signal.SIGUSR2:
            self._end(code, "stopped")
        if self._again() >= self.task.max_requeues:
            self._end(code, self._enough())
        if not slurm:
            self._end(_REQUEUE_CODE, INTERRUPTED)
        self.attempt.write(self._record(code, INTERRUPTED))
        if self.rank != 0 or self._requeued():
            time.sleep(_PATIENCE)  # Slurm ends this process when the job is put back
        sys.exit(code)

    def _again(self) -> int:
        """How often the order was started again by now, this start included."""
        return self.task.before + self.attempt.number

    def _enough(self) -> str:
        return f"started again {self.task.max_requeues} times, which is all that --max-requeues allows"

    def _requeued(self) -> bool:
        """Put the job back into the queue, unless Slurm is ending it for good or does so itself."""
        job = self.environment.job_id
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            state = Slurm().state(job)
            if state.name not in ("RUNNING", "UNREACHABLE"):
                _say(f"job {job} is {state}; no requeue.")
                return False
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                _say(f"job {job} was put back into the queue.")
                return True
            _say(f"scontrol requeue {job}: {done.stderr.strip()}")
            time.sleep(2)
        return False

    def _record(self, code: int, note: str) -> End:
        return End(self.rank, code, time.time(), socket.gethostname(), note, told=self.stopped_by is not None)

    def _end(self, code: int, note: str) -> None:
        self.attempt.write(self._record(code, note))
        sys.exit(code)


def _say(text: str) -> None:
    """One line for the job's log."""
    sys.stdout.write(f"dseq-jepa launch: {text}\n")
    sys.stdout.flush()


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, so that no verb outlives its job."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _address(host: str) -> str:
    """A node's name, or, where names of nodes do not resolve, the address that Slurm itself uses for it."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror:
        shown = subprocess.run(["scontrol", "show", "node", host], capture_output=True, text=True, check=True).stdout
        return next(word.split("=", 1)[1] for word in shown.split() if word.startswith("NodeAddr="))
    return host

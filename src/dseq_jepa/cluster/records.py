"""What the processes of a job leave for whoever waits for it: files of one attempt, one writer each.

    <place>/../.launch/<name>/jobs/<submission>/           submitit's folder: logs, submission script
                                  /attempt-000/start.json  the claim of this attempt, from rank 0
                                  /attempt-000/rank-003.json   how rank 3 ended
                                  /attempt-000/error-003.json  what rank 3 died of, as torchrun's processes write it

An attempt is one start of the job: Slurm's restart count.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dseq_jepa.files import write_atomically

INTERRUPTED = "interrupted"
SUPERSEDED = "superseded"


@dataclass(frozen=True)
class End:
    """How one rank of an attempt ended."""

    rank: int
    code: int
    """Exit status of its process; 128 + the signal for one that was killed."""
    time: float
    host: str
    note: str = ""
    """`interrupted` (goes on later), `superseded`, or a sentence."""
    told: bool = False
    """Whether a signal had told it to stop by then."""

    @property
    def failed(self) -> bool:
        """Whether it neither finished nor goes on later."""
        return self.code != 0 and self.note not in (INTERRUPTED, SUPERSEDED)


class Attempt:
    """The files of one start of a job."""

    def __init__(self, job_folder: Path, number: int) -> None:
        self.number = number
        self.folder = job_folder / f"attempt-{number:03d}"

    @classmethod
    def newest(cls, job_folder: Path) -> "Attempt | None":
        """The last attempt that was begun."""
        numbers = [int(path.name.split("-")[1]) for path in job_folder.glob("attempt-*")]
        return cls(job_folder, max(numbers)) if numbers else None

    def write(self, end: End) -> None:
        """Record how a rank ended."""
        write_atomically(self.folder / f"rank-{end.rank:03d}.json", json.dumps(asdict(end)))

    def ends(self) -> list[End]:
        """The ranks that ended so far."""
        return [End(**json.loads(path.read_text())) for path in sorted(self.folder.glob("rank-*.json"))]

    def error_file(self, rank: int) -> Path:
        """Where a rank's process writes its error, before others can fail because of it."""
        return self.folder / f"error-{rank:03d}.json"

    def first_failure(self) -> End | None:
        """The rank that the others failed because of: one that was killed, else the one with the earliest error."""
        failed = [end for end in self.ends() if end.failed]
        culprits = [end for end in failed if not end.told] or failed
        killed = [end for end in culprits if end.code in (128 + 9, 128 + 6, 128 + 11, 128 + 7)]
        if killed:
            return min(killed, key=lambda end: end.time)
        return min(culprits, key=self._error_time, default=None)

    def failed_untold(self) -> bool:
        """Whether a rank failed before anything told it to stop: what stops the others is then no preemption."""
        return any(end.failed and not end.told for end in self.ends())

    def _error_time(self, end: End) -> float:
        """When a rank's process wrote its error; a rank without one fell because of others, unless all did."""
        path = self.error_file(end.rank)
        return path.stat().st_mtime if path.exists() else end.time + 1e9

    def announce(self, start: dict[str, Any]) -> None:
        """Rank 0 tells the others what this attempt may do."""
        write_atomically(self.folder / "start.json", json.dumps(start))

    def announced(self, seconds: float, go_on: Callable[[], bool] = lambda: True) -> dict[str, Any] | None:
        """What rank 0 announced, waited for as long as `go_on()`."""
        until = time.monotonic() + seconds
        path = self.folder / "start.json"
        while not path.exists():
            if time.monotonic() > until or not go_on():
                return None
            time.sleep(0.2)
        start: dict[str, Any] = json.loads(path.read_text())
        return start

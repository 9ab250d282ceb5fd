"""What runs, what is done and what stopped: one line per job of a results folder, read from its journals.

    dseq-jepa status --config configs/demo.yaml            # once
    dseq-jepa status --config configs/demo.yaml --watch    # again every two seconds, until Ctrl-C

It reads files only, the same for jobs of this machine and of a cluster whose results lie on a shared disk; of a journal
it reads the beginning and the end, so a month-long run costs no more than a short one.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from dseq_jepa.errors import UserError
from dseq_jepa.journal import ends
from dseq_jepa.progress import duration
from dseq_jepa.sources import JOURNAL, RESULTS, job_folders

WATCH_SECONDS = 2.0
_SILENT_SECONDS = 300.0
_SILENT_INTERVALS = 10.0
_ENDED = {"finished": "finished", "failed": "failed"}
_COLOURS = {"running": "green", "failed": "red", "silent": "yellow", "finished": "dim"}


@dataclass(frozen=True)
class JobStatus:
    """One job of a results folder."""

    place: str
    """Its folder below the results."""
    state: str
    """running, finished, failed, or silent: neither ended nor heard of for long, so killed or stuck."""
    step: int | None = None
    steps: int | None = None
    """Planned; None where the job does not say."""
    seconds_left: float | None = None
    """At the pace of the last lines."""
    images_per_second: float | None = None
    loss: float | None = None
    age: float = 0.0
    """Seconds since its last sign of life."""
    text: str | None = None
    """Why it failed."""

    def line(self) -> str:
        """Everything that is known, in one line."""
        return "  ".join([f"{self.state:8}", self.place, *self.details()])

    def details(self) -> list[str]:
        """What is known beside the state."""
        parts = []
        if self.state == "failed" and self.text:
            parts.append(self.text.splitlines()[0])
        elif self.state != "finished":
            parts += self._progress()
        parts.append(f"{duration(self.age)} ago")
        return parts

    def _progress(self) -> list[str]:
        parts = []
        if self.step is not None and self.steps:
            parts.append(f"{self.step:,}/{self.steps:,} ({100 * self.step // self.steps}%)")
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:.3g} images/s")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.seconds_left is not None and self.state == "running":
            parts.append(f"{duration(self.seconds_left)} left")
        return parts


def job_statuses(results: Path, now: float | None = None) -> list[JobStatus]:
    """Every job of results/<config> that left a trace: running ones first, then what needs a look, then the finished.

    Args:
        results: results/<config>.
        now: seconds since 1970; the present unless given.

    Raises:
        UserError: when there is no such folder, or a journal is corrupt.

    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; nothing has run yet.")
    now = time.time() if now is None else now
    locked = _locked_files()
    found = [_status(folder, folder.relative_to(results).as_posix(), now, locked) for folder in job_folders(results)]
    order = list(_COLOURS)
    return sorted((job for job in found if job), key=lambda job: (order.index(job.state), job.place))


def _status(folder: Path, place: str, now: float, locked: set[int]) -> JobStatus | None:
    journal = folder / JOURNAL
    first, last = ends(journal) if journal.exists() else ([], [])
    working = _is_locked(folder / ".lock", locked)
    result = max(((folder / name).stat().st_mtime for name in RESULTS if (folder / name).is_file()), default=None)
    if not last:
        return _without_journal(folder, place, now, working, result)
    age = max(0.0, now - last[-1]["t"])
    state = _state(last, working, age)
    if state == "silent" and result is not None and result >= last[-1]["t"]:
        state = "finished"
    points = [line for line in last if line["kind"] == "metrics"]
    steps = next((line.get("steps") for line in first if line["kind"] == "run"), None)
    text = next((line.get("text") for line in reversed(last) if line.get("name") == "failed"), None)
    if not points:
        return JobStatus(place, state, steps=steps, age=age, text=text)
    values: dict[str, Any] = points[-1]["values"]
    return JobStatus(
        place, state, points[-1]["step"], steps, _left(points, steps), values.get("images_per_second"),
        values.get("loss"), age, text,
    )  # fmt: skip


def _without_journal(folder: Path, place: str, now: float, working: bool, result: float | None) -> JobStatus | None:
    """A short job keeps no journal: it works while it holds its lock, and is done when its result is there."""
    if working:
        return JobStatus(place, "running", age=max(0.0, now - (folder / ".lock").stat().st_mtime))
    return None if result is None else JobStatus(place, "finished", age=max(0.0, now - result))


def _state(last: list[dict[str, Any]], working: bool, age: float) -> str:
    words = [line["name"] for line in last if line["kind"] == "event"]
    if last[-1]["kind"] == "event" and words[-1] in _ENDED and not working:
        return _ENDED[words[-1]]
    times = [line["t"] for line in last if line["kind"] == "metrics"]
    interval = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    return "running" if working or age < max(_SILENT_SECONDS, _SILENT_INTERVALS * interval) else "silent"


def _left(points: list[dict[str, Any]], steps: int | None) -> float | None:
    """Seconds to the last step at the pace of these points; a pause between two processes of a run is no pace."""
    paces: list[float] = [
        (after["t"] - before["t"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(points)
        if after["step"] > before["step"]
    ]
    if not steps or not paces or points[-1]["step"] < points[0]["step"]:
        return None
    return sorted(paces)[len(paces) // 2] * max(0, steps - int(points[-1]["step"]))


def _locked_files() -> set[int]:
    """Inodes that a process of this machine holds an flock on; asking the kernel disturbs nobody."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return set()  # not Linux: the journals' ages decide
    words = (line.split() for line in lines)
    return {int(word[5].rpartition(":")[2]) for word in words if len(word) > 5 and word[1] == "FLOCK"}


def _is_locked(path: Path, locked: set[int]) -> bool:
    return path.exists() and path.stat().st_ino in locked


def show(results: Path, watch: bool, stream: TextIO = sys.stdout) -> None:
    """Print the state of every job; with `watch` again and again until Ctrl-C."""
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(file=stream)
    if not watch:
        console.print(*_rows(results), sep="\n", soft_wrap=True)
        return
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(Group(*_rows(results)), refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def _rows(results: Path) -> Iterator[Any]:
    from rich.text import Text

    jobs = job_statuses(results)
    for job in jobs:
        yield Text(job.line(), style=_COLOURS[job.state])
    counts = {state: sum(job.state == state for job in jobs) for state in _COLOURS}
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no job has run yet"
    yield Text(f"{results}: {summary}", style="bold")

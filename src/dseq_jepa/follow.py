"""Run a workflow and watch its jobs: a bar for the whole and one for every job at work, until the command ends.

    dseq-jepa follow --config configs/demo.yaml -- snakemake --cores 2

What the command says goes to results/<config>/workflow.log; if it fails, its last lines are shown. Where there is no
terminal the command simply runs.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from dseq_jepa.progress import duration
from dseq_jepa.status import JobStatus, job_statuses

if TYPE_CHECKING:
    from rich.console import RenderableType

LOG = "workflow.log"
_REFRESH_SECONDS = 0.5
_BAR_WIDTH = 24
_STEPS = re.compile(rb"(\d+) of (\d+) steps \(\d+%\) done")
_OUTCOME = re.compile(r"^Nothing to be done|\(100%\) done$")
_LAST_LINES = 40
_TAIL_BYTES = 65536


def follow(results: Path, command: Sequence[str], stream: TextIO = sys.stdout) -> int:
    """Run a command and show the jobs of a results folder meanwhile.

    Ctrl-C reaches the command as well, for it runs in the same terminal; this waits for it to put things in order.

    Returns:
        The command's exit status.

    """
    if not stream.isatty():
        return subprocess.run(command, check=False).returncode
    results.mkdir(parents=True, exist_ok=True)
    log = results / LOG
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    try:
        _watch(results, log, process, stream)
    except KeyboardInterrupt:
        print(f"Stopping; jobs save their state first. What the workflow says: {log}", file=stream)
    status = process.wait()
    lines = _tail(log).decode(errors="replace").splitlines()
    if status:
        print(*lines[-_LAST_LINES:], sep="\n", file=stream)
        print(f"The workflow ended with exit status {status}; all that it said: {log}", file=stream)
    else:
        print(*(line for line in lines if _OUTCOME.search(line)), sep="\n", file=stream)
    return status


def _watch(results: Path, log: Path, process: subprocess.Popen[bytes], stream: TextIO) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=stream), auto_refresh=False, transient=True) as live:
        while process.poll() is None:
            live.update(picture(job_statuses(results), steps_done(_tail(log))), refresh=True)
            try:
                process.wait(_REFRESH_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def steps_done(log: bytes) -> tuple[int, int] | None:
    """Finished and planned steps, from the end of what Snakemake said; None before the first one has finished."""
    found = _STEPS.findall(log)
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def picture(jobs: Sequence[JobStatus], steps: tuple[int, int] | None) -> "RenderableType":
    """A line for the workflow, and one for every job that is at work or failed."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    done, total = steps or (0, 1)
    table.add_row(Text("workflow", style="bold"), ProgressBar(total, done, _BAR_WIDTH), f"{done} of {total} steps")
    for job in jobs:
        if job.state == "running" and job.step is not None and job.steps:
            bar: RenderableType = ProgressBar(job.steps, job.step, _BAR_WIDTH)
            table.add_row(job.place, bar, Text(_pace(job)))
        elif job.state != "finished":
            style = "red" if job.state == "failed" else ""
            table.add_row(job.place, job.state, Text("  ".join(job.details()), style=style))
    if steps is None:
        table.add_row("", "", "the first step is at work")
    return table


def _pace(job: JobStatus) -> str:
    parts = [f"{job.step:,}/{job.steps:,}"]
    if job.images_per_second is not None:
        parts.append(f"{job.images_per_second:.3g} images/s")
    if job.loss is not None:
        parts.append(f"loss {job.loss:.3g}")
    if job.seconds_left is not None:
        parts.append(f"{duration(job.seconds_left)} left")
    return "  ".join(parts)


def _tail(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return file.read()

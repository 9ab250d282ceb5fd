"""`dseq-jepa follow` shows a workflow at work, passes on how it ended, and gets out of the way without a terminal.

pytest tests/test_follow.py
"""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from dseq_jepa.follow import follow, picture, steps_done
from dseq_jepa.status import JobStatus

SNAKEMAKE = "import time; print('2 of 8 steps (25%) done', flush=True); time.sleep(1.5)"


def rendered(jobs: list[JobStatus], steps: tuple[int, int] | None) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(picture(jobs, steps))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_last_count_that_the_workflow_printed_is_shown():
    assert steps_done(b"") is None
    assert steps_done(b"1 of 9 steps (11%) done\nx\n12 of 90 steps (13%) done\nFinished") == (12, 90)


def test_jobs_at_work_have_a_bar_and_finished_ones_no_line():
    running = JobStatus("pretrain/a", "running", 120, 480, seconds_left=60, images_per_second=171.2, loss=0.25)
    text = rendered(
        [running, JobStatus("pretrain/b", "finished"), JobStatus("pretrain/c", "failed", text="no")], (3, 9)
    )
    assert "3 of 9 steps" in text
    assert "120/480  171 images/s  loss 0.25  0:01:00 left" in text
    assert "pretrain/b" not in text
    assert "no" in next(line for line in text.splitlines() if "pretrain/c" in line)


def test_without_a_terminal_the_command_simply_runs(tmp_path: Path):
    stream = io.StringIO()
    assert follow(tmp_path / "results", [sys.executable, "-c", "raise SystemExit(3)"], stream) == 3
    assert stream.getvalue() == ""


def started(tmp_path: Path, program: str) -> tuple[subprocess.Popen[bytes], int]:
    """`dseq-jepa follow` on a terminal of its own; what it shows is read from the descriptor."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dseq_jepa", "follow", "--results", str(tmp_path / "demo"), "--"]
    process = subprocess.Popen(
        [*command, sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    return process, ours


def shown(descriptor: int) -> str:
    """Everything until the terminal is closed."""
    parts = []
    while True:
        try:
            part = os.read(descriptor, 65536)
        except OSError:  # Linux: the other side has closed
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


def test_on_a_terminal_progress_is_shown_and_a_failure_ends_with_the_log(tmp_path: Path):
    process, terminal = started(tmp_path, f"{SNAKEMAKE}; raise SystemExit('the disk is full')")
    text = shown(terminal)
    assert process.wait(timeout=20) == 1
    assert "2 of 8 steps" in text
    assert "the disk is full" in text
    assert f"{tmp_path / 'demo' / 'workflow.log'}" in text.replace("\r\n", "")


def test_a_workflow_with_nothing_to_do_says_so(tmp_path: Path):
    process, terminal = started(tmp_path, "print('Nothing to be done (all requested files are present).')")
    assert "Nothing to be done" in shown(terminal)
    assert process.wait(timeout=20) == 0


def test_ctrl_c_waits_for_the_workflow_to_put_things_in_order(tmp_path: Path):
    program = (
        "import signal, time\n"
        "try:\n print('1 of 8 steps (12%) done', flush=True); time.sleep(30)\n"
        "except KeyboardInterrupt:\n time.sleep(0.5); print('jobs saved'); raise SystemExit(130)"
    )
    process, terminal = started(tmp_path, program)
    log = tmp_path / "demo" / "workflow.log"
    while not (log.exists() and b"1 of 8" in log.read_bytes()):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    text = shown(terminal)
    assert process.wait(timeout=20) == 130
    assert "jobs saved" in text

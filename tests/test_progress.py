"""One line that says how far a loop is."""

import io
import os
import pty
import subprocess
import sys

import pytest

from dseq_jepa.progress import Progress


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_log_file_gets_one_line_a_minute_and_one_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(300, "run", stream=stream, clock=clock) as progress:
        for step in range(300):
            clock.now += 1
            progress.show(loss=1 / (step + 1))
            progress.advance(images=8)
    lines = stream.getvalue().splitlines()
    assert len(lines) in (5, 6)
    assert lines[0] == "run: 60/300, 8 images/s, loss 0.01667, 0:04:00 left"
    assert lines[-1] == "run: 300/300, 8 images/s, loss 0.003333, done in 0:05:00"


def test_steps_of_an_earlier_process_do_not_count_as_speed() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, "run", start=900, stream=stream, clock=clock)
    clock.now += 61
    progress.advance(images=10)
    assert stream.getvalue() == "run: 901/1000, 0.16 images/s, 1:40:39 left\n"


def test_a_loop_that_stops_early_says_where() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10, "run", stream=stream, clock=clock)
    progress.advance()
    with pytest.raises(ZeroDivisionError), progress:
        _ = 1 / 0
    assert stream.getvalue() == "run: 1/10\n"


def test_a_month_is_readable() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(40_000, "run", stream=stream, clock=clock)
    clock.now += 60
    progress.advance()
    assert "27 d 18:39:00 left" in stream.getvalue()


def test_a_terminal_gets_one_live_line() -> None:
    code = (
        "import time, sys, threading\nfrom dseq_jepa.progress import Progress\n"
        "with Progress(4, 'DSeq', start=1) as p:\n"
        "    for _ in range(3):\n        time.sleep(0.3); p.show(loss=0.5); p.advance(images=8)\n"
        "    assert threading.active_count() == 1\n"
    )
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait() == 0
    assert b"2/4" in shown
    assert b"4/4" in shown
    assert b"images/s, loss 0.5" in shown
    assert shown.count(b"\n") == 1


def test_a_log_file_needs_no_rich() -> None:
    code = (
        "import sys; from dseq_jepa.progress import Progress\n"
        "with Progress(1, 'x') as p: p.advance()\n"
        "sys.exit('rich' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0
    assert answer.stderr == "x: 1/1, done in 0:00:00\n"

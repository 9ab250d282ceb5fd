"""`dseq-jepa status` tells running, finished, failed and killed jobs apart, from files alone."""

import fcntl
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal, encode, ends, read
from dseq_jepa.status import JobStatus, job_statuses, show

NOW = 100_000.0
MODEL = "dseq-jepa/vit-b/seed0"


def journal(results: Path, *events: str, last: float, step: str = "pretrain", points: int = 20) -> Path:
    """A job whose last line is of `last`; steps of 10 at 4 s each, of 1000."""
    folder = results / step / MODEL
    folder.mkdir(parents=True)
    lines = [{"t": last - 1000, "kind": "run", "tags": {"step": step}, "steps": 1000}]
    for i in range(1, points + 1):
        values = {"loss": 1 / i, "images_per_second": 123.4}
        lines.append({"t": last - 4.0 * (points - i), "kind": "metrics", "step": 10 * i, "values": values})
    lines += [{"t": last, "kind": "event", "name": name, "text": "step 7: it broke.\nmore"} for name in events]
    (folder / "journal.jsonl").write_text("".join(encode(line) + "\n" for line in lines))
    return folder


def only(results: Path) -> JobStatus:
    (job,) = job_statuses(results, now=NOW)
    return job


def test_a_running_job_says_how_far_how_fast_and_how_long(tmp_path: Path) -> None:
    journal(tmp_path, last=NOW - 3)
    job = only(tmp_path)
    assert (job.state, job.step, job.steps, job.age) == ("running", 200, 1000, 3)
    assert job.seconds_left == pytest.approx(800 * 0.4)
    expected = f"running   pretrain/{MODEL}  200/1,000 (20%)  123 images/s  loss 0.05  0:05:20 left  0:00:03 ago"
    assert job.line() == expected


@pytest.mark.parametrize(
    ("events", "age", "state"),
    [
        (["finished"], 5, "finished"),
        (["failed"], 5, "failed"),
        (["failed", "resumed"], 5, "running"),
        ([], 5, "running"),
        ([], 4000, "silent"),
        (["resumed"], 4000, "silent"),
    ],
)
def test_states(tmp_path: Path, events: list[str], age: float, state: str) -> None:
    journal(tmp_path, *events, last=NOW - age)
    assert only(tmp_path).state == state


def test_a_failure_is_told_with_its_first_line(tmp_path: Path) -> None:
    journal(tmp_path, "failed", last=NOW)
    assert only(tmp_path).line() == f"failed    pretrain/{MODEL}  step 7: it broke.  0:00:00 ago"


def test_a_silent_job_that_holds_its_lock_runs(tmp_path: Path) -> None:
    """Between two lines a large job may be silent for long; on this machine its lock says that it lives."""
    folder = journal(tmp_path, last=NOW - 4000)
    with (folder / ".lock").open("w") as file:
        assert only(tmp_path).state == "silent"
        fcntl.flock(file, fcntl.LOCK_EX)
        assert only(tmp_path).state == "running"
    assert only(tmp_path).state == "silent"


def test_a_result_behind_the_last_line_is_the_end(tmp_path: Path) -> None:
    folder = journal(tmp_path, last=NOW - 4000)
    (folder / "run.json").write_text("{}")
    os.utime(folder / "run.json", (NOW - 3999, NOW - 3999))
    assert only(tmp_path).state == "finished"


def test_short_jobs_without_a_journal(tmp_path: Path) -> None:
    folder = tmp_path / "score" / MODEL
    folder.mkdir(parents=True)
    assert job_statuses(tmp_path) == []
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert only(tmp_path).state == "running"
    (folder / "scores.json").write_text(json.dumps({}))
    assert only(tmp_path).state == "finished"


def test_running_jobs_come_first_then_what_needs_a_look(tmp_path: Path) -> None:
    journal(tmp_path, "finished", last=NOW, step="a")
    journal(tmp_path, "failed", last=NOW, step="b")
    journal(tmp_path, last=NOW - 9000, step="c")
    journal(tmp_path, last=NOW, step="d")
    assert [job.state for job in job_statuses(tmp_path, now=NOW)] == ["running", "failed", "silent", "finished"]


def test_the_ends_of_a_long_journal_are_read_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as open_journal:
        open_journal.start({}, steps=3000)
        for step in range(3000):
            open_journal.metrics(step, {"loss": step / 7})
    with path.open("a") as file:
        file.write('{"t": 1, "kind": "met')  # a line that is being written
    first, last = ends(path, span=2000)
    lines = list(read(path))
    assert first == lines[: len(first)]
    assert last == lines[-len(last) :]
    assert 10 < len(last) < 40


def test_the_summary_counts(tmp_path: Path) -> None:
    journal(tmp_path, "finished", last=time.time(), step="a")
    journal(tmp_path, last=time.time(), step="b")
    said = io.StringIO()
    show(tmp_path, watch=False, stream=said)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith(f"running   b/{MODEL}")
    assert lines[-1] == f"{tmp_path}: 1 running, 1 finished"


def test_watching_shows_a_step_that_came_later_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    folder = journal(tmp_path, last=time.time())
    code = "import sys, dseq_jepa.status as s; from pathlib import Path\n"
    code += "s.WATCH_SECONDS = 0.2; s.show(Path(sys.argv[1]), watch=True)"
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment, bufsize=0
    )
    assert process.stdout is not None
    seen = b""
    while b"200/1,000" not in seen:
        seen += process.stdout.read(1000)
    with (folder / "journal.jsonl").open("a") as file:
        file.write(encode({"t": time.time(), "kind": "metrics", "step": 210, "values": {"loss": 0.1}}) + "\n")
    while b"210/1,000" not in seen:
        seen += process.stdout.read(1000)
    process.send_signal(2)
    assert process.wait(10) == 0
    process.stdout.close()


def test_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder; nothing has run yet"):
        job_statuses(tmp_path / "none")

"""The journal keeps every line once, through kills, resumes and full disks."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseq_jepa.errors import UserError
from dseq_jepa.journal import Journal, read
from dseq_jepa.masking import masked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read(path) if line["kind"] == "metrics"]


def test_lines_are_read_back_as_written(path: Path) -> None:
    with Journal(path) as journal:
        journal.start({"method": "dseq-jepa"}, steps=100)
        journal.params({"recipe": {"epochs": 3}, "crop": [0.3, 1.0], "timm": None})
        journal.metrics(10, {"loss": np.float32(0.5), "rank": 3})
        journal.event("saved", step=10, files=["a", "b"])
    run, params, metrics, event = read(path)
    assert (run["kind"], run["tags"], run["steps"]) == ("run", {"method": "dseq-jepa"}, 100)
    assert params["values"] == {"recipe": {"epochs": 3}, "crop": [0.3, 1.0], "timm": None}
    assert (metrics["step"], metrics["values"]) == (10, {"loss": 0.5, "rank": 3.0})
    assert (event["name"], event["step"], event["files"]) == ("saved", 10, ["a", "b"])
    assert 0 <= event["t"] - run["t"] < 5


def test_every_line_is_valid_json_and_not_finite_numbers_come_back(path: Path) -> None:
    with Journal(path) as journal:
        journal.metrics(0, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0})
        journal.event("stopped", losses=[1.0, math.nan])
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    metrics, event = read(path)
    assert math.isnan(metrics["values"].pop("a"))
    assert metrics["values"] == {"b": math.inf, "c": -math.inf, "d": 1.0}
    assert event["losses"][0] == 1.0
    assert math.isnan(event["losses"][1])


def write_steps(journal: Journal, count: int) -> None:
    for step in range(count):
        journal.metrics(step, {"loss": 1})


@given(st.lists(st.floats(), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_every_float_survives_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("floats") / "j"
    with Journal(path) as journal:
        journal.metrics(1, {str(i): value for i, value in enumerate(values)})
    (line,) = read(path)
    back = list(line["values"].values())
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(back, values, strict=True))


def test_a_resumed_run_holds_every_step_once(path: Path) -> None:
    with Journal(path) as journal:
        journal.start({"host": "a"})
        for step in range(10):
            journal.metrics(step, {"loss": step})
        position = journal.sync()
        for step in range(10, 17):
            journal.metrics(step, {"loss": step})
    with Journal.resume(path, position) as journal:
        journal.start({"host": "b"})
        for step in range(10, 20):
            journal.metrics(step, {"loss": step})
    assert steps(path) == list(range(20))
    assert [line["tags"] for line in read(path) if line["kind"] == "run"] == [{"host": "a"}]
    assert [line["tags"] for line in read(path) if line.get("name") == "resumed"] == [{"host": "b"}]


def test_position_zero_starts_over(path: Path) -> None:
    with Journal.resume(path, 0) as journal:
        journal.start({"attempt": "1"})
        journal.metrics(0, {"loss": 1})
    with Journal.resume(path, 0) as journal:
        journal.start({"attempt": "2"})
    assert [line["kind"] for line in read(path)] == ["run"]


@pytest.mark.parametrize("half", [b'{"t":1,"kind":"metr', b"\0" * 70_000, b"{}"])
def test_a_half_written_last_line_is_skipped_and_overwritten(path: Path, half: bytes) -> None:
    with Journal(path) as journal:
        journal.metrics(0, {"loss": 1})
    with path.open("ab") as file:
        file.write(half)
    assert steps(path) == [0]
    with Journal(path) as journal:
        journal.metrics(1, {"loss": 1})
    assert steps(path) == [0, 1]


def test_a_corrupt_line_is_named(path: Path) -> None:
    with Journal(path) as journal:
        for step in range(3):
            journal.metrics(step, {"loss": 1})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"[1, 2]\n" + lines[2])
    with pytest.raises(UserError, match=r"journal.jsonl: line 2 is not a JSON object"):
        list(read(path))


def test_a_position_that_does_not_fit_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.metrics(0, {"loss": 1})
        end = journal.sync()
    for position in (end + 10, end - 3):
        with pytest.raises(UserError, match="do not fit the saved state"):
            Journal.resume(path, position)
    with pytest.raises(UserError, match="do not fit"):
        Journal.resume(path.with_name("missing"), 5)


def test_a_full_disk_raises_once_and_keeps_whole_lines(path: Path) -> None:
    """The kernel refuses bytes beyond a file size limit the way it refuses them on a full disk."""
    journal = Journal(path)
    journal.start({"step": "pretrain"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(UserError, match=r"journal\.jsonl: cannot be written"):
            write_steps(journal, 100)
        journal.event("failed")  # dropped: the first error is the one to report
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(UserError, match="cannot be written"):
        journal.sync()
    assert path.read_bytes().endswith(b"\n")
    assert steps(path) == list(range(len(steps(path))))
    assert len(steps(path)) > 2


def test_no_space_left_says_so() -> None:
    journal = Journal(Path("/dev/full"))
    with pytest.raises(UserError, match="/dev/full: cannot be written: the disk is full"):
        journal.metrics(0, {"loss": 1})


def test_lines_survive_a_kill_without_any_flush(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from dseq_jepa.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(50): journal.metrics(step, {'loss': 1})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -signal.SIGKILL
    assert steps(path) == list(range(50))


def test_an_event_cannot_replace_the_journals_own_fields(path: Path) -> None:
    with Journal(path) as journal, pytest.raises(ValueError, match="'kind'"):
        journal.event("x", kind="metrics")


def test_secrets_are_masked_and_numbers_are_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "1111")
    with Journal(path) as journal:
        journal.params({"server": "https://me:hunter2@host/x", "epochs": 1111, "list": ["sql://u:p@h/db", "1111"]})
        journal.metrics(1111, {"loss": 1111})
    params, metrics = read(path)
    assert params["values"] == {"server": "https://***@host/x", "epochs": 1111, "list": ["sql://***@h/db", "***"]}
    assert (metrics["step"], metrics["values"]) == (1111, {"loss": 1111})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host/x?a=b@c", "http://***@host/x?a=b@c"),
        ("http://me:hunt@r2@host", "http://***@host"),
        ("http://me:hunt'r2@host", "http://***@host"),
        ("tried http://me:hunter2@a/x, then http://b:hunter2@c", "tried http://***@a/x, then http://***@c"),
        ('{"uri":"http://host","mail":"me@host"}', '{"uri":"http://host","mail":"me@host"}'),
        ("http://host/folder/me@v1 you@there", "http://host/folder/me@v1 you@there"),
    ],
)
def test_a_uri_shows_nobody_who_logs_in(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_importing_it_is_light() -> None:
    code = (
        "import sys, dseq_jepa.journal; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0

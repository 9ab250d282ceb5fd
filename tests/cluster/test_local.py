"""The same launcher without a cluster: jobs are processes of this machine.

pytest tests/cluster/test_local.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dseq_jepa.fence import Claims
from tests.training.runs import job, write_pictures

ROOT = Path(__file__).parents[2]


def launch(cluster: str, *words: str, options: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "dseq_jepa", "launch", "--cluster", cluster, *options, "--", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **variables}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def scores(folder: Path) -> Path:
    """What select reads."""
    path = folder / "scores.json"
    path.write_text("no json")
    return path


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_a_failure_has_its_status_and_its_traceback(cluster: str, tmp_path: Path) -> None:
    launched = launch(cluster, "select", "--scores", str(scores(tmp_path)), "--out", str(tmp_path / "out"))
    said, _ = launched.communicate(timeout=60)
    assert launched.returncode == 1, said
    assert "JSONDecodeError" in said
    assert "failed: rank 0" in said


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_the_verb_runs_with_the_interpreter_of_another_environment(cluster: str, tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/mark\nexec {sys.executable} "$@"\n')
    other.chmod(0o755)
    words = ("dseq-jepa", "select", "--scores", str(scores(tmp_path)), "--out", str(tmp_path / "out"))
    launched = launch(cluster, *words, options=("--python", os.path.relpath(other, ROOT)))
    said, _ = launched.communicate(timeout=60)
    assert "JSONDecodeError" in said
    (mark,) = (tmp_path / "mark").read_text().splitlines()
    assert mark.startswith("-m dseq_jepa select --scores")


def test_an_interpreter_that_is_not_there_waits_in_no_queue(tmp_path: Path) -> None:
    launched = launch("local", "select", "--scores", "x", "--out", str(tmp_path), options=("--python", "pyhton"))
    said, _ = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert "--python pyhton: there is no such program" in said


def test_somebody_is_told_of_a_failure_at_once(tmp_path: Path) -> None:
    news, out = tmp_path / "news", tmp_path / "out"
    variables = {"DSEQ_NOTIFY": f'echo "$DSEQ_EVENT" >> {news}'}
    launch("local", "select", "--scores", str(scores(tmp_path)), "--out", str(out), **variables).communicate(timeout=60)
    options = ("--nodes", "2", "--tasks", "1")
    launch("local", "select", "--scores", "x", "--out", "y", options=options, **variables).communicate(timeout=60)
    failed, refused = news.read_text().splitlines()
    assert failed == f"dseq-jepa select for {out} failed with status 1"
    assert refused == "dseq-jepa select for y failed: --cluster local is one machine; --nodes 2 needs slurm"


@pytest.mark.slow
def test_a_local_job_outlives_its_launcher_is_found_again_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    settings = job(pictures, epochs=200)
    out = tmp_path / "out"
    words = ["pretrain", "--settings", settings.to_json(), "--out", str(out)]
    first = launch("local", *words)
    wait_for(lambda: (out / "journal.jsonl").exists())
    first.kill()
    first.wait()  # its output stays open: the job has it too
    second = launch("local", *words, DSEQ_NOTIFY=f"touch {tmp_path}/news")
    attached = second.stdout.readline()  # Python itself would be interrupted before that
    wait_for(lambda: (out / "journal.jsonl").read_text().count('"metrics"') > 20)
    starts = [claim for claim in Claims.beside(out).all() if claim.content["kind"] == "start"]
    assert len(starts) == 1
    second.send_signal(signal.SIGINT)
    said, _ = second.communicate(timeout=60)
    assert second.returncode == 130, said
    assert "runs or waits already" in attached
    assert not (tmp_path / "news").exists(), "whoever presses Ctrl-C needs no news of it"
    last = json.loads((out / "journal.jsonl").read_text().splitlines()[-1])
    assert last["name"] == "stopped"
    time.sleep(1)
    assert not subprocess.run(["pgrep", "-f", str(out)], capture_output=True, check=False).stdout


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)

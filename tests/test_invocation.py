"""A run of the workflow is a journal of its own: which jobs ran, how long, what failed and what it said last."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dseq_jepa.journal import read

SNAKEFILE = """
from pathlib import Path
from dseq_jepa.invocation import Invocation

rule all:
    input: "good.txt", "bad-7.txt"

rule good:
    output: "good.txt"
    shell: "sleep 0.3; echo $DSEQ_WORKFLOW > {output}"

rule bad:
    input: "good.txt"
    output: "bad-{number}.txt"
    log: "logs/bad-{number}.log"
    shell: "(seq 100; echo the reason; FAIL) &> {log} && touch {output}"

onstart:
    INVOCATION = globals().setdefault("INVOCATION", Invocation(Path("results"), "demo"))
onsuccess:
    INVOCATION.end(failed=False)
onerror:
    INVOCATION.end(failed=True)
"""


def run(folder: Path, fail: bool, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "Snakefile").write_text(SNAKEFILE.replace("FAIL", "false" if fail else "true"))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "DSEQ_WORKFLOW"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)


def journal(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "results" / "workflow").glob("*/journal.jsonl")
    return list(read(path))


def named(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("name") == name]


@pytest.mark.slow
def test_jobs_failures_and_durations_are_written_down(tmp_path: Path) -> None:
    assert run(tmp_path, True, "--config", "uri=https://me:secret@host").returncode == 1
    lines = journal(tmp_path)
    tags = lines[0]["tags"]
    assert (tags["step"], tags["experiment"]) == ("workflow", "demo")
    assert "--config uri=https://***@host" in tags["command"]
    assert (tmp_path / "good.txt").read_text().strip() == tags["workflow"]  # jobs know who asked for them
    assert [line["rule"] for line in named(lines, "job_began")] == ["good", "bad"]
    (good,) = named(lines, "job_finished")
    assert (good["rule"], 0.3 <= good["seconds"] < 20) == ("good", True)
    (bad,) = named(lines, "job_failed")
    (tail,) = bad["logs"].values()
    assert tail.splitlines()[-1] == "the reason"
    assert tail.splitlines()[0] == "72"
    assert lines[-1]["name"] == "failed"
    assert "secret" not in json.dumps(lines)


@pytest.mark.slow
def test_a_workflow_that_ends_well_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, False).returncode == 0
    lines = journal(tmp_path)
    assert [line["values"]["jobs_finished"] for line in lines if line["kind"] == "metrics"] == [1, 2, 3]
    assert lines[-1]["name"] == "finished"


@pytest.mark.slow
def test_a_journal_that_cannot_be_written_does_not_stop_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("not a folder")
    answer = run(tmp_path, False)
    assert answer.returncode == 0, answer.stderr
    assert "workflow journal: " in answer.stderr
    assert "The workflow goes on without it." in answer.stderr

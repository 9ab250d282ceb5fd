"""The whole workflow on Slurm, its controller killed in the middle, gives the files of a local run, bit for bit.

pytest tests/slurm/test_workflow.py
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dseq_jepa.fence import Claims
from tests.slurm.cluster import slurm, until
from tests.workflow.project import ROOT, Project, replaced

MICRO = replaced((ROOT / "tests" / "workflow" / "micro.yaml").read_text(), ("RESULTS", "results"))
RESULTS = Path("results/micro")
TARGET = "table3"
SAME = (
    "pretrain/*/*/*/checkpoint-*.safetensors",
    "export/*/*/*/encoder.safetensors",
    "evaluate/*/*/*/*/records.csv.gz",
)
SAME += ("tables/table3.csv", "tables/table3.tex")


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for pattern in SAME for p in folder.glob(pattern)}
    assert len(found) >= 6, found.keys()
    return found


def test_the_slurm_profile_equals_a_local_run_though_its_controller_is_killed(state: Path, tmp_path: Path) -> None:
    del state
    local = Project.at(tmp_path / "local", MICRO)
    done = local.run(TARGET)
    assert done.returncode == 0, done.stdout
    project = Project.at(tmp_path / "slurm", MICRO)
    on_slurm = [TARGET, "--workflow-profile", "workflow/profiles/slurm"]
    first = subprocess.Popen(
        project.command(*on_slurm), cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    results = project.folder / RESULTS
    pretraining = Claims.beside(results / "pretrain/dseq-jepa/vit-micro/seed0")

    def started() -> bool:
        assert first.poll() is None, first.communicate()[0]
        return any(claim.content["kind"] == "start" for claim in pretraining.all())

    until(started, "the pre-training to start on Slurm", 300)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert slurm("squeue", "-h", "-t", "RUNNING", "-o", "%j").startswith("dseq-pretrain"), "the job lives on"
    done = project.run(*on_slurm)
    assert done.returncode == 0, done.stdout
    assert files(results) == files(local.folder / RESULTS)
    chains = [path for path in results.rglob(".launch/*") if path.is_dir()]
    assert len(chains) >= 8, "every command but the seconds-long ones went through Slurm"
    for folder in chains:
        kinds = [claim.content["kind"] for claim in Claims(folder).all()]
        assert kinds == ["submission", "start"], f"{folder}: exactly one job, started once: {kinds}"
    resumed = [json.loads(line) for line in (results / "pretrain/dseq-jepa/vit-micro/seed0/journal.jsonl").open()]
    assert not [line for line in resumed if line.get("name") == "resumed"], "the job was never disturbed"
    nothing = local.run(TARGET, "--dry-run")
    assert "Nothing to be done" in nothing.stdout
    nothing = project.run(TARGET, "--dry-run")
    assert "Nothing to be done" in nothing.stdout, "without the profile, nothing would run again"


@pytest.mark.parametrize("profile", ["slurm-plugin"])
def test_the_official_plugin_runs_the_same_rules(profile: str, state: Path, tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="slurm: snakemake-executor-plugin-slurm is missing")
    del state
    project = Project.at(tmp_path, MICRO)
    target = str(RESULTS / "fingerprints" / "clevr.json")
    done = project.run(target, "--workflow-profile", f"workflow/profiles/{profile}", "--latency-wait", "5", "--verbose")
    assert done.returncode == 0, done.stdout
    assert "--nodes=1" in done.stdout
    assert (project.folder / target).exists()


def test_a_warning_before_the_limit_is_a_retry_that_goes_on_under_the_official_plugin(
    state: Path, tmp_path: Path
) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="slurm: snakemake-executor-plugin-slurm is missing")
    del state
    project = Project.at(
        tmp_path, replaced(MICRO, ("epochs: 2\n    batch_size: 16", "epochs: 300\n    batch_size: 16"))
    )
    out = RESULTS / "pretrain/dseq-jepa/vit-micro/seed0"
    command = project.command(
        str(out / "run.json"), "--workflow-profile", "workflow/profiles/slurm-plugin", "--verbose"
    )
    running = subprocess.Popen(
        command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    journal = project.folder / out / "journal.jsonl"
    until(lambda: journal.exists() and journal.read_text().count('"metrics"') > 5, "a pre-training at work", 300)
    jobs = [line.split() for line in slurm("squeue", "-h", "-o", "%A %k %Z").splitlines()]
    (job,) = [number for number, comment, folder in jobs if "pretrain" in comment and folder == str(project.folder)]
    slurm("scancel", "--signal=TERM", job)  # as Slurm does before a limit
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "--signal=TERM@120" in said
    assert '"resumed"' in journal.read_text()

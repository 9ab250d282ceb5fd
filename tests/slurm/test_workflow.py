"""The whole workflow on Slurm, with either profile, gives the tables and files of a local run, bit for bit, also when
its controller is killed in the middle; Ctrl-C on it leaves no job, and the same command goes on.

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
from tests.workflow.project import NOTHING, ROOT, Project, replaced

pytestmark = [pytest.mark.timeout(900), pytest.mark.usefixtures("state")]
MICRO = replaced(
    (ROOT / "tests" / "workflow" / "micro.yaml").read_text(),
    ("RESULTS", "results"),
    ("epochs: 2\n    batch_size: 16", "epochs: 100\n    batch_size: 16"),
)
"""A pre-training outlives the seconds in which a killed workflow is started again."""
RESULTS = Path("results/micro")
MODEL = "dseq-jepa/vit-micro/seed0"
OUT = RESULTS / "pretrain" / MODEL
TARGET = "tables"
SLURM = ("--workflow-profile", "workflow/profiles/slurm")
PLUGIN = ("--workflow-profile", "workflow/profiles/slurm-plugin", "--verbose")
PLUGIN += ("--slurm-init-seconds-before-status-checks", "3")  # jobs here last seconds, not hours
SAME = (
    "pretrain/*/*/*/checkpoint-*.safetensors",
    "export/*/*/*/encoder.safetensors",
    "evaluate/*/*/*/*/records.csv.gz",
    "tables/*.*",
)


def files(folder: Path) -> dict[str, bytes]:
    """What must be the same wherever the jobs ran: kept and chosen weights, every answer of a probe, all tables."""
    found = {str(p.relative_to(folder)): p.read_bytes() for pattern in SAME for p in folder.glob(pattern)}
    assert len(found) == 2 * 2 + 2 + 2 * 2 + 2 * 4, found.keys()
    return found


def started(project: Project, *arguments: str) -> subprocess.Popen[str]:
    """A workflow at work, alone in its process group, as a terminal starts it."""
    return subprocess.Popen(
        project.command(*arguments), cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def pretraining(project: Project, *profile: str) -> subprocess.Popen[str]:
    """A workflow whose only target is a pre-training, which has some steps behind it."""
    running, journal = started(project, str(OUT / "run.json"), *profile), project.folder / OUT / "journal.jsonl"
    until(lambda: journal.exists() and journal.read_text().count('"metrics"') > 5, "a pre-training at work", 300)
    return running


def queued(project: Project) -> list[str]:
    """Jobs of a project that wait, run or end."""
    jobs = slurm("squeue", "-h", "-t", "PENDING,RUNNING,COMPLETING", "-o", "%A %Z").splitlines()
    return [job for job in jobs if job.split(maxsplit=1)[1].startswith(str(project.folder))]


def require_plugin() -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="slurm: snakemake-executor-plugin-slurm is missing")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same workflow without a cluster."""
    project = Project.at(tmp_path_factory.mktemp("local"), MICRO)
    done = project.run(TARGET)
    assert done.returncode == 0, done.stdout
    return project


def test_the_slurm_profile_equals_a_local_run_though_its_controller_is_killed(local: Project, tmp_path: Path) -> None:
    project = Project.at(tmp_path, MICRO)
    first = started(project, TARGET, *SLURM)
    results = project.folder / RESULTS
    claims = Claims.beside(project.folder / OUT)

    def at_work() -> bool:
        assert first.poll() is None, first.communicate()[0]
        return any(claim.content["kind"] == "start" for claim in claims.all())

    until(at_work, "the pre-training to start on Slurm", 300)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert "dseq-pretrain" in slurm("squeue", "-h", "-t", "RUNNING", "-o", "%j"), "the job lives on"
    done = project.run(TARGET, *SLURM)
    assert done.returncode == 0, done.stdout
    assert files(results) == files(local.folder / RESULTS)
    chains = [path for path in results.rglob(".launch/*") if path.is_dir()]
    assert len(chains) >= 14, "every command but the seconds-long ones went through Slurm"
    for folder in chains:
        kinds = [claim.content["kind"] for claim in Claims(folder).all()]
        assert kinds == ["submission", "start"], f"{folder}: exactly one job, started once: {kinds}"
    resumed = [json.loads(line) for line in (results / "pretrain" / MODEL / "journal.jsonl").open()]
    assert not [line for line in resumed if line.get("name") == "resumed"], "the job was never disturbed"
    assert NOTHING in local.run(TARGET, "--dry-run").stdout
    assert NOTHING in project.run(TARGET, "--dry-run").stdout, "without the profile, nothing would run again"


def test_the_official_plugin_gives_the_tables_of_a_local_run(local: Project, tmp_path: Path) -> None:
    require_plugin()
    project = Project.at(tmp_path, MICRO)
    done = project.run(TARGET, *PLUGIN)
    assert done.returncode == 0, done.stdout
    assert "--nodes=1" in done.stdout
    assert done.stdout.count("has been submitted with SLURM jobid") >= 14
    assert files(project.folder / RESULTS) == files(local.folder / RESULTS)
    assert NOTHING in project.run(TARGET, "--dry-run").stdout


def test_a_warning_before_the_limit_is_a_retry_that_goes_on_under_the_official_plugin(tmp_path: Path) -> None:
    require_plugin()
    project = Project.at(tmp_path, MICRO)
    running = pretraining(project, *PLUGIN)
    jobs = [line.split() for line in slurm("squeue", "-h", "-o", "%A %k %Z").splitlines()]
    (job,) = [number for number, comment, folder in jobs if "pretrain" in comment and folder == str(project.folder)]
    slurm("scancel", "--signal=TERM", job)  # as Slurm does before a limit
    said, _ = running.communicate(timeout=300)
    assert running.returncode == 0, said
    assert "--signal=TERM@120" in said
    assert '"resumed"' in (project.folder / OUT / "journal.jsonl").read_text()


@pytest.mark.parametrize("profile", [SLURM, PLUGIN], ids=["slurm", "slurm-plugin"])
def test_ctrl_c_on_the_workflow_leaves_no_job_and_the_same_command_goes_on(
    profile: tuple[str, ...], tmp_path: Path
) -> None:
    if profile is PLUGIN:
        require_plugin()
    project = Project.at(tmp_path, MICRO)
    running = pretraining(project, *profile)
    assert queued(project)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode != 0, said
    until(lambda: not queued(project), "no job of the project", 60)
    assert not (project.folder / OUT / "run.json").exists()
    assert '"resumed"' not in (project.folder / OUT / "journal.jsonl").read_text()
    done = project.run(str(OUT / "run.json"), *profile)
    assert done.returncode == 0, done.stdout
    assert '"resumed"' in (project.folder / OUT / "journal.jsonl").read_text()

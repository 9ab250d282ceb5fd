"""The clusters' profiles give every job of the paper the time that the plan expects, and all its ranks their room.

pytest tests/workflow/test_profiles.py
"""

import re
from pathlib import Path

import pytest
import yaml

from dseq_jepa.cluster.order import Resources
from dseq_jepa.config import Experiment, load
from dseq_jepa.plan import plan
from tests.workflow.project import Project

ROOT = Path(__file__).parents[2]
KINDS = ("probe", "finetune", "detect", "segment", "cost")


def step_of(rule: str, experiment: Experiment) -> set[str]:
    """The plan's steps that a rule runs."""
    return {f"evaluate/{group}" for group in experiment.groups_of_kind(rule)} if rule in KINDS else {rule}


@pytest.mark.parametrize("rule", ["pretrain", "score", *KINDS])
def test_limits_and_starts_are_twice_the_plan(rule: str) -> None:
    experiment = load(ROOT / "configs" / "paper.yaml")
    jobs = plan(experiment, ROOT / "configs" / "reported_values.csv").jobs
    expected = max(job.cost.hours or 0 for job in jobs if job.step in step_of(rule, experiment))
    profile = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    given = profile["default-resources"] | profile["set-resources"].get(rule, {})
    starts = given.get("max_requeues", Resources().max_requeues) + 1
    assert given["runtime"] / 60 * starts > 2 * expected


@pytest.mark.parametrize(("profile", "gpus"), [("default", 1), ("slurm", 8), ("slurm-plugin", 8)])
def test_jobs_reserve_what_all_their_ranks_take(profile: str, gpus: int, tmp_path: Path) -> None:
    """Eight ranks with eight threads and twelve loading processes each; a machine with fewer GPUs gives what it has.

    Snakemake's own cores are not taken by it: jobs that are launched elsewhere would wait for one another.
    """
    project = Project.at(tmp_path, (ROOT / "configs" / "paper.yaml").read_text())
    asked = ("tables", "--dry-run", "--workflow-profile", f"workflow/profiles/{profile}")
    shown = project.run(*asked).stdout
    for rule in ("pretrain", "score", *KINDS):
        jobs = re.findall(rf"^rule {rule}:\n((?: .*\n)+)", shown, re.MULTILINE)
        assert jobs, rule
        for job in jobs:
            assert f"gpu={gpus}" in job
            assert "cpus_per_task=160" in job
            assert int((re.search(r"threads: (\d+)", job) or [0, 1])[1]) <= 8

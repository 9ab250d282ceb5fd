"""The cluster's profile gives every job of the paper the time that the plan expects.

pytest tests/workflow/test_profiles.py
"""

from pathlib import Path

import pytest
import yaml

from dseq_jepa.cluster.order import Resources
from dseq_jepa.config import Experiment, load
from dseq_jepa.plan import plan

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

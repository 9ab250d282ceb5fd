"""What is asked of a scheduler: from the workflow's resources and from the command's own settings.

pytest tests/cluster/test_order.py
"""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dseq_jepa.cli import app
from dseq_jepa.cluster.order import Needs, Order, Resources, needs_of, place_of, prefix, sbatch_parameters
from dseq_jepa.config import load
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import probe, tuning
from dseq_jepa.evaluation.saving import PROBE_SECONDS, TUNING_SECONDS
from dseq_jepa.jobs import evaluate_job, pretrain_job

ROOT = Path(__file__).parents[2]


def test_without_a_launcher_nothing_stands_before_a_command() -> None:
    assert prefix({"mem_mb": 100, "runtime": 5}) == ""
    assert prefix({"launcher": "none", "runtime": 5}) == ""


def test_jobs_of_this_machine_are_launched_too_where_they_share_its_gpus() -> None:
    assert prefix({"launcher": "local", "runtime": 1440}) == "dseq-jepa launch --cluster local --minutes 1440 --"


def test_resources_become_the_options_that_launch_has() -> None:
    resources = {"launcher": "slurm", "runtime": 90, "mem_mb": 2000, "slurm_partition": "gpu h", "nodes": 2, "qos": ""}
    words = shlex.split(prefix(resources))
    assert words[:2] == ["dseq-jepa", "launch"]
    assert words[-1] == "--"
    assert dict(zip(words[2:-1:2], words[3:-1:2], strict=True)) == {
        "--cluster": "slurm", "--minutes": "90", "--mem-mb": "2000", "--partition": "gpu h", "--nodes": "2",
    }  # fmt: skip
    shown = CliRunner().invoke(app, ["launch", "--help"], env={"COLUMNS": "200"}).output
    assert all(word in shown for word in words if word.startswith("--") and word != "--")


PROFILE = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"
VALUES = re.findall(r"^ +(?:# )?(\w+): ([\w.]+)(?: +#.*)?$", PROFILE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("resource", "value"), sorted(set(VALUES) - {("launcher", "none")}))
def test_every_value_that_the_profile_shows_is_accepted(
    resource: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that stand there as comments."""
    monkeypatch.setattr("dseq_jepa.cluster.launch.launch", lambda order: order.check() or 0)
    words = shlex.split(prefix({"launcher": "slurm", resource: value}))
    command = ["pretrain", "--config", str(ROOT / "configs" / "paper.yaml"), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, [*words[1:], *command])
    assert done.exit_code == 0, done.output


def test_ranks_gpus_and_cores_come_from_the_job() -> None:
    experiment = load(ROOT / "configs" / "paper.yaml")
    method, architecture = next(iter(experiment.methods)), next(iter(experiment.architectures))
    settings = pretrain_job(experiment, method, architecture, 0).to_json()
    saves = experiment.recipes[experiment.architectures[architecture].recipe].save_every_minutes
    compute = experiment.compute
    expected = Needs(compute.ranks, True, compute.threads + experiment.loading.workers, saves)
    assert needs_of("pretrain", {"settings": settings}) == expected
    named = {"config": ROOT / "configs" / "paper.yaml", "seed": None, "architecture": architecture}
    assert needs_of("pretrain", named) == expected
    assert needs_of("select", {"out": Path("x"), "scores": Path("y")}) == Needs()


@pytest.mark.parametrize(
    ("verb", "group", "minutes"),
    [("probe", "inat21", 3), ("finetune", "finetune", 10), ("segment", "segment", 10), ("detect", "detect", 10)],
)
def test_a_limit_below_the_interval_of_an_evaluations_states_is_refused(verb: str, group: str, minutes: int) -> None:
    experiment = load(ROOT / "configs" / "paper.yaml")
    settings = evaluate_job(experiment, group, "dseq-jepa", "vit-b16", 0).to_json()
    named = {"config": ROOT / "configs" / "paper.yaml", "seed": None, "architecture": "vit-b16"}
    for params in ({"settings": settings}, named):
        saves = needs_of(verb, params).save_minutes
        Order((verb,), Path("x"), Resources(minutes + 1), save_minutes=saves).check()
        with pytest.raises(
            UserError, match=rf"not longer than the {minutes} minutes between saved states.*the limit\.$"
        ):
            Order((verb,), Path("x"), Resources(minutes), save_minutes=saves).check()
    assert needs_of("cost", named).save_minutes is None
    assert (PROBE_SECONDS, TUNING_SECONDS) == (probe.SAVE_SECONDS, tuning.SAVE_SECONDS)


def test_a_command_claims_what_it_writes() -> None:
    assert place_of({"out": Path("a/b")}, ("select",)) == Path("a/b")
    first, second = (place_of({"out": None, "results": Path("r")}, ("tables", name)) for name in "ab")
    assert first != second
    assert first.parent == Path("r")


def test_one_node_clusters_refuse_more() -> None:
    with pytest.raises(UserError, match="--nodes 2 needs slurm"):
        Order(("select",), Path("x"), Resources(nodes=2), "local").check()


def test_gpus_are_asked_for_only_where_they_are_needed() -> None:
    order = Order(("select",), Path("x"), Resources(tasks=8, gpus=8, constraint="h200"))
    assert sbatch_parameters(order, "n")["gpus_per_node"] == 8
    assert sbatch_parameters(order, "n")["slurm_constraint"] == "h200"
    assert "gpus_per_node" not in sbatch_parameters(Order(("select",), Path("x")), "n")


def test_ranks_get_the_cores_that_were_asked_for_and_one_gpu_each() -> None:
    order = Order(("select",), Path("x"), Resources(tasks=8, gpus=8, cpus=20))
    order.check()
    assert sbatch_parameters(order, "n")["cpus_per_task"] == 20
    assert "--cpus-per-task=20" in sbatch_parameters(order, "n")["slurm_srun_args"], "srun does not ask sbatch"
    with pytest.raises(UserError, match=r"--gpus 4: 8 processes of a node need one GPU each"):
        Order(("select",), Path("x"), Resources(tasks=8, gpus=4)).check()

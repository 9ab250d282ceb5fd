"""A global batch gives the same step on one rank and on two, contrastive statistics included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dseq_jepa.methods.settings import RegionSettings
from dseq_jepa.training.loop import checkpoint_name, pretrain
from tests.training.ranks import step
from tests.training.runs import DSEQ, METHODS, job
from tests.training.test_loop import ROOT, metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def torchrun(ranks: int, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_two_ranks_give_the_losses_and_gradients_of_one(pictures: Path, tmp_path: Path) -> None:
    jobs = {method: job(pictures, method) for method in METHODS}
    gradcam = {"method": DSEQ.model_copy(update={"regions": RegionSettings(min_patches=2, saliency="gradcam")})}
    jobs["fully sharded"] = job(pictures, sharding="fsdp")
    jobs["Grad-CAM"] = job(pictures).model_copy(update=gradcam)
    jobs["Grad-CAM, fully sharded"] = job(pictures, sharding="fsdp").model_copy(update=gradcam)
    torchrun(2, "tests.training.ranks", str(tmp_path / "two"), *(f"{n}={j.to_json()}" for n, j in jobs.items()))
    for name, settings in jobs.items():
        step(settings, tmp_path / "one" / name)
        one, two = (torch.load(tmp_path / ranks / name / "step.pt", weights_only=True) for ranks in ("one", "two"))
        torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-5, atol=1e-6)
        assert two["gradients"].keys() == one["gradients"].keys()
        for parameter, gradient in one["gradients"].items():
            torch.testing.assert_close(two["gradients"][parameter], gradient, rtol=1e-5, atol=1e-5, msg=parameter)


@pytest.mark.parametrize(
    ("method", "sharding"), [("dseq-jepa", "none"), ("dseq-jepa", "fsdp"), ("dseq-c-jepa", "none")]
)
def test_a_whole_run_on_two_ranks_follows_the_run_on_one(
    method: str, sharding: str, pictures: Path, tmp_path: Path
) -> None:
    settings = job(pictures, method, sharding=sharding)
    pretrain(settings, tmp_path / "one")
    torchrun(2, "tests.training.runs", str(pictures), str(tmp_path / "two"), settings.to_json())
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert one.keys() == two.keys()
    for number, values in one.items():
        assert two[number]["loss"] == pytest.approx(values["loss"], rel=1e-3), f"step {number}"
        assert two[number]["regions_per_image"] == pytest.approx(values["regions_per_image"], rel=0.05)
    ours, theirs = (load_file(tmp_path / name / checkpoint_name(100)) for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0.02, atol=5e-3, msg=name)


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_one_ranks_gradient_that_is_no_number_stops_all_ranks_before_anything_is_saved(
    sharding: str, pictures: Path, tmp_path: Path
) -> None:
    settings = job(pictures, sharding=sharding)
    torchrun(2, "tests.training.poisoned", str(tmp_path), "5", settings.to_json())
    for rank in range(2):
        assert (tmp_path / f"said-by-{rank}.txt").read_text().startswith("step 5: a gradient, but not the loss, became")
    assert not list((tmp_path / "state" / settings.digest).glob("checkpoint-*"))


def test_the_configured_number_of_ranks_is_started_by_the_command_itself(pictures: Path, tmp_path: Path) -> None:
    settings = job(pictures, epochs=1)
    settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"ranks": 2})})
    command = [sys.executable, "-m", "dseq_jepa", "pretrain", "--settings", settings.to_json(), "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run.json").read_text())["ranks"] == 2

"""Whole fine-tunings on tiny pictures."""

import csv
import gzip
import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dseq_jepa.data.loaders import Batch
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.errors import StoppedError, UserError
from dseq_jepa.evaluation.finetune import FinetuneTask, finetune
from dseq_jepa.evaluation.settings import FinetuneSettings
from dseq_jepa.training.distributed import World
from tests.evaluation.pictures import export, make_imagenet
from tests.evaluation.tuned import (
    killed_after,
    logged,
    result_of,
    same_outcome,
    same_weights,
    start,
    tuned_job,
    weights_noted,
)
from tests.models.checkpoints import encoder

GENTLE: dict[str, Any] = {
    "epochs": 10, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "scale_rate_per": None,
    "layer_decay": 0.8, "drop_path": 0.1, "rand_augment": None, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.1,
}  # fmt: skip
FULL: dict[str, Any] = {
    "epochs": 4, "warmup_epochs": 1, "batch_size": 8, "mixing_group": 4, "learning_rate": 2e-3, "scale_rate_per": 8,
    "layer_decay": 0.7, "drop_path": 0.2, "random_erasing": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetSettings:
    return make_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(encoder(class_token=True), tmp_path_factory.mktemp("encoder"))


def task(data: DatasetSettings, weights: Path, rank: int = 0, ranks: int = 1, **changes: Any) -> FinetuneTask:
    torch.manual_seed(0)
    job = tuned_job("finetune", data, FULL | changes)
    return FinetuneTask(job, weights, World(rank=rank, size=ranks, device=torch.device("cpu")))


@pytest.mark.parametrize("saves", [0, 5], ids=["at the next save", "at the end"])
def test_weights_that_are_no_numbers_are_never_saved(
    saves: int, data: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A gradient that is NaN beside a loss that is not, in the last step."""
    loss, job = FinetuneTask.loss, tuned_job("finetune", data, GENTLE | {"epochs": 2, "batch_size": 16})

    def poisoned(self: FinetuneTask, run: torch.nn.Module, batch: Batch) -> torch.Tensor:
        steps.append(1)
        nothing = 0 * next(run.parameters()).sum()
        return loss(self, run, batch) + (nothing.abs().sqrt() if len(steps) == self.steps else 0)

    steps: list[int] = []
    monkeypatch.setattr(FinetuneTask, "loss", poisoned)
    monkeypatch.setattr("dseq_jepa.evaluation.tuning.SAVE_SECONDS", -1.0 if saves == 0 else 1e9)
    with pytest.raises(UserError, match=r"evaluations\.e: a weight is NaN or infinite at step 6 of 6"):
        finetune(job, weights, tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    kept = sorted(path.name for path in tmp_path.glob("state/*/state-*.pt"))
    assert kept == (["state-00000004.pt", "state-00000005.pt"] if saves == 0 else [])


def test_separable_pictures_reach_100_percent_and_each_is_counted_once(
    data: DatasetSettings, weights: Path, tmp_path: Path
):
    finetune(tuned_job("finetune", data, GENTLE), weights, tmp_path)
    result = result_of(tmp_path)["evaluations"]["e"]
    assert (result["value"], result["values"], result["metric"]) == (100.0, {"top1": 100.0}, "top1")
    assert (result["n"], result["chance"], result["steps"], result["skipped_images"]) == (20, 25.0, 30, 0)
    with gzip.open(tmp_path / "records.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert len({row["image"] for row in rows}) == len(rows) == 20
    assert all(row["evaluation"] == "e" and row["label"] == row["prediction"] and row["correct"] == "1" for row in rows)
    losses = [values["e/loss"] for _, values in logged(tmp_path) if "e/loss" in values]
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "provenance.json").read_text())["config_digest"]


def test_the_whole_recipe_gives_the_same_bytes_twice(data: DatasetSettings, weights: Path, tmp_path: Path):
    for out in ("a", "b"):
        finetune(tuned_job("finetune", data, FULL), weights, tmp_path / out)
    same_outcome(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_killed_and_resumed_is_undisturbed_to_the_bit(data: DatasetSettings, weights: Path, tmp_path: Path):
    job = tuned_job("finetune", data, FULL | {"epochs": 12})
    process = start("finetune", job, weights, tmp_path / "parts")
    killed_after(process, tmp_path / "parts", 20)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    process = start("finetune", job, weights, tmp_path / "parts")
    said = killed_after(process, tmp_path / "parts", 50, signal.SIGTERM)
    assert "the state is saved, the same command goes on from here" in said
    with weights_noted() as noted:
        finetune(job, weights, tmp_path / "whole")
        finetune(job, weights, tmp_path / "parts")
    same_weights(*noted)
    journal = (tmp_path / "parts" / "journal.jsonl").read_text()
    assert journal.count('"name":"resumed"') >= 2
    same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_a_signal_while_measuring_stops_at_once_and_loses_nothing(
    data: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = tuned_job("finetune", data, FULL)
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneTask, "measure", lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError, match="while measuring; the training is saved"):
            finetune(job, weights, tmp_path / "parts")
    assert signal.getsignal(signal.SIGTERM) is before
    assert '"name":"stopped"' in (tmp_path / "parts" / "journal.jsonl").read_text()
    finetune(job, weights, tmp_path / "parts")
    finetune(job, weights, tmp_path / "whole")
    same_outcome(tmp_path / "parts", tmp_path / "whole")


def test_a_finished_training_is_not_repeated(
    data: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = tuned_job("finetune", data, FULL)
    finetune(job, weights, tmp_path)
    before = result_of(tmp_path)
    (tmp_path / "metrics.json").unlink()
    monkeypatch.setattr(FinetuneTask, "loss", lambda *_: pytest.fail("trained again"))
    finetune(job, weights, tmp_path)
    assert result_of(tmp_path) == before


def test_a_workflow_that_lost_its_results_gets_them_again_until_the_code_changes(
    data: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = tuned_job("finetune", data, FULL)
    finetune(job, weights, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert files.keys() >= {"metrics.json", "records.csv.gz", "provenance.json", "journal.jsonl"}
    for name in files:
        (tmp_path / name).unlink()
    began = time.time()
    finetune(job, weights, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == files
    assert (tmp_path / "metrics.json").stat().st_mtime >= began - 1, "newer than the inputs, or it would be made again"
    monkeypatch.setattr("dseq_jepa.evaluation.resume._source", lambda: "changed")
    monkeypatch.setattr(FinetuneTask, "loss", lambda *_: pytest.fail("trained again"))
    with pytest.raises(pytest.fail.Exception):
        finetune(job, weights, tmp_path)


def test_states_go_once_the_result_is_there_and_when_other_settings_start_over(
    data: DatasetSettings, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def states() -> list[Path]:
        return list(tmp_path.glob("state/*/state-*"))

    first, second = (tuned_job("finetune", data, FULL | {"epochs": epochs}) for epochs in (3, 4))
    with monkeypatch.context() as patched:
        patched.setattr(FinetuneTask, "measure", lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(StoppedError):
            finetune(first, weights, tmp_path)
        (kept,) = {path.parent for path in states()}
        with pytest.raises(StoppedError):
            finetune(second, weights, tmp_path)
    assert kept not in {path.parent for path in states()} != set()
    finetune(second, weights, tmp_path)
    assert states() == []
    assert len(list(tmp_path.glob("state/*/journal.jsonl"))) == 3, "of both, and with the result of the second"


@pytest.mark.slow
def test_two_ranks_train_as_one_does(data: DatasetSettings, weights: Path, tmp_path: Path):
    job = tuned_job("finetune", data, FULL)
    finetune(job, weights, tmp_path / "1")
    process = start("finetune", job, weights, tmp_path / "2", ranks=2, save_seconds=600)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    one, two = (logged(tmp_path / name) for name in ("1", "2"))
    assert [step for step, _ in one] == [step for step, _ in two]
    losses = [[values["e/loss"] for _, values in points if "e/loss" in values] for points in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert result_of(tmp_path / "2")["evaluations"]["e"]["n"] == 20


def test_two_ranks_see_mixed_and_erased_what_one_sees(data: DatasetSettings, weights: Path):
    """Pixels and targets of a whole batch, to the bit, however it is shared."""

    def seen(one: FinetuneTask, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = next(one.batches(step))
        images = one.model.backbone.normalise(batch.images_BCHW)
        before = images.clone()
        ids = batch.ids_B.numpy()
        one._erase(images, ids, step)
        targets = one._mix(images, torch.from_numpy(one.train.labels[ids]), step)
        assert not torch.equal(images, before)
        return images, targets

    for step in (0, 7):
        whole = seen(task(data, weights), step)
        parts = [seen(task(data, weights, rank, 2), step) for rank in (0, 1)]
        for together, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(list(pieces)), together)


def test_erasing_leaves_the_global_generators_alone(data: DatasetSettings, weights: Path):
    one = task(data, weights)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    one._erase(torch.zeros(8, 3, 32, 32), np.arange(8), 0)
    assert torch.equal(torch.rand(3), expected)


def test_targets_are_smoothed_and_mixed_labels(data: DatasetSettings, weights: Path):
    plain = task(data, weights, mixup=0.0, cutmix=0.0)
    labels = torch.tensor([0, 3])
    targets = plain._mix(torch.zeros(2, 3, 32, 32), labels, 0)
    assert targets.tolist() == pytest.approx(np.array([[0.925, 0.025, 0.025, 0.025], [0.025, 0.025, 0.025, 0.925]]))
    mixed = task(data, weights)._mix(torch.zeros(8, 3, 32, 32), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), 0)
    assert mixed.sum(dim=1).tolist() == pytest.approx([1.0] * 8)
    assert mixed[:4, 2:].max() < 0.05  # within a group of four
    assert mixed[4:, :2].max() < 0.05


def test_the_rate_is_maes(data: DatasetSettings, weights: Path):
    one = task(data, weights, min_learning_rate=1e-4)
    assert one.epoch_steps == 6

    def published(step: int) -> float:
        epoch = step / 6
        if epoch < 1:
            return 2e-3 * epoch
        return 1e-4 + (2e-3 - 1e-4) * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / 3))

    assert [one.rate(step) for step in range(24)] == pytest.approx([published(step) for step in range(24)])
    assert task(data, weights, scale_rate_per=4).rate(6) == pytest.approx(4e-3)


def test_settings_of_one_architecture_replace_the_common_ones():
    settings = FinetuneSettings.model_validate(
        {"kind": "finetune", "data": "d", **FULL, "architectures": {"large": {"layer_decay": 0.9, "batch_size": 16}}}
    )
    assert (settings.on("large").layer_decay, settings.on("large").batch_size) == (0.9, 16)
    assert settings.on("small") == settings.on("other")
    assert (settings.on("small").layer_decay, settings.on("small").architectures) == (0.7, {})


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "a rate that is too high": ({"learning_rate": 1e30, "warmup_epochs": 0}, 1, "lower learning_rate"),
    "a batch that is too large": ({"batch_size": 64}, 1, r"48 training images do not fill one batch of 64"),
    "a group that crosses ranks": ({"mixing_group": 8}, 2, r"mixing_group: 8 does not divide a rank's 4 images"),
    "ranks that do not share": ({}, 3, r"evaluations\.e\.batch_size 8 cannot be shared equally by 3 ranks"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_told(data: DatasetSettings, weights: Path, tmp_path: Path, case: str):
    changes, ranks, sentence = BAD[case]

    def attempt() -> None:
        if ranks > 1:
            task(data, weights, 0, ranks, **changes)
        else:
            finetune(tuned_job("finetune", data, FULL | changes), weights, tmp_path)

    with pytest.raises(UserError, match=sentence):
        attempt()


def test_unreadable_pictures_are_counted(weights: Path, tmp_path: Path):
    data = make_imagenet(tmp_path / "data")
    (tmp_path / "data" / "val" / "n00000001" / "0001.JPEG").write_bytes(b"broken")
    (tmp_path / "data" / "train" / "n00000002" / "0002.JPEG").write_bytes(b"broken")
    finetune(tuned_job("finetune", data, FULL, "skip"), weights, tmp_path / "out")
    result = result_of(tmp_path / "out")["evaluations"]["e"]
    assert (result["n"], result["skipped_images"]) == (19, 2)
    with pytest.raises(UserError, match=r"0002\.JPEG"):
        finetune(tuned_job("finetune", data, FULL), weights, tmp_path / "strict")


def test_bf16_trains_too(data: DatasetSettings, weights: Path, tmp_path: Path):
    finetune(tuned_job("finetune", data, FULL | {"precision": "bf16", "epochs": 2}), weights, tmp_path)
    assert 0 <= result_of(tmp_path)["evaluations"]["e"]["value"] <= 100


def test_recomputed_activations_give_the_same_gradients(data: DatasetSettings, weights: Path):
    gradients = []
    for checkpointing in (False, True):
        one = task(data, weights, activation_checkpointing=checkpointing)
        batch: Batch = next(one.batches(0))
        one.model.train()
        one.loss(one.model, batch).backward()
        gradients.append([p.grad for p in one.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

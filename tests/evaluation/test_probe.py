"""Whole evaluations on tiny pictures."""

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import probe as probing
from dseq_jepa.evaluation.probe import Group, evaluate
from dseq_jepa.evaluation.resume import Kept, digest
from dseq_jepa.jobs import ProbeJob
from dseq_jepa.journal import read
from dseq_jepa.training.distributed import World
from tests.evaluation.pictures import export, job, make_clevr, make_imagenet, probe
from tests.models.checkpoints import encoder

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetSettings]:
    root = tmp_path_factory.mktemp("data")
    return {"imagenet": make_imagenet(root / "imagenet"), "clevr": make_clevr(root / "clevr")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(encoder(class_token=True), tmp_path_factory.mktemp("encoder"))


def metrics(out: Path) -> dict[str, Any]:
    """Without what a clock says, and without the commit, which may change while tests run."""
    content: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    assert content.pop("code_version")
    for result in content["evaluations"].values():
        assert result.pop("seconds") > 0
    return content


def images_through(group: Group) -> Iterator[int]:
    """Yields, whenever asked, how many images the encoder has seen."""
    seen = 0

    def count(_module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        nonlocal seen
        seen += len(arguments[0])

    group.encoder.model.blocks[0].register_forward_pre_hook(count)
    while True:
        yield seen


def test_separable_pictures_reach_100_percent_and_all_is_counted(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path
) -> None:
    evaluations = {
        "linear": probe("imagenet", features=["last4", "last"]),
        "count": probe("clevr", target="count", features=["cls", "mean"], optimizer="adamw", schedule="cosine",
                       learning_rates=[0.02], epochs=[40], batch_norm=True, test_resize=None),
    }  # fmt: skip
    evaluate(job(data, evaluations), weights, tmp_path)
    found = metrics(tmp_path)
    assert found["model"]["method"] == "m"
    linear, count = found["evaluations"]["linear"], found["evaluations"]["count"]
    assert (linear["value"], linear["n"], linear["chance"], linear["features"]) == (100.0, 20, 25.0, "last4")
    assert (count["value"], count["n"], count["features"], count["metric"]) == (100.0, 12, "cls", "top1")
    assert [(head["features"], head["epochs"]) for head in linear["heads"]] == [("last4", 8), ("last", 8)]
    assert linear["sweep"] == []
    with gzip.open(tmp_path / "records.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    assert [row["evaluation"] for row in rows] == ["count"] * 12 + ["linear"] * 20
    assert len({(row["evaluation"], row["image"]) for row in rows}) == 32
    assert all(row["label"] == row["prediction"] and row["correct"] == "1" for row in rows)
    assert (tmp_path / "provenance.json").exists()


def test_the_same_job_gives_the_same_bytes(data: dict[str, DatasetSettings], weights: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        evaluate(job(data, {"linear": probe("imagenet", augment=True, epochs=[2])}), weights, tmp_path / out)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert (tmp_path / "a" / "records.csv.gz").read_bytes() == (tmp_path / "b" / "records.csv.gz").read_bytes()


def test_kept_features_are_made_once_for_all_evaluations_of_the_same_pictures(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path
) -> None:
    evaluations = {
        "count": probe("clevr", target="count", features=["cls"], learning_rates=[0.1, 0.2]),
        "distance": probe("clevr", target="distance", features=["mean", "last4"]),
    }
    group = Group(job(data, evaluations), weights, tmp_path, ALONE)
    seen = images_through(group)
    next(seen)
    group.run()
    assert next(seen) == 32 + 12


def test_augmented_training_encodes_each_image_once_per_epoch_for_all_heads(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path
) -> None:
    sweep = probe(
        "imagenet", augment=True, epochs=[1, 3], learning_rates=[0.1, 0.5, 1.0], batch_size=8,
        features=["last4", "last"], holdout_fraction=0.2,
    )  # fmt: skip
    group = Group(job(data, {"sweep": sweep}), weights, tmp_path, ALONE)
    seen = images_through(group)
    next(seen)
    group.run()
    held = round(0.2 * 48)
    result = metrics(tmp_path)["evaluations"]["sweep"]
    assert next(seen) == 20 + held + 3 * ((48 - held) // 8 * 8) + max(head["epochs"] for head in result["heads"]) * 48
    assert [(head["features"], len(result["sweep"])) for head in result["heads"]] == [("last4", 12), ("last", 12)]


def test_a_sweep_chooses_on_held_out_training_images_and_reports_what_all_of_train_gives(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path
) -> None:
    sweep = probe("imagenet", learning_rates=[1e-6, 0.5], epochs=[8, 1], features=["last4"], holdout_fraction=0.25)
    evaluate(job(data, {"sweep": sweep}), weights, tmp_path / "sweep")
    result = metrics(tmp_path / "sweep")["evaluations"]["sweep"]
    held = {(row["epochs"], row["learning_rate"]): row["holdout_top1"] for row in result["sweep"]}
    best = max(held, key=lambda candidate: held[candidate])
    assert list(held) == [(8, 1e-6), (8, 0.5), (1, 1e-6), (1, 0.5)]
    assert held[8, 0.5] > held[8, 1e-6]
    assert [(row["epochs"], row["learning_rate"]) for row in result["sweep"] if row["chosen"]] == [best]
    assert (result["epochs"], result["learning_rate"]) == best == (8, 0.5)
    evaluate(job(data, {"alone": probe("imagenet")}), weights, tmp_path / "alone")
    alone = metrics(tmp_path / "alone")["evaluations"]["alone"]
    assert (alone["epochs"], alone["learning_rate"]) == best
    assert result["heads"] == alone["heads"]
    logged = [
        {line["step"] - offset: line["values"][f"{name}/loss"] for line in read(tmp_path / out / "journal.jsonl")
         if f"{name}/loss" in line.get("values", {})}
        for out, name, offset in (("sweep", "sweep/last4/chosen", 8), ("alone", "alone/last4/lr0.5", 0))
    ]  # fmt: skip
    assert len(logged[0]) == 8
    assert logged[0] == logged[1]


def interrupted(job_: ProbeJob, weights: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Run a job whose states are saved after every epoch, until it is stopped after a few of them."""
    save, saves = Kept.save_epochs, []

    def save_and_stop(self: Kept, name: str, state: dict[str, Any]) -> None:
        save(self, name, state)
        saves.append(name)
        if len(saves) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(probing, "SAVE_SECONDS", -1.0)
        patched.setattr(Kept, "save_epochs", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(job_, weights, out)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(("saves", "sweep_done", "epoch"), [(3, False, 3), (6, True, 0), (8, True, 2)])
def test_a_stopped_group_goes_on_where_it_was(
    data: dict[str, DatasetSettings],
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    augment: bool,
    saves: int,
    sweep_done: bool,
    epoch: int,
) -> None:
    group = job(
        data,
        {
            "first": probe("imagenet", epochs=[3]),
            "second": probe("imagenet", epochs=[6, 4], augment=augment, learning_rates=[0.1, 0.5], milestones=(2,)),
        },
    )
    evaluate(group, weights, tmp_path / "whole")
    interrupted(group, weights, tmp_path / "parts", monkeypatch, after=2 + saves)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    resumed = Group(group, weights, tmp_path / "parts", ALONE)
    assert list(resumed.outcomes) == ["first"]
    assert resumed.begun["second"]["epoch"] == epoch
    assert bool(resumed.begun["second"]["held_top1"]) == sweep_done
    resumed.run()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert (tmp_path / "parts" / "records.csv.gz").read_bytes() == (tmp_path / "whole" / "records.csv.gz").read_bytes()
    logged = [
        [(line["step"], line["values"]) for line in read(tmp_path / out / "journal.jsonl") if line["kind"] == "metrics"]
        for out in ("whole", "parts")
    ]
    assert logged[0] == logged[1]


def test_a_changed_encoder_or_setting_starts_over(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = job(data, {"first": probe("imagenet", epochs=[3])})
    interrupted(group, weights, tmp_path / "out", monkeypatch, after=2)
    other = export(encoder(class_token=False), tmp_path / "other")
    assert digest(group, other) != digest(group, weights)
    fresh = Group(group, other, tmp_path / "out", ALONE)
    assert not fresh.begun
    fresh.run()
    names = [line.get("name") for line in read(tmp_path / "out" / "journal.jsonl")]
    assert "resumed" not in names


def broken(weights: Path, out: Path, value: float) -> Path:
    """The encoder with a last norm that gives one value for every picture."""
    model = encoder(class_token=True)
    with torch.no_grad():
        model.norm.weight.fill_(0.0)
        model.norm.bias.fill_(value)
    return export(model, out)


@pytest.mark.parametrize(("value", "sentence"), [(float("nan"), "are NaN or infinite"), (0.3, "has collapsed")])
def test_features_that_no_head_could_use_are_refused(
    data: dict[str, DatasetSettings], weights: Path, tmp_path: Path, value: float, sentence: str
) -> None:
    path = broken(weights, tmp_path / "broken", value)
    with pytest.raises(UserError, match=sentence) as refused:
        evaluate(job(data, {"linear": probe("imagenet", augment=True)}), path, tmp_path / "out")
    assert str(path) in str(refused.value)


def test_rates_that_all_diverge_are_an_error(data: dict[str, DatasetSettings], weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluations\.linear: .*lower learning_rates"):
        evaluate(job(data, {"linear": probe("imagenet", learning_rates=[1e30], weight_decay=1.0)}), weights, tmp_path)


def test_unreadable_pictures_are_counted_and_have_no_prediction(weights: Path, tmp_path: Path) -> None:
    data = {"imagenet": make_imagenet(tmp_path / "data")}
    (tmp_path / "data" / "val" / "n00000001" / "0001.JPEG").write_bytes(b"broken")
    (tmp_path / "data" / "train" / "n00000002" / "0002.JPEG").write_bytes(b"broken")
    for augment in (False, True):
        out = tmp_path / f"out-{augment}"
        evaluate(job(data, {"linear": probe("imagenet", augment=augment)}, "skip"), weights, out)
        result = metrics(out)["evaluations"]["linear"]
        assert (result["n"], result["skipped_images"]) == (19, 2)
        with gzip.open(out / "records.csv.gz", "rt") as file:
            row = next(row for row in csv.DictReader(file) if row["image"].endswith("0001.JPEG"))
        assert (row["prediction"], row["correct"]) == ("", "")
    with pytest.raises(UserError, match=r"0001\.JPEG"):
        evaluate(job(data, {"linear": probe("imagenet")}), weights, tmp_path / "strict")


def start(job_: ProbeJob, weights: Path, out: Path, ranks: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    verb = ["-m", "dseq_jepa", "probe", "--settings", job_.to_json(), "--encoder", str(weights), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launcher, *verb], stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(data: dict[str, DatasetSettings], weights: Path, tmp_path: Path) -> None:
    group = job(
        data,
        {
            "augmented": probe(
                "imagenet", augment=True, epochs=[1, 3], features=["last4", "last"], learning_rates=[0.1, 0.5]
            ),
            "count": probe("clevr", target="count", features=["cls"], epochs=[5]),
        },
    )
    for ranks in (1, 2):
        process = start(group, weights, tmp_path / str(ranks), ranks)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert metrics(tmp_path / "2") == metrics(tmp_path / "1")
    assert (tmp_path / "2" / "records.csv.gz").read_bytes() == (tmp_path / "1" / "records.csv.gz").read_bytes()
    losses = [
        [
            value
            for line in read(tmp_path / ranks / "journal.jsonl")
            if line["kind"] == "metrics"
            for value in line["values"].values()
        ]
        for ranks in ("1", "2")
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.slow
def test_a_killed_job_goes_on(data: dict[str, DatasetSettings], weights: Path, tmp_path: Path) -> None:
    group = job(
        data,
        {
            "a-short": probe("imagenet", epochs=[2]),
            "b-long": probe("imagenet", augment=True, epochs=[60], milestones=(20,)),
        },
    )
    evaluate(group, weights, tmp_path / "whole")
    process = start(group, weights, tmp_path / "parts")
    journal = tmp_path / "parts" / "journal.jsonl"
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.read_text().count("b-long/") < 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "parts" / "metrics.json").exists()
    assert '"name":"resumed"' not in journal.read_text()
    again = start(group, weights, tmp_path / "parts")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert '"name":"resumed"' in journal.read_text()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")

"""Whole segmentations on tiny pictures."""

import csv
import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dseq_jepa.data.ade20k import NAMES
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.segmentation import SegmentationTask, segment
from dseq_jepa.evaluation.segmentation_page import Example, coloured
from dseq_jepa.training.distributed import World
from tests.evaluation.pictures import COLOURS, export
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

REAL = Path(os.environ.get("DSEQ_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))
TINY: dict[str, Any] = {
    "iterations": 24, "warmup_iterations": 2, "batch_size": 4, "learning_rate": 1e-2, "layer_decay": 0.8,
    "crop_size": 32, "stride": 21, "width": 8, "auxiliary_width": 8, "drop_path": 0.2, "examples": 2,
}  # fmt: skip
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
SIZES = [(36, 44), (20, 33), (32, 32), (50, 90)]


def make_ade20k(root: Path, train: int = 12, val: int = 5) -> DatasetSettings:
    """Pictures of odd sizes, some smaller than a crop, in blocks of coloured noise; label 1 and 2 and one of 3 or 4."""
    draw = np.random.default_rng(0)
    for folder, count in (("training", train), ("validation", val)):
        for index in range(count):
            height, width = SIZES[index % len(SIZES)]
            label_HW = np.ones((height, width), np.uint8)
            label_HW[:, width // 2 :] = 2
            label_HW[height // 2 :, : width // 2] = 3 if folder == "validation" else 3 + index % 2
            pixels = COLOURS[label_HW - 1] + draw.integers(-30, 31, size=(height, width, 3))
            label_HW[:3, :3] = 0
            for kind, array in (("images", pixels.clip(0, 255)), ("annotations", label_HW)):
                path = root / kind / folder / f"{index:03d}.{'jpg' if kind == 'images' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return DatasetSettings(layout="ade20k", root=root)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DatasetSettings:
    return make_ade20k(tmp_path_factory.mktemp("ade20k"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(encoder(class_token=True), tmp_path_factory.mktemp("encoder"))


def rows_of(out: Path) -> list[dict[str, str]]:
    with gzip.open(out / "records.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def test_colours_are_learned_and_the_records_add_up_to_the_metric(data: DatasetSettings, weights: Path, tmp_path: Path):
    segment(tuned_job("segment", data, TINY | {"iterations": 90, "dropout": 0.0}), weights, tmp_path)
    result = result_of(tmp_path)["evaluations"]["e"]
    assert result["value"] == result["values"]["miou"] > max(35.0, 1.5 * result["chance"])
    assert result["values"]["pixel_accuracy"] > 70
    assert (result["n"], result["metric"], result["steps"], result["skipped_images"]) == (5, "miou", 90, 0)
    assert {"wall", "building", "sky"} <= set(result["iou"]) <= set(NAMES)
    overlap: dict[str, list[int]] = {}
    for row in rows_of(tmp_path):
        assert row["evaluation"] == "e"
        sums = overlap.setdefault(row["class"], [0, 0])
        sums[0] += int(row["intersection"])
        sums[1] += int(row["union"])
    assert 100 * np.mean([hit / union for hit, union in overlap.values()]) == pytest.approx(result["value"], rel=1e-12)
    assert {name: 100 * hit / union for name, (hit, union) in overlap.items()} == pytest.approx(result["iou"])
    with Image.open(tmp_path / "examples.png") as page:
        assert page.size[0] > 1000
        assert len(set(page.convert("P").get_flattened_data())) > 20
    losses = [values["e/loss"] for _, values in logged(tmp_path) if "e/loss" in values]
    assert losses[-1] < 0.5 * losses[0]


def test_every_labelled_pixel_is_judged_at_the_pictures_own_size(data: DatasetSettings, weights: Path, tmp_path: Path):
    segment(tuned_job("segment", data, TINY | {"iterations": 3}), weights, tmp_path)
    pixels: dict[str, int] = {}
    for row in rows_of(tmp_path):
        pixels[row["image"]] = pixels.get(row["image"], 0) + int(row["intersection"])
        pixels[row["image"]] += int(row["union"])
    for index, (height, width) in enumerate(SIZES):
        # the union of all classes counts a wrong pixel twice and a right one once, the intersection a right one again
        assert pixels[f"images/validation/{index:03d}.jpg"] == 2 * (height * width - 9)


def test_the_same_job_gives_the_same_bytes(data: DatasetSettings, weights: Path, tmp_path: Path):
    for out in ("a", "b"):
        segment(tuned_job("segment", data, TINY), weights, tmp_path / out)
    same_outcome(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "examples.png").read_bytes() == (tmp_path / "b" / "examples.png").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_is_undisturbed_to_the_bit(data: DatasetSettings, weights: Path, tmp_path: Path):
    job = tuned_job("segment", data, TINY | {"iterations": 60})
    process = start("segment", job, weights, tmp_path / "parts")
    killed_after(process, tmp_path / "parts", 18)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    with weights_noted() as noted:
        segment(job, weights, tmp_path / "whole")
        segment(job, weights, tmp_path / "parts")
    same_weights(*noted)
    assert '"name":"resumed"' in (tmp_path / "parts" / "journal.jsonl").read_text()
    same_outcome(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_train_and_measure_as_one_does(data: DatasetSettings, weights: Path, tmp_path: Path):
    job = tuned_job("segment", data, TINY | {"iterations": 8})
    segment(job, weights, tmp_path / "1")
    process = start("segment", job, weights, tmp_path / "2", ranks=2, save_seconds=600)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    one, two = (logged(tmp_path / name) for name in ("1", "2"))
    losses = [[values["e/loss"] for _, values in points if "e/loss" in values] for points in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    values = [result_of(tmp_path / name)["evaluations"]["e"] for name in ("1", "2")]
    assert values[0]["n"] == values[1]["n"] == 5
    assert values[1]["values"]["pixel_accuracy"] == pytest.approx(values[0]["values"]["pixel_accuracy"], abs=2)


def test_the_loss_is_over_all_pixels_and_adds_the_auxiliary_head(data: DatasetSettings, weights: Path):
    job = tuned_job("segment", data, TINY | {"dropout": 0.0, "drop_path": 0.0})
    torch.manual_seed(0)
    task = SegmentationTask(job, weights, ALONE)
    batch = next(task.batches(0))
    found = task.loss(task.model.eval(), batch)
    truth = batch.images_BCHW[:, 3].long()
    both = task.model(task.model.backbone.normalise(batch.images_BCHW[:, :3]))
    losses = []
    for logits in both:
        whole = torch.nn.functional.interpolate(logits, (32, 32), mode="bilinear")
        chosen = whole.log_softmax(dim=1).gather(1, truth.clamp(max=149)[:, None])[:, 0]
        losses.append(-(chosen * (truth != 255)).sum() / truth.numel())
    assert (truth == 255).any()
    assert found.item() == pytest.approx((losses[0] + 0.4 * losses[1]).item(), rel=1e-5)


def test_the_rate_warms_up_and_falls_linearly_to_0(data: DatasetSettings, weights: Path):
    job = tuned_job("segment", data, TINY | {"iterations": 10, "warmup_iterations": 2, "learning_rate": 0.8})
    task = SegmentationTask(job, weights, ALONE)
    assert [task.rate(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.0, 0.4, 0.8, 0.4, 0.1])


def test_a_crop_that_patches_do_not_divide_is_refused(data: DatasetSettings, weights: Path, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"evaluations\.e\.crop_size: 36 is not a multiple of the encoder's patches of 8"
    ):
        segment(tuned_job("segment", data, TINY | {"crop_size": 36}), weights, tmp_path)


def test_unreadable_pairs_are_counted_and_not_judged(weights: Path, tmp_path: Path):
    data = make_ade20k(tmp_path / "data")
    for name in ("annotations/validation/001.png", "images/validation/002.jpg", "annotations/training/003.png"):
        (tmp_path / "data" / name).write_bytes(b"broken")
    segment(tuned_job("segment", data, TINY | {"iterations": 3}, "skip"), weights, tmp_path / "out")
    result = result_of(tmp_path / "out")["evaluations"]["e"]
    assert (result["n"], result["skipped_images"]) == (3, 3)
    with pytest.raises(UserError, match=r"003\.png: not a readable PNG"):
        segment(tuned_job("segment", data, TINY | {"iterations": 3}), weights, tmp_path / "strict")


def untrained(on_bad_image: str, data: DatasetSettings, weights: Path) -> SegmentationTask:
    task = SegmentationTask(tuned_job("segment", data, TINY, on_bad_image), weights, ALONE)
    task.model.eval()
    return task


def test_a_mask_of_another_size_than_its_picture_is_named_or_skipped(weights: Path, tmp_path: Path):
    data = make_ade20k(tmp_path / "data")
    for name in ("annotations/training/003.png", "annotations/validation/001.png"):
        Image.fromarray(np.ones((7, 9), np.uint8)).save(data.root / name)
    few = TINY | {"iterations": 3}
    with pytest.raises(UserError, match=r"003\.png: 9 x 7 pixels, but images/training/003\.jpg has 90 x 50.* skip"):
        segment(tuned_job("segment", data, few), weights, tmp_path / "strict")
    segment(tuned_job("segment", data, few, "skip"), weights, tmp_path / "out")
    result = result_of(tmp_path / "out")["evaluations"]["e"]
    assert (result["n"], result["skipped_images"]) == (4, 2)
    with pytest.raises(UserError, match=r"001\.png: 9 x 7 pixels, but images/validation/001\.jpg has 33 x 20.* skip"):
        untrained("error", data, weights).measure()


def test_a_test_picture_that_is_gone_is_named_or_skipped(weights: Path, tmp_path: Path):
    data = make_ade20k(tmp_path / "data")
    strict, lenient = (untrained(on_bad_image, data, weights) for on_bad_image in ("error", "skip"))
    (data.root / "images" / "validation" / "002.jpg").unlink()
    with pytest.raises(UserError, match=r"002\.jpg: cannot be read \(no such file or directory\).* skip"):
        strict.measure()
    measured = lenient.measure()
    assert (measured.result["n"], measured.skipped) == (4, 1)


def test_colours_follow_the_truth_so_that_pages_of_models_agree():
    truth = np.array([[4, 4, 4, 9, 9, 2]], np.uint8)
    pages = [coloured([Example("x", truth, truth, predicted)], 150) for predicted in (truth, truth[:, ::-1] + 1)]
    assert pages[0][0] == [4, 9, 2]
    assert pages[1][0][:3] == [4, 9, 2]
    assert (pages[0][1][[2, 4, 9]] == pages[1][1][[2, 4, 9]]).all()
    assert len({tuple(colour) for colour in pages[0][1][:50]}) == 50


@pytest.mark.slow
def test_on_real_pictures_a_trained_network_is_far_above_an_untrained_one(weights: Path, tmp_path: Path):
    if not (REAL / "camvid_ade_layout").is_dir():
        pytest.skip(f"no {REAL / 'camvid_ade_layout'}; set DSEQ_REAL_DATA")
    data = DatasetSettings(layout="ade20k", root=REAL / "camvid_ade_layout")
    real = TINY | {"crop_size": 64, "stride": 43, "width": 16, "batch_size": 4, "drop_path": 0.0, "dropout": 0.0}
    values = {}
    for name, changes in (
        ("untrained", {"iterations": 1, "warmup_iterations": 0, "learning_rate": 1e-12}),
        ("trained", {"iterations": 100, "warmup_iterations": 5}),
    ):
        segment(tuned_job("segment", data, real | changes), weights, tmp_path / name)
        values[name] = result_of(tmp_path / name)["evaluations"]["e"]["value"]
    assert values["trained"] > max(11.0, 3 * values["untrained"])

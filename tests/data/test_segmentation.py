"""What a segmentation network sees: sizes, crops, alignment and the same fate for the same coordinates."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dseq_jepa.data import segmentation
from dseq_jepa.data.ade20k import IGNORED
from dseq_jepa.data.decode import decode
from dseq_jepa.data.segmentation import SegmentationView, distorted, load_masked, nearest, resized, shrunk
from dseq_jepa.data.settings import DatasetSettings

MEAN = (0.485, 0.456, 0.406)
OFF = np.full(9, 0.9)


def made(root: Path, label_HW: np.ndarray) -> SegmentationView:
    """One pair whose colour tells the class: red is 20 times the label."""
    picture_HWC = np.zeros((*label_HW.shape, 3), np.uint8)
    picture_HWC[..., 0] = 20 * label_HW
    for folder in ("images/training", "annotations/training"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(picture_HWC).save(root / "images/training/a.png")
    Image.fromarray(label_HW).save(root / "annotations/training/a.png")
    return SegmentationView(load_masked(DatasetSettings(layout="ade20k", root=root), "train"), 48, MEAN, 5)


def look(view: SegmentationView, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    path = view.split.path(0)
    both_4HW = view(decode(path.read_bytes(), str(path)), 0, epoch).numpy()
    return both_4HW[:3], both_4HW[3]


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        ((375, 500), 512, (512, 683)),
        ((500, 375), 512, (683, 512)),
        ((100, 1000), 512, (205, 2048)),
        ((3, 3), 1, (1, 1)),
    ],
)
def test_sizes_are_mmcvs(size: tuple[int, int], short: int, expected: tuple[int, int]):
    assert resized(*size, short) == expected


@pytest.mark.parametrize(("old", "new"), [(7, 3), (10, 33), (61, 61), (480, 97)])
def test_masks_are_resized_as_pillow_does(old: int, new: int):
    line = Image.fromarray(np.arange(old, dtype=np.uint16)[None]).resize((new, 1), Image.Resampling.NEAREST)
    assert nearest(old, new).tolist() == np.array(line)[0].tolist()


def test_picture_and_mask_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segmentation, "distorted", lambda image_HWC, _: image_HWC)
    rng = np.random.default_rng(0)
    blocks = rng.integers(1, 11, (4, 5)).astype(np.uint8)
    view = made(tmp_path, np.kron(blocks, np.ones((20, 20), np.uint8)))
    agree, seen = [], set()
    for epoch in range(12):
        picture_CHW, label_HW = look(view, epoch)
        inside = label_HW != IGNORED
        agree.append(np.mean(np.round(picture_CHW[0][inside] / 20) == label_HW[inside] + 1))
        seen |= set(label_HW[inside].tolist())
    assert min(agree) > 0.8  # all but the seams between blocks, which are many in a picture made small
    assert np.mean(agree) > 0.9
    assert len(seen) >= 8


def test_what_a_small_picture_leaves_free_is_ignored_and_has_the_mean_colour(tmp_path: Path):
    view = made(tmp_path, np.full((20, 90), 3, np.uint8))
    shapes = set()
    for epoch in range(12):
        picture_CHW, label_HW = look(view, epoch)
        rows, columns = (np.flatnonzero((label_HW != IGNORED).any(axis=axis)) for axis in (1, 0))
        height, width = len(rows), len(columns)
        assert rows.tolist() == list(range(height))
        assert columns.tolist() == list(range(width))
        assert (label_HW[:height, :width] == 2).all()
        outside = label_HW == IGNORED
        assert (picture_CHW[:, outside] == np.array([[124], [116], [104]])).all()
        shapes.add((height, width))
    assert any(height < 48 for height, _ in shapes)
    assert any(height == 48 for height, _ in shapes)


def test_a_view_is_a_function_of_seed_epoch_and_picture(tmp_path: Path):
    view = made(tmp_path, np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((40, 40), np.uint8)))
    first = look(view, 3)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert all((a == b).all() for a, b in zip(first, look(view, 3), strict=True))
    assert not (first[0] == look(view, 4)[0]).all()


def test_crops_of_nearly_one_class_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    label_HW = np.full((200, 200), 1, np.uint8)
    label_HW[:, 120:] = 2
    view = made(tmp_path, label_HW)

    def uniform_crops() -> int:
        counts = [np.bincount(look(view, epoch)[1].ravel(), minlength=256)[:2] for epoch in range(60)]
        return sum(count.max() >= 0.75 * count.sum() for count in counts)

    many = uniform_crops()
    monkeypatch.setattr(segmentation, "MOST_OF_ONE", 1.1)
    assert many < 0.5 * uniform_crops()


def test_distortion_off_changes_nothing_and_each_part_does_what_it_says():
    picture_HWC = np.random.default_rng(0).integers(30, 200, (8, 8, 3)).astype(np.uint8)
    assert (distorted(picture_HWC, OFF) == picture_HWC).all()

    def one(part: int, by: float) -> np.ndarray:
        draws_9 = OFF.copy()
        draws_9[part], draws_9[4 + part] = 0.0, by
        return distorted(picture_HWC, draws_9).astype(int)

    assert (one(0, 0.75) == picture_HWC + 16).all()
    assert (one(1, 0.0) == picture_HWC // 2).all()
    grey = one(2, 0.0).std(axis=2).mean()
    assert grey < 0.7 * picture_HWC.std(axis=2).mean() < one(2, 1.0).std(axis=2).mean()
    red = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    turned = distorted(red, np.array([0.9, 0.9, 0.9, 0.0, 0, 0, 0, 1.0, 0]))[0, 0]
    assert turned[0] == 200
    assert abs(int(turned[1]) - 136) < 5  # 36 degrees towards yellow: 40 + 160 * 36 / 60


def test_test_pictures_have_a_short_side_of_one_crop():
    assert shrunk(np.zeros((60, 80, 3), np.uint8), 48).shape == (3, 48, 64)
    assert shrunk(np.zeros((10, 90, 3), np.uint8), 48).shape == (3, 21, 192)

"""Pictures, boxes and masks move together."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coder

from dseq_jepa.evaluation.detection.views import (
    JitteredView,
    Placement,
    decode_runs,
    jittered,
    place_image,
    place_mask,
    place_objects,
    whole,
)
from tests.evaluation.shapes import crowd, record, runs

AS_IT_IS = Placement(False, 40, 60, 0, 0, 40, 60)


def painted(box: tuple[int, int, int, int]) -> np.ndarray:
    """A white rectangle on black."""
    x, y, w, h = box
    pixels_HWC = np.zeros((40, 60, 3), np.uint8)
    pixels_HWC[y : y + h, x : x + w] = 255
    return pixels_HWC


def test_the_whole_picture_keeps_its_shape_and_masks() -> None:
    box = (10, 5, 20, 30)
    targets = place_objects([record(1, 1, 3, box)], {3: 1}, 40, 60, AS_IT_IS)
    assert targets.boxes_N4.tolist() == [[10, 5, 30, 35]]
    assert torch.equal(targets.masks_NHW[0].bool(), torch.from_numpy(painted(box)[..., 0] > 0))
    assert whole(40, 60, 30) == Placement(False, 20, 30, 0, 0, 20, 30)
    assert whole(1000, 3, 100).width == 1


@pytest.mark.parametrize("code", ["polygon", "runs"])
def test_box_and_mask_follow_the_picture_through_any_jitter(code: str) -> None:
    """Where the moved picture is white, the moved mask is 1, up to the pixels of the resampled edge."""
    draw, box = np.random.default_rng(3), (10, 5, 24, 30)
    one = record(1, 1, 3, box)
    if code == "runs":
        one["segmentation"] = {"size": [40, 60], "counts": runs(painted(box)[..., 0] // 255)}
    seen = 0
    for _ in range(40):
        placement = jittered(40, 60, 48, (0.5, 2.0), draw.random(4))
        image_CHW = place_image(painted(box), placement)
        assert image_CHW.shape == (3, placement.crop_height, placement.crop_width)
        assert max(image_CHW.shape[1:]) <= 48
        targets = place_objects([one], {3: 1}, 40, 60, placement)
        white_HW = image_CHW[0] >= 128
        if not len(targets.labels_N):
            assert white_HW.float().mean() < 0.02
            continue
        seen += 1
        mask_HW = targets.masks_NHW[0].bool()
        edge = 2 * (mask_HW.shape[0] + mask_HW.shape[1])
        assert (mask_HW ^ white_HW).sum() <= edge
        rows, columns = torch.where(mask_HW)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert targets.boxes_N4[0].tolist() == [float(v) for v in expected]
    assert seen > 30


def test_a_flip_mirrors_polygons_exactly() -> None:
    slope = record(1, 1, 90, (10, 5, 20, 30))
    plain = place_mask(slope["segmentation"], 40, 60, AS_IT_IS)
    flipped = place_mask(slope["segmentation"], 40, 60, Placement(True, 40, 60, 0, 0, 40, 60))
    assert np.abs(flipped[:, ::-1].astype(int) - plain).sum() <= 30  # the rasteriser's own asymmetry at the slope
    assert plain.sum() == pytest.approx(300, abs=20)
    assert abs(int(flipped[:, 30:].sum()) - int(plain[:, :30].sum())) <= 30


def test_a_cropped_polygon_is_the_crop_of_the_polygon() -> None:
    triangle = [[3.0, 2.0, 55.0, 8.0, 20.0, 39.0]]
    full_HW = place_mask(triangle, 40, 60, AS_IT_IS)
    cropped_HW = place_mask(triangle, 40, 60, Placement(False, 40, 60, 10, 15, 20, 30))
    # COCO's rasteriser walks edges in steps of their length: a handful of edge pixels may fall on the other side.
    assert (cropped_HW != full_HW[10:30, 15:45]).sum() <= 5
    assert cropped_HW.sum() > 200


def test_crowds_and_objects_outside_the_view_are_dropped() -> None:
    objects = [crowd(1, 1, (2, 3, 10, 6), 40, 60), record(2, 1, 7, (1, 1, 4, 4)), record(3, 1, 3, (40, 20, 10, 10))]
    targets = place_objects(objects, {3: 1, 7: 2}, 40, 60, Placement(False, 40, 60, 15, 30, 25, 30))
    assert targets.labels_N.tolist() == [1]
    assert targets.boxes_N4.tolist() == [[10, 5, 20, 15]]
    nothing = place_objects(objects[:1], {3: 1}, 40, 60, AS_IT_IS)
    assert nothing.boxes_N4.shape == (0, 4)
    assert nothing.masks_NHW.shape == (0, 40, 60)


def test_jitter_covers_its_range_and_is_a_function_of_seed_epoch_and_image() -> None:
    draw = np.random.default_rng(0)
    factors = [jittered(40, 60, 60, (0.1, 2.0), draw.random(4)).width / 60 for _ in range(400)]
    assert min(factors) == pytest.approx(0.1, abs=0.02)
    assert max(factors) == pytest.approx(2.0, abs=0.02)
    view = JitteredView({3: 1}, 48, (0.5, 2.0), seed=4)
    pixels_HWC = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    same, again, other = (view(pixels_HWC, [record(1, 1, 3, (10, 5, 24, 30))], 9, epoch) for epoch in (1, 1, 2))
    assert torch.equal(same.image_CHW, again.image_CHW)
    assert torch.equal(same.targets.boxes_N4, again.targets.boxes_N4)
    assert not torch.equal(same.image_CHW, other.image_CHW)


def test_decoded_runs_are_pycocotools() -> None:
    mask_HW = np.random.default_rng(0).random((17, 9)) < 0.4
    coded = coder.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
    text = {"size": coded["size"], "counts": coded["counts"].decode()}
    assert np.array_equal(decode_runs(text), mask_HW)
    assert np.array_equal(decode_runs({"size": [17, 9], "counts": runs(mask_HW.astype(int))}), mask_HW)

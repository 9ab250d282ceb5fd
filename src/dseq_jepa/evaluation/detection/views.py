"""What a detector sees of a picture and its objects: large-scale jitter in training, the fitted whole in testing.

    view = JitteredView(categories=part.labels, image_size=1024, scale_range=(0.1, 2.0), seed=0)
    sample = view(pixels_HWC, objects, image_id, epoch)

Large-scale jitter (Ghiasi et al., 2021) as detectron2 has it: flip, fit into the square times a factor, crop to the
square; what is smaller stays smaller and is padded later. Polygons are moved as polygons and drawn where they end up,
so that a mask is as sharp at any scale. Boxes are drawn around the masks that are left; objects without a pixel left
and crowds are dropped. Every view is a pure function of the picture, (seed, epoch, image id).

H W pixels of the view, N objects of a picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dseq_jepa.data.coco import run_lengths
from dseq_jepa.draws import uniforms

_DRAWS = 4


@dataclass(frozen=True, eq=False)
class Targets:
    """Objects of one view."""

    boxes_N4: Tensor
    """float32: left, top, right and bottom edges in pixels of the view."""
    labels_N: Tensor
    """int64, from 1."""
    masks_NHW: Tensor
    """uint8, 0 or 1."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One training view."""

    image_CHW: Tensor
    """uint8."""
    targets: Targets


@dataclass(frozen=True)
class Placement:
    """How a picture becomes a view: mirrored, then resized, then cropped."""

    flip: bool
    height: int
    """Of the resized picture."""
    width: int
    top: int
    """Of the crop in the resized picture."""
    left: int
    crop_height: int
    crop_width: int


def fitted(height: int, width: int, size: float) -> tuple[int, int]:
    """Height and width of a picture that is resized until it just fits into a square of `size`, at least one pixel."""
    scale = min(size / height, size / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def whole(height: int, width: int, image_size: int) -> Placement:
    """The whole picture, its long side as long as the square's."""
    new_height, new_width = fitted(height, width, image_size)
    return Placement(False, new_height, new_width, 0, 0, new_height, new_width)


def jittered(
    height: int, width: int, image_size: int, scale_range: tuple[float, float], draws_K: NDArray[np.float64]
) -> Placement:
    """Large-scale jitter.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        image_size: side of the square.
        scale_range: smallest and largest factor.
        draws_K: four numbers in [0, 1): flip, factor, top and left of the crop.

    """
    low, high = scale_range
    new_height, new_width = fitted(height, width, image_size * (low + (high - low) * draws_K[1]))
    top, left = (
        round(max(0, side - image_size) * u) for side, u in zip((new_height, new_width), draws_K[2:], strict=True)
    )
    crop = (min(new_height, image_size), min(new_width, image_size))
    return Placement(bool(draws_K[0] < 0.5), new_height, new_width, int(top), int(left), *crop)


def place_image(image_HWC: NDArray[np.uint8], placement: Placement) -> Tensor:
    """uint8 (C, H, W) of a picture; antialiased bilinear resampling."""
    image_CHW = torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)
    return _cut(_resized(image_CHW, placement, antialias=True), placement)


def _resized(image_CHW: Tensor, placement: Placement, *, antialias: bool) -> Tensor:
    if placement.flip:
        image_CHW = image_CHW.flip(-1)
    size = (placement.height, placement.width)
    if image_CHW.shape[-2:] == size:
        return image_CHW
    if not antialias:
        return F.interpolate(image_CHW[None], size, mode="nearest-exact")[0]
    return F.interpolate(image_CHW[None], size, mode="bilinear", antialias=True)[0]


def _cut(image_CHW: Tensor, placement: Placement) -> Tensor:
    bottom, right = placement.top + placement.crop_height, placement.left + placement.crop_width
    return image_CHW[:, placement.top : bottom, placement.left : right]


def place_mask(segmentation: Any, height: int, width: int, placement: Placement) -> NDArray[np.uint8]:
    """Pixels of an object in the view, (H, W) of 0 and 1.

    Args:
        segmentation: polygons or run lengths, as an annotation has them.
        height: of the picture in pixels.
        width: of the picture in pixels.
        placement: of the view.

    """
    if isinstance(segmentation, dict):
        mask_1HW = torch.from_numpy(decode_runs(segmentation))[None]
        return np.asarray(_cut(_resized(mask_1HW, placement, antialias=False), placement)[0])
    from faster_coco_eval.core import mask as coder

    moved = []
    for polygon in segmentation:
        points_P2 = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if placement.flip:
            points_P2[:, 0] = width - points_P2[:, 0]
        points_P2 *= [placement.width / width, placement.height / height]
        points_P2 -= [placement.left, placement.top]
        moved.append(points_P2.ravel().tolist())
    runs = coder.frPyObjects(moved, placement.crop_height, placement.crop_width)
    return np.asarray(coder.decode(coder.merge(runs)), dtype=np.uint8)


def decode_runs(segmentation: Mapping[str, Any]) -> NDArray[np.uint8]:
    """(H, W) of 0 and 1 from run lengths, compressed or not."""
    height, width = segmentation["size"]
    runs = run_lengths(segmentation["counts"])
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)


def place_objects(
    objects: Sequence[Mapping[str, Any]], labels: Mapping[int, int], height: int, width: int, placement: Placement
) -> Targets:
    """Objects that are visible in the view, crowds left out.

    Args:
        objects: annotations of the picture.
        labels: official category id to label.
        height: of the picture in pixels.
        width: of the picture in pixels.
        placement: of the view.

    """
    boxes, kept_labels, masks = [], [], []
    for record in objects:
        if record["iscrowd"]:
            continue
        mask_HW = place_mask(record["segmentation"], height, width, placement)
        rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
        if not len(rows):
            continue
        boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        kept_labels.append(labels[record["category_id"]])
        masks.append(mask_HW)
    shape = (0, placement.crop_height, placement.crop_width)
    return Targets(
        torch.tensor(np.asarray(boxes, dtype=np.float32).reshape(-1, 4)),
        torch.tensor(kept_labels, dtype=torch.int64),
        torch.from_numpy(np.stack(masks) if masks else np.zeros(shape, np.uint8)),
    )


@dataclass(frozen=True)
class JitteredView:
    """Training views."""

    labels: Mapping[int, int]
    """Official category id to label."""
    image_size: int
    scale_range: tuple[float, float]
    seed: int

    def __call__(
        self, image_HWC: NDArray[np.uint8], objects: Sequence[Mapping[str, Any]], image_id: int, epoch: int
    ) -> Sample:
        """A view of a picture and its objects."""
        height, width = image_HWC.shape[:2]
        draws_K = uniforms(self.seed, "jitter", epoch, [image_id], _DRAWS)[0]
        placement = jittered(height, width, self.image_size, self.scale_range, draws_K)
        targets = place_objects(objects, self.labels, height, width, placement)
        return Sample(place_image(image_HWC, placement), targets)

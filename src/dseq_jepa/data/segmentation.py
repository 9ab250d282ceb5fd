"""What a segmentation network sees of a picture and its mask (docs/protocols.md 5; mmsegmentation's recipe).

    split = load_masked(settings, "train")
    view = SegmentationView(split, image_size=512, mean=MEAN, seed=0)
    view(image_HWC, image_id=3, epoch=0)        # uint8 (4, 512, 512): the picture, and the classes as a fourth channel

Random resize, crop, flip and photometric distortion are pure functions of picture, mask and (seed, epoch, image id).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dseq_jepa.data.ade20k import IGNORED, NAMES, read_mask, read_pairs
from dseq_jepa.data.catalog import Split, require_images
from dseq_jepa.data.decode import BadImage
from dseq_jepa.data.layouts import Part
from dseq_jepa.data.names import Names
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.draws import uniforms

Pixels = NDArray[np.uint8]

RESIZE = (0.5, 2.0)
"""Of the training pictures, times the size that test pictures have."""
LONGEST = 4.0
"""The long side of a resized picture is at most so many of its intended short sides."""
MOST_OF_ONE = 0.75
"""A crop with a larger share of one class is drawn again."""
CROP_TRIES = 10
_BRIGHTNESS, _CONTRAST, _SATURATION = 32.0, (0.5, 1.5), (0.5, 1.5)
_HUE = 18.0 / 180.0
"""Of the whole circle; OpenCV's 18 of 180."""


@dataclass(frozen=True, eq=False)
class MaskedSplit(Split):
    """Pictures with a class per pixel; `labels`, one per picture, are all 0 and mean nothing."""

    masks: Names

    def mask(self, image_id: int, image_HWC: Pixels) -> Pixels:
        """(H, W) classes of a picture, IGNORED where there is none.

        Raises:
            BadImage: the mask cannot be read, or is not as large as the picture.

        """
        path = self.root / self.masks[image_id]
        mask_HW = read_mask(path)
        (height, width), (rows, columns) = mask_HW.shape, image_HWC.shape[:2]
        if (height, width) != (rows, columns):
            raise BadImage(f"{path}: {width} x {height} pixels, but {self.paths[image_id]} has {columns} x {rows}")
        return mask_HW


def load_masked(settings: DatasetSettings, part: Part) -> MaskedSplit:
    """Pictures and masks of a split of ADE20K's layout.

    Raises:
        UserError: a picture without a mask, or the other way round; a count differs from the settings.

    """
    pairs = read_pairs(settings.root, part)
    require_images(settings, part, len(pairs))
    labels_N = np.zeros(len(pairs), np.int64)
    return MaskedSplit(settings.root, pairs.pictures, labels_N, NAMES, pairs.masks)


def resized(height: int, width: int, short: float) -> tuple[int, int]:
    """Height and width with a short side of `short` pixels, unless the long side would be over LONGEST times that."""
    scale = min(short / min(height, width), LONGEST * short / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclass(frozen=True)
class SegmentationView:
    """A random crop of a randomly resized pair, flipped every other time, its colours distorted."""

    split: MaskedSplit
    image_size: int
    mean: tuple[float, float, float]
    """On [0, 1]: the colour of the padding of a picture smaller than the crop."""
    seed: int

    def __call__(self, image_HWC: Pixels, image_id: int, epoch: int) -> Tensor:
        """uint8 (4, image_size, image_size): red, green, blue and class.

        Raises:
            BadImage: the mask cannot be read, or is not as large as the picture.

        """
        mask_HW, size = self.split.mask(image_id, image_HWC), self.image_size
        draws_K = uniforms(self.seed, "segmentation view", epoch, [image_id], 2 + 2 * CROP_TRIES + 9)[0]
        old_height, old_width = mask_HW.shape
        height, width = resized(old_height, old_width, size * _between(RESIZE, draws_K[0]))
        rows_H, columns_W = nearest(old_height, height), nearest(old_width, width)
        for attempt in range(CROP_TRIES):
            u_top, u_left = draws_K[2 + 2 * attempt : 4 + 2 * attempt]
            top, left = int(u_top * (max(0, height - size) + 1)), int(u_left * (max(0, width - size) + 1))
            crop_HW = mask_HW[np.ix_(rows_H[top : top + size], columns_W[left : left + size])]
            if _varied(crop_HW):
                break
        high, wide = crop_HW.shape  # less than the size where the resized picture is smaller
        view_HWC = _cut(
            image_HWC, (left / width, top / height, (left + wide) / width, (top + high) / height), high, wide
        )
        if draws_K[1] < 0.5:
            view_HWC, crop_HW = view_HWC[:, ::-1], crop_HW[:, ::-1]
        view_HWC = distorted(view_HWC, draws_K[-9:])
        canvas_HWC = np.empty((size, size, 4), np.uint8)
        canvas_HWC[:] = (*(round(255 * value) for value in self.mean), IGNORED)
        canvas_HWC[:high, :wide] = np.dstack([view_HWC, crop_HW])
        return torch.from_numpy(canvas_HWC).permute(2, 0, 1).contiguous()


def nearest(old: int, new: int) -> NDArray[np.int64]:
    """(new,) positions in a line of `old` pixels that a nearest-neighbour resize to `new` takes."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def _varied(crop_HW: Pixels) -> bool:
    """Whether no class has more than its share of the labelled pixels."""
    counts_K = np.bincount(crop_HW.ravel(), minlength=IGNORED + 1)[:IGNORED]
    return bool((counts_K > 0).sum() > 1 and counts_K.max() < MOST_OF_ONE * counts_K.sum())


def _cut(image_HWC: Pixels, box: tuple[float, float, float, float], high: int, wide: int) -> Pixels:
    """Resize a box, in fractions of the picture (left, top, right, bottom), to (high, wide), bilinear."""
    height, width = image_HWC.shape[:2]
    pixels = (box[0] * width, box[1] * height, min(box[2], 1.0) * width, min(box[3], 1.0) * height)
    image = Image.fromarray(image_HWC).resize((wide, high), Image.Resampling.BILINEAR, box=pixels)
    return np.array(image)


def distorted(image_HWC: Pixels, draws_9: NDArray[np.float64]) -> Pixels:
    """Brightness, contrast, saturation and hue, each every other time; contrast before or after the last two.

    Args:
        image_HWC: a picture.
        draws_9: numbers in [0, 1).

    """
    on_4, by_4, contrast_first = draws_9[:4] < 0.5, draws_9[4:8], draws_9[8] < 0.5
    if on_4[0]:
        image_HWC = _linear(image_HWC, 1.0, _BRIGHTNESS * (2 * by_4[0] - 1))
    contrast = _between(_CONTRAST, by_4[1])
    if on_4[1] and contrast_first:
        image_HWC = _linear(image_HWC, contrast, 0.0)
    if on_4[2] or on_4[3]:
        hsv_HWC = np.array(Image.fromarray(image_HWC).convert("HSV"))
        if on_4[2]:
            hsv_HWC[..., 1] = _linear(hsv_HWC[..., 1], _between(_SATURATION, by_4[2]), 0.0)
        if on_4[3]:
            shift = round(256 * _HUE * (2 * by_4[3] - 1))
            hsv_HWC[..., 0] = (hsv_HWC[..., 0].astype(np.int16) + shift) % 256
        image_HWC = np.array(Image.fromarray(hsv_HWC, "HSV").convert("RGB"))
    if on_4[1] and not contrast_first:
        image_HWC = _linear(image_HWC, contrast, 0.0)
    return image_HWC


def _linear(values: Pixels, factor: float, offset: float) -> Pixels:
    return (values.astype(np.float32) * np.float32(factor) + np.float32(offset)).clip(0, 255).astype(np.uint8)


def _between(limits: tuple[float, float], u: float) -> float:
    return float(limits[0] + (limits[1] - limits[0]) * u)


def shrunk(image_HWC: Pixels, size: int) -> Tensor:
    """uint8 (3, h, w): a test picture with a short side of `size` pixels, bilinear; long ones a little less."""
    height, width = resized(image_HWC.shape[0], image_HWC.shape[1], size)
    image = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)

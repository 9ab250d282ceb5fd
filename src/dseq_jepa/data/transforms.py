"""What the network sees of a picture: crops, test views and normalisation.

    python benchmarks/decode.py        # against torchvision's ImageFolder + PIL at the same crop law

Pixels stay uint8 until they are on the device; `normalise` runs there. Views are pure functions of the picture and of
(seed, epoch, image id), so a picture's crop is the same on any number of ranks and after any resume.

Training crops are resampled by torch's antialiased uint8 kernel: 3.5 times as fast as PIL's `crop().resize()` and
within two grey levels of it (3% of the values differ by one, without bias). Test views are PIL's own, to the bit: its
bicubic differs from torch's by up to 8 levels on a few pixels, and a published protocol should be met exactly.
JPEGs are always decoded at full size. (Decoding at half size where the crop allows it is a speed-up that changes
pixels, and ImageNet's 500 x 375 pictures are too small for it.)

Shapes: B images, C channels, H W pixels.
"""

import functools
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's channel means on [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""ImageNet's channel standard deviations on [0, 1]."""

_RATIO = (3 / 4, 4 / 3)
_TRIES = 10


def normalise(images_BCHW: Tensor) -> Tensor:
    """uint8 images to float32 with ImageNet's mean and deviation, on the device where they lie."""
    mean_C11, std_C11 = _statistics(images_BCHW.device)
    return images_BCHW.to(torch.float32).sub_(mean_C11).div_(std_C11)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on [0, 255], copied to a device once and not at every step."""
    mean_C11, std_C11 = (
        torch.tensor([255 * value for value in values], device=device)[:, None, None] for values in (MEAN, STD)
    )
    return mean_C11, std_C11


@dataclass(frozen=True)
class Box:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_box(height: int, width: int, scale: tuple[float, float], uniforms_K: NDArray[np.float64]) -> Box:
    """RandomResizedCrop's law: an area in `scale`, a log-uniform ratio in 3/4..4/3, ten tries, then the centre.

    Source: torchvision.transforms.RandomResizedCrop.get_params.

    Args:
        height: of the picture in pixels.
        width: of the picture in pixels.
        scale: smallest and largest area, as a fraction of the picture.
        uniforms_K: CROP_DRAWS numbers in [0, 1).

    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for attempt in range(_TRIES):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms_K[2 * attempt])
        ratio = math.exp(low + (high - low) * uniforms_K[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(u * (room + 1)) for u, room in zip(uniforms_K[-2:], (height - h, width - w), strict=True))
            return Box(top, left, h, w)
    w = min(width, round(height * _RATIO[1]))
    h = min(height, round(width / _RATIO[0]))
    return Box((height - h) // 2, (width - w) // 2, h, w)


CROP_DRAWS = 2 * _TRIES + 2
"""Numbers that one crop takes: area and ratio of every try, then top and left."""


def resample(image_HWC: NDArray[np.uint8], size: int) -> Tensor:
    """Antialiased bilinear resampling to a square: uint8 (C, size, size). A strided view such as a crop is fine."""
    image_1CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None]
    return F.interpolate(image_1CHW, (size, size), mode="bilinear", antialias=True)[0]


class View(Protocol):
    """A picture as the network sees it."""

    @property
    def image_size(self) -> int:
        """Side of the square result in pixels."""

    def __call__(self, image_HWC: NDArray[np.uint8], image_id: int, epoch: int) -> Tensor:
        """uint8 (C, image_size, image_size)."""


@dataclass(frozen=True)
class TrainView:
    """RandomResizedCrop (bilinear, as I-JEPA's public code), and, if asked for, a flip of every other image."""

    image_size: int
    crop_scale: tuple[float, float]
    flip: bool
    seed: int

    def __call__(self, image_HWC: NDArray[np.uint8], image_id: int, epoch: int) -> Tensor:
        """uint8 (C, image_size, image_size), a pure function of picture, seed, epoch and id."""
        draws_K = uniforms(self.seed, "crop", epoch, [image_id], CROP_DRAWS)[0]
        box = crop_box(image_HWC.shape[0], image_HWC.shape[1], self.crop_scale, draws_K)
        crop_HWC = image_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
        view_CHW = resample(crop_HWC, self.image_size)
        if self.flip and uniforms(self.seed, "flip", epoch, [image_id], 1)[0, 0] < 0.5:
            return view_CHW.flip(-1)
        return view_CHW


@dataclass(frozen=True)
class TestView:
    """Short side to `resize` (bicubic), then the centre; with resize None the whole picture, squeezed to a square."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    image_size: int
    resize: int | None

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < self.image_size:
            raise UserError(
                f"test_resize {self.resize} is smaller than the centre crop of {self.image_size} that follows; "
                f"set at least {self.image_size}, or null for the whole picture"
            )

    def __call__(self, image_HWC: NDArray[np.uint8], image_id: int, epoch: int) -> Tensor:
        """uint8 (C, image_size, image_size); the same for every id and epoch."""
        image, size = Image.fromarray(image_HWC), self.image_size
        if self.resize is None:
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        else:
            short = min(image.size)
            width, height = (self.resize * side // short for side in image.size)
            left, top = round((width - size) / 2), round((height - size) / 2)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + size, top + size))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

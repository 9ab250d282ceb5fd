"""Views of pictures for training a whole network: fine-tuning's crops with RandAugment (docs/protocols.md 3).

    view = FinetuneView(image_size=224, policy="rand-m9-mstd0.5-inc1", mean=MEAN, seed=0)
    view(image_HWC, image_id=3, epoch=0)        # uint8 (3, 224, 224), the same for the same arguments

The policy is timm's own; it draws from global generators, which are seeded per (seed, epoch, image) around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dseq_jepa.data.transforms import CROP_DRAWS, crop_box
from dseq_jepa.draws import seeded, uniforms

CROP_SCALE = (0.08, 1.0)
"""Area of the crop (MAE's fine-tuning, as timm's create_transform)."""


@dataclass(frozen=True)
class FinetuneView:
    """RandomResizedCrop (bicubic), flip of every other image, and timm's RandAugment."""

    image_size: int
    policy: str | None
    """timm's name, such as rand-m9-mstd0.5-inc1; None: crop and flip alone."""
    mean: tuple[float, float, float]
    """On [0, 1]: the colour of what a rotation or translation uncovers."""
    seed: int

    def __call__(self, image_HWC: NDArray[np.uint8], image_id: int, epoch: int) -> Tensor:
        """uint8 (C, image_size, image_size), a pure function of picture, seed, epoch and id."""
        draws_K = uniforms(self.seed, "crop", epoch, [image_id], CROP_DRAWS)[0]
        box = crop_box(image_HWC.shape[0], image_HWC.shape[1], CROP_SCALE, draws_K)
        crop_HWC = image_HWC[box.top : box.top + box.height, box.left : box.left + box.width]
        view = Image.fromarray(crop_HWC).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        if uniforms(self.seed, "flip", epoch, [image_id], 1)[0, 0] < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._augment is not None:
            with seeded(self.seed, "policy", epoch, image_id):
                view = self._augment(view)
        return torch.from_numpy(np.array(view)).permute(2, 0, 1)

    @cached_property
    def _augment(self) -> Callable[[Image.Image], Image.Image] | None:
        """The policy with the parameters that timm's create_transform gives it."""
        if self.policy is None:
            return None
        from timm.data import auto_augment

        parameters = {
            "translate_const": int(self.image_size * 0.45),
            "img_mean": tuple(min(255, round(255 * value)) for value in self.mean),
            "interpolation": Image.Resampling.BICUBIC,
        }
        augment = auto_augment.rand_augment_transform(self.policy, parameters)

        def posterize(image: Image.Image, bits: int, fillcolor: object, resample: object) -> Image.Image:
            """Timm's, and black for the 0 bits of the greatest magnitude, which Pillow refuses since version 12."""
            return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)

        for operation in augment.ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = posterize
        return augment  # type: ignore[no-any-return]

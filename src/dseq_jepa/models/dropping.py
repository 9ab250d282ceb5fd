"""Stochastic depth and channel dropout whose choices are handed in per image.

    hand_out(model, seed=0, step=17, ids_B=batch.ids_B.numpy(), device=device)      # before a training step
    loss = model(images_BCHW)

timm's and torch's own modules draw from the process's generator, so that what happens to an image depends on how many
ranks there are. Here it is a function of (seed, step, image). B images, K numbers of an image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import DropPath
from torch import Tensor, nn

from dseq_jepa.draws import uniforms


class ImageDropPath(DropPath):  # type: ignore[misc]  # timm is untyped
    """timm's DropPath, keeping the branch of an image where its number is at least the rate."""

    numbers_BK: Tensor | None = None
    """(B, 1) in [0, 1)."""
    count = 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) with the branches of some images zeroed and the others scaled up, in training mode."""
        if not self.training:
            return x
        assert self.numbers_BK is not None, "hand_out comes before a training step"
        keep_B1: Tensor = (self.numbers_BK >= self.drop_prob).to(x.dtype) / (1 - self.drop_prob)
        return x * keep_B1.view(-1, *[1] * (x.ndim - 1))


class ImageDropout2d(nn.Module):
    """torch's Dropout2d, keeping a channel of an image where its number is at least the rate."""

    numbers_BK: Tensor | None = None
    """(B, C) in [0, 1)."""

    def __init__(self, rate: float, channels: int) -> None:
        super().__init__()
        self.rate, self.count = rate, channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) with some channels zeroed and the others scaled up, in training mode."""
        if not self.training:
            return x_BCHW
        assert self.numbers_BK is not None, "hand_out comes before a training step"
        return x_BCHW * ((self.numbers_BK >= self.rate).to(x_BCHW.dtype) / (1 - self.rate))[:, :, None, None]


def hand_out(model: nn.Module, *, seed: int, step: int, ids_B: NDArray[np.int64], device: torch.device) -> None:
    """Give every dropping module of a model the numbers of this step's images.

    Args:
        model: with any number of ImageDropPath and ImageDropout2d.
        seed: of the run.
        step: from 0.
        ids_B: the images of this rank's part of the batch, in order.
        device: of the model.
    """
    modules = [module for module in model.modules() if isinstance(module, ImageDropPath | ImageDropout2d)]
    if not modules:
        return
    counts = [module.count for module in modules]
    numbers_BK = torch.from_numpy(uniforms(seed, "dropping", step, ids_B, sum(counts))).to(device)
    for module, part_BK in zip(modules, torch.split(numbers_BK, counts, dim=1), strict=True):
        module.numbers_BK = part_BK

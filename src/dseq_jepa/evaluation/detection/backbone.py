"""The encoder as a detector's backbone, and ViTDet's simple feature pyramid on its last block.

    backbone = DetectionViT(load_encoder(path, drop_path=0.1), window=14)
    levels = SimpleFeaturePyramid(backbone.width, 256)(backbone(images_BCHW))      # strides p/4, p/2, p, 2p, 4p

Source: Li et al., "Exploring plain vision transformer backbones for object detection" (2022), as detectron2 has it:
neither class token nor final norm; positions are learned from the encoder's on and interpolated to the input's grid.
B images, D width, H W tokens of the grid, P positions of the encoder's own.
"""

import math

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from dseq_jepa.models.vit import VisionTransformer


def global_blocks(depth: int, window: int | None) -> frozenset[int]:
    """Which blocks, from 0, see the whole image: with windows the last of every quarter (ViT-B: 2, 5, 8, 11)."""
    if window is None:
        return frozenset(range(depth))
    return frozenset(math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4))


class DetectionViT(nn.Module):
    """An encoder that takes images of any size that its patches divide.

    Args:
        encoder: exported weights; its modules are taken over and trained, its stochastic depth with them.
        window: side of the attention windows in patches; None: every block sees the whole image.

    """

    def __init__(self, encoder: VisionTransformer, window: int | None) -> None:
        super().__init__()
        self.width, self.patch = encoder.settings.width, encoder.settings.patch_size
        self.window, self.checkpointing = window, encoder.checkpointing
        self.patch_embed, self.blocks = encoder.patch_embed, encoder.blocks
        self.pos_embed = nn.Parameter(encoder.pos_embed.detach().clone())
        self.whole_view = global_blocks(len(self.blocks), window)
        self.requires_grad_(True).train()

    def positions(self, height: int, width: int) -> Tensor:
        """(1, H, W, D) positions of a grid: the encoder's own, interpolated bicubically."""
        side = round(self.pos_embed.shape[1] ** 0.5)
        own_1DSS = self.pos_embed.view(1, side, side, self.width).permute(0, 3, 1, 2)
        if (height, width) != (side, side):
            own_1DSS = F.interpolate(own_1DSS, (height, width), mode="bicubic", align_corners=False)
        return own_1DSS.permute(0, 2, 3, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, D, H, W) outputs of the last block for normalised images."""
        projection = self.patch_embed.proj
        x_BHWD = F.conv2d(images_BCHW, projection.weight, projection.bias, stride=self.patch).permute(0, 2, 3, 1)
        x_BHWD = x_BHWD + self.positions(*x_BHWD.shape[1:3])
        for index, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x_BHWD = torch.utils.checkpoint.checkpoint(self._pass, x_BHWD, block, index, use_reentrant=False)
            else:
                x_BHWD = self._pass(x_BHWD, block, index)
        return x_BHWD.permute(0, 3, 1, 2)

    def _pass(self, x_BHWD: Tensor, block: nn.Module, index: int) -> Tensor:
        """One block; its parts are timm's."""
        attended = self._attend(block, block.norm1(x_BHWD), index in self.whole_view)  # type: ignore[operator]
        x_BHWD = x_BHWD + block.drop_path1(attended)  # type: ignore[operator]
        return x_BHWD + block.drop_path2(block.mlp(block.norm2(x_BHWD)))  # type: ignore[operator,no-any-return]

    def _attend(self, block: nn.Module, x_BHWD: Tensor, everywhere: bool) -> Tensor:
        """Attention over the whole grid or within windows; a grid that windows do not divide is padded with zeros."""
        batch, height, width, depth = x_BHWD.shape
        if everywhere or self.window is None:
            return block.attn(x_BHWD.flatten(1, 2)).view(x_BHWD.shape)  # type: ignore[operator,no-any-return]
        side = self.window
        padded = F.pad(x_BHWD, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.view(batch, rows, side, columns, side, depth).transpose(2, 3).reshape(-1, side * side, depth)
        mixed = block.attn(windows).view(batch, rows, columns, side, side, depth).transpose(2, 3)  # type: ignore[operator]
        return mixed.reshape(padded.shape)[:, :height, :width]  # type: ignore[no-any-return]


class SimpleFeaturePyramid(nn.Module):
    """Four levels, x4, x2, x1 and x0.5, from one map, and a fifth that is every second pixel of the fourth."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        up4 = [
            nn.ConvTranspose2d(width, width // 2, 2, stride=2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, stride=2),
        ]
        up2 = [nn.ConvTranspose2d(width, width // 2, 2, stride=2)]
        self.levels = nn.ModuleList(
            nn.Sequential(*resize, *_smooth(narrowed, channels))
            for resize, narrowed in ((up4, width // 4), (up2, width // 2), ([], width), ([nn.MaxPool2d(2)], width))
        )

    def forward(self, features_BDHW: Tensor) -> list[Tensor]:
        """Five maps of `channels` channels, finest first."""
        maps = [level(features_BDHW) for level in self.levels]
        return [*maps, F.max_pool2d(maps[-1], 1, stride=2)]


def _smooth(width: int, channels: int) -> list[nn.Module]:
    """A 1 x 1 and a 3 x 3 convolution, each with LayerNorm over the channels."""
    return [
        nn.Conv2d(width, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]

"""The encoder: a plain ViT on timm's blocks that takes any subset of patches, each with a rank.

    tokens = VisionTransformer(settings, class_token=True).read(images_BCHW, blocks=[10, 12])

Fixed 2-D sin-cos positions (MAE and I-JEPA order), none on the class token. State-dict names are timm's.
B images, T patches of an image, P packed tokens, D width, K values of a patch's pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.models.packing import PackedBlock, Packing, initialise, layer_norm, run_blocks
from dseq_jepa.models.positions import sincos_2d
from dseq_jepa.models.settings import ArchitectureSettings


@dataclass(frozen=True)
class Tokens:
    """A block's output for whole images, after the final LayerNorm."""

    class_BD: Tensor | None
    """None for an encoder without a class token."""
    patches_BTD: Tensor


@dataclass(frozen=True)
class VisibleTokens:
    """Which tokens a context encoder sees: patches and copies of the class token, packed."""

    patch_P: Tensor
    """Row of each packed patch among all B*T patches of the batch; any row for a class-token copy."""
    is_class_P: Tensor
    """True for class-token copies."""
    packing: Packing
    last: Packing
    """Of the last block: it computes the patches alone."""


def patch_pixels(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, (B, T, C*p*p), pixels in the order of a convolution's weight."""
    B, C, H, W = images_BCHW.shape
    p = patch_size
    grid = images_BCHW.view(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(B, (H // p) * (W // p), C * p * p)


class VisionTransformer(nn.Module):
    """ViT encoder (docs/protocols.md 1), with or without a class token."""

    pos_embed: Tensor

    def __init__(
        self,
        settings: ArchitectureSettings,
        class_token: bool,
        *,
        checkpointing: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.class_token_on = class_token
        self.checkpointing = checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, settings.width)) if class_token else None
        self.patch_embed = PatchEmbed(settings.image_size, settings.patch_size, 3, settings.width)
        self.register_buffer(
            "pos_embed", torch.from_numpy(sincos_2d(settings.grid, settings.width))[None], persistent=False
        )
        rates = [drop_path * block / max(1, settings.depth - 1) for block in range(settings.depth)]
        self.blocks = nn.ModuleList(PackedBlock(settings.width, settings.heads, rate) for rate in rates)
        self.norm = layer_norm(settings.width)
        self.apply(initialise)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def embed(self, pixels_NK: Tensor) -> Tensor:
        """Linear patch embedding of any patches, (..., K) to (..., D), without positions."""
        projection = self.patch_embed.proj
        return F.linear(pixels_NK, projection.weight.flatten(1), projection.bias)

    def read(self, images_BCHW: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Encode whole images and return the outputs of some blocks.

        Args:
            images_BCHW: normalised images of the configured size.
            blocks: 1-based block numbers.

        Returns:
            One entry per block number, after the final LayerNorm.

        """
        return self.read_pixels(patch_pixels(images_BCHW, self.settings.patch_size), blocks)

    def read_pixels(self, pixels_BTK: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """As `read`, from images already cut into patches."""
        x_BLD = self.embed(pixels_BTK) + self.pos_embed
        if self.cls_token is not None:
            x_BLD = torch.cat([self.cls_token.expand(len(x_BLD), -1, -1).to(x_BLD.dtype), x_BLD], dim=1)
        outputs: dict[int, Tokens] = {}
        for number, block in enumerate(self.blocks, start=1):
            x_BLD = run_blocks([block], x_BLD, None, checkpointing=self.checkpointing)
            if number in blocks:
                outputs[number] = self._split(self.norm(x_BLD))
            if number == max(blocks):
                break
        return [outputs[number] for number in blocks]

    def _split(self, x_BLD: Tensor) -> Tokens:
        if self.cls_token is None:
            return Tokens(None, x_BLD)
        return Tokens(x_BLD[:, 0], x_BLD[:, 1:])

    def forward(self, pixels_BTK: Tensor, visible: VisibleTokens) -> Tensor:
        """Encode the visible tokens only.

        Args:
            pixels_BTK: images cut into patches.
            visible: which patches and class-token copies, and who may attend to whom.

        Returns:
            (Q, D) outputs of the patches, in packed order, after the final LayerNorm.

        """
        x_PD = self.embed(pixels_BTK.flatten(0, 1).index_select(0, visible.patch_P))
        x_PD = x_PD + self.pos_embed[0].index_select(0, visible.patch_P % self.settings.patches)
        if self.cls_token is not None:
            x_PD = torch.where(visible.is_class_P[:, None], self.cls_token[0].to(x_PD.dtype), x_PD)
        x_PD = run_blocks(self.blocks[:-1], x_PD, visible.packing, checkpointing=self.checkpointing)
        x_QD = run_blocks(self.blocks[-1:], x_PD, visible.last, checkpointing=self.checkpointing)
        return self.norm(x_QD)  # type: ignore[no-any-return]

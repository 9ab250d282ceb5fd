"""An exported encoder that is trained on: positions become parameters, and any block's raw output can be read.

    backbone = Backbone.load(Path("out/encoder.safetensors"), drop_path=0.1)
    tokens = backbone(backbone.normalise(images_BCHW), blocks=[4, 6, 8, 12])
    groups = layer_groups(backbone, weight_decay=0.05, layer_decay=0.65)

B images, T patches, D width, H W pixels, h w patches per side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from timm.layers import resample_abs_pos_embed
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from dseq_jepa.evaluation.settings import TunedSettings
from dseq_jepa.models.packing import run_blocks
from dseq_jepa.models.vit import VisionTransformer
from dseq_jepa.models.weights import load_encoder, read_card


class Backbone(nn.Module):
    """The encoder without its final LayerNorm, with timm's names.

    As in MAE's fine-tuning, the positions start as the encoder's fixed ones and learn with the slowest rate.

    Args:
        encoder: whose parts are taken over.
        mean: of the channels on [0, 1], as the encoder expects.
        std: likewise.
        grid: patches per side, if not the encoder's: the positions are resampled (bicubic).
    """

    mean: Tensor
    """(C, 1, 1) on [0, 255]."""
    std: Tensor
    """(C, 1, 1) on [0, 255]."""

    def __init__(
        self, encoder: VisionTransformer, *, mean: Sequence[float], std: Sequence[float], grid: int | None = None
    ) -> None:
        super().__init__()
        self.settings, self.checkpointing = encoder.settings, encoder.checkpointing
        position_1TD = encoder.pos_embed
        if grid not in (None, encoder.settings.grid):
            old = [encoder.settings.grid] * 2
            position_1TD = resample_abs_pos_embed(position_1TD, [grid, grid], old, num_prefix_tokens=0)
        self.cls_token = encoder.cls_token
        self.pos_embed = nn.Parameter(position_1TD.clone())
        self.patch_embed, self.blocks = encoder.patch_embed, encoder.blocks
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([255 * value for value in values])[:, None, None], persistent=False)
        self.requires_grad_(True)

    @classmethod
    def load(cls, path: Path, settings: TunedSettings, image_size: int | None = None) -> Self:
        """From an exported encoder file and its card.

        Args:
            path: encoder.safetensors.
            settings: stochastic depth and checkpointing.
            image_size: of the square inputs in pixels, a multiple of the patch; the encoder's unless given.

        Raises:
            UserError: the file does not fit its card.

        """
        card = read_card(path)
        encoder = load_encoder(path, checkpointing=settings.activation_checkpointing, drop_path=settings.drop_path)
        grid = None if image_size is None else image_size // card.patch_size
        return cls(encoder, mean=card.mean, std=card.std, grid=grid)

    def normalise(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images to float32 as the encoder expects them, on its device."""
        images_BCHW = images_BCHW.to(self.mean.device, non_blocking=True)
        return images_BCHW.float().sub_(self.mean).div_(self.std)

    def forward(self, images_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
        """Patch tokens after some blocks, before any LayerNorm.

        Args:
            images_BCHW: normalised.
            blocks: 1-based numbers; a shallow encoder's may come twice.

        Returns:
            (B, T, D) for each.

        """
        x_BLD = self.patch_embed.proj(images_BCHW).flatten(2).transpose(1, 2) + self.pos_embed
        prefix = 0
        if self.cls_token is not None:
            x_BLD, prefix = torch.cat([self.cls_token.expand(len(x_BLD), -1, -1).to(x_BLD.dtype), x_BLD], dim=1), 1
        outputs = {}
        for number, block in enumerate(self.blocks, start=1):
            x_BLD = run_blocks([block], x_BLD, None, checkpointing=self.checkpointing)
            if number in blocks:
                outputs[number] = x_BLD[:, prefix:]
        return [outputs[number] for number in blocks]


class _Named(nn.Module):
    """A model for timm's grouping: which names are the stem, and which belong to which block."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def group_matcher(self, coarse: bool) -> dict[str, Any]:
        """Timm's interface; whatever matches nothing is the head."""
        backbone = r"^model\.backbone\."
        stem = backbone + "(?:cls_token|pos_embed|patch_embed)"
        return {"stem": stem, "blocks": [(backbone + r"blocks\.(\d+)", None)]}


def layer_groups(model: nn.Module, settings: TunedSettings) -> list[dict[str, Any]]:
    """Groups of parameters with layer-wise rates, as timm makes them (BEiT, MAE): `lr_scale` is 1 for the head,
    layer_decay for the last block, and layer_decay ** (depth + 1) for patches, positions and class token.

    Args:
        model: with the encoder as its `backbone`.
        settings: layer_decay and weight_decay.
    """
    groups: list[dict[str, Any]] = param_groups_layer_decay(
        _Named(model),
        weight_decay=settings.weight_decay,
        no_weight_decay_list=["model.backbone.cls_token", "model.backbone.pos_embed"],
        layer_decay=settings.layer_decay,
    )
    return groups

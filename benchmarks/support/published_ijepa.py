"""The published I-JEPA step, written anew from its description: a plain recipe to compare with (baseline).

One mask collator per batch with a rejection loop per image; context and target index lists truncated to the shortest
of the batch; attention as softmax(q k^T) v; the context repeated for every target block in the predictor; AdamW as
torch gives it; an EMA loop over parameters. Weights are those of a `Jepa`, so that both sides compute the same loss.
B images, T patches, L context patches, N = images x blocks rows of K target patches, D width, W predictor width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.methods.jepa import Jepa


@dataclass(frozen=True)
class Masks:
    """Patch indices: one context per image, and one tensor per target block."""

    context_BL: Tensor
    targets: list[Tensor]


def _size(grid: int, scale: float, aspect: float) -> tuple[int, int]:
    area = int(grid * grid * scale)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(height, grid - 1), min(width, grid - 1)


def _block(grid: int, size: tuple[int, int]) -> Tensor:
    """A block at a random place; the last row and column are never reached."""
    top = int(torch.randint(grid - size[0], ()))
    left = int(torch.randint(grid - size[1], ()))
    mask_HW = torch.zeros(grid, grid, dtype=torch.bool)
    mask_HW[top : top + size[0], left : left + size[1]] = True
    return mask_HW


def draw_masks(images: int, grid: int) -> Masks:
    """One batch: sizes shared by the batch, places per image, everything cut to the shortest."""
    u, v = torch.rand(2).tolist()
    target_size = _size(grid, 0.15 + 0.05 * u, 0.75 + 0.75 * u)
    context_size = _size(grid, 0.85 + 0.15 * v, 1.0)
    contexts: list[Tensor] = []
    targets: list[list[Tensor]] = []
    for _ in range(images):
        blocks = [_block(grid, target_size) for _ in range(4)]
        free_HW = ~torch.stack(blocks).any(0)
        context_HW = _block(grid, context_size) & free_HW
        while int(context_HW.sum()) <= 10:
            context_HW = _block(grid, context_size) & free_HW
        contexts.append(context_HW.flatten().nonzero()[:, 0])
        targets.append([block.flatten().nonzero()[:, 0] for block in blocks])
    shortest = min(map(len, contexts))
    by_block = zip(*targets, strict=True)
    return Masks(torch.stack([c[:shortest] for c in contexts]), [torch.stack(block) for block in by_block])


def _keep(x_BTD: Tensor, index_BL: Tensor) -> Tensor:
    return x_BTD.gather(1, index_BL[..., None].expand(-1, -1, x_BTD.shape[-1]))


def _run(blocks: nn.ModuleList, x_BLD: Tensor) -> Tensor:
    for block in blocks:
        heads = block.attn.num_heads
        B, L, D = x_BLD.shape
        q, k, v = block.attn.qkv(block.norm1(x_BLD)).reshape(B, L, 3, heads, D // heads).permute(2, 0, 3, 1, 4)
        scores_BHLL = (q @ k.transpose(-2, -1)) * (D // heads) ** -0.5
        mixed_BLD = (scores_BHLL.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, L, D)
        x_BLD = x_BLD + block.attn.proj(mixed_BLD)
        x_BLD = x_BLD + block.mlp(block.norm2(x_BLD))
    return x_BLD


def published_loss(method: Jepa, images_BCHW: Tensor, masks: Masks) -> Tensor:
    """Smooth L1 over every image, block, patch and channel."""
    with torch.no_grad():
        target = method.target_encoder
        h_BTD = target.norm(_run(target.blocks, target.patch_embed(images_BCHW) + target.pos_embed))
        h_BTD = F.layer_norm(h_BTD, h_BTD.shape[-1:])
        goals_NKD = torch.cat([_keep(h_BTD, index_BL) for index_BL in masks.targets])

    encoder, predictor = method.context_encoder, method.predictor
    z_BTD = encoder.patch_embed(images_BCHW) + encoder.pos_embed
    z_BLD = encoder.norm(_run(encoder.blocks, _keep(z_BTD, masks.context_BL)))

    pos_BTW = predictor.pos_embed.repeat(len(images_BCHW), 1, 1)
    context_BLW = predictor.embed(z_BLD) + _keep(pos_BTW, masks.context_BL)
    queries_NKW = predictor.mask_token + torch.cat([_keep(pos_BTW, index_BL) for index_BL in masks.targets])
    x_NLW = torch.cat([context_BLW.repeat(len(masks.targets), 1, 1), queries_NKW], dim=1)
    x_NLW = predictor.norm(_run(predictor.blocks, x_NLW))
    return F.smooth_l1_loss(predictor.project(x_NLW[:, masks.context_BL.shape[1] :]), goals_NKD)


@torch.no_grad()
def published_ema(method: Jepa, momentum: float) -> None:
    """Parameter by parameter."""
    for context, target in zip(method.context_encoder.parameters(), method.target_encoder.parameters(), strict=True):
        target.mul_(momentum).add_((1.0 - momentum) * context)

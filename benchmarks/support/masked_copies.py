"""DSeq-JEPA without packing: every step of every image is a full-length copy with later regions masked (baseline).

Good plain PyTorch: one batch of B * (N - 1) copies, fused attention, masks built once and as floats, predictions read
at the targets only. The same weights, target pass, regions and loss as `prefix`, and so the same value.
B images, S = N - 1 steps, C = B * S copies, T patches, L = 1 + T tokens, D width, W predictor width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.methods.jepa import Jepa
from dseq_jepa.models.vit import patch_pixels


def additive(allowed: Tensor) -> Tensor:
    """A boolean mask as the numbers that attention adds to its scores."""
    return torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)


def run(blocks: nn.ModuleList, x_CLD: Tensor, mask_C1LL: Tensor) -> Tensor:
    """Pre-norm transformer blocks."""
    for block in blocks:
        heads = block.attn.num_heads
        qkv = block.attn.qkv(block.norm1(x_CLD)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv, attn_mask=mask_C1LL)
        x_CLD = x_CLD + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x_CLD = x_CLD + block.mlp(block.norm2(x_CLD))
    return x_CLD


def masked_copies_loss(method: Jepa, images_BCHW: Tensor, ranks_BT: Tensor, goals_BTD: Tensor) -> Tensor:
    """Mean over images of the mean over their steps of the mean over a step's patches.

    Args:
        method: gives the weights; its class token is on.
        images_BCHW: normalised images, each with at least one region.
        ranks_BT: ranked regions, 1..M.
        goals_BTD: normalised target embeddings.

    """
    encoder, predictor = method.context_encoder, method.predictor
    B = len(ranks_BT)
    steps = method.settings.regions.count - 1
    step_S1 = torch.arange(1, steps + 1)[:, None]
    exists_BS1 = step_S1 < ranks_BT.amax(1)[:, None, None]
    seen_CT = (ranks_BT[:, None] <= step_S1).flatten(0, 1)
    target_CT = ((ranks_BT[:, None] == step_S1 + 1) & exists_BS1).flatten(0, 1)

    x_BTD = encoder.embed(patch_pixels(images_BCHW, encoder.settings.patch_size)) + encoder.pos_embed
    x_BLD = torch.cat([encoder.cls_token.expand(B, -1, -1), x_BTD], dim=1)
    seen_CL = F.pad(seen_CT, (1, 0), value=True)
    x_CLD = run(encoder.blocks, x_BLD.repeat_interleave(steps, 0), additive(seen_CL[:, None, None]))

    # Targets stand as mask tokens in their own places: they see one another, and everyone sees context up to its rank.
    context_CTW = predictor.embed(encoder.norm(x_CLD[:, 1:]))
    x_CTW = torch.where(target_CT[..., None], predictor.mask_token, context_CTW) + predictor.pos_embed
    up_to_rank_BTT = ranks_BT[:, None] <= ranks_BT[:, :, None]
    allowed_CTT = seen_CT[:, None] & up_to_rank_BTT.repeat_interleave(steps, 0)
    allowed_CTT = allowed_CTT | (target_CT[:, None] & target_CT[:, :, None])
    x_CTW = run(predictor.blocks, x_CTW, additive(allowed_CTT[:, None]))
    predictions_QD = predictor.project(predictor.norm(x_CTW[target_CT]))

    weight_C1 = 1 / (target_CT.sum(1, keepdim=True).clamp(min=1) * exists_BS1.sum(1).repeat_interleave(steps, 0) * B)
    goals_QD = goals_BTD.repeat_interleave(steps, 0)[target_CT]
    loss_Q = F.smooth_l1_loss(predictions_QD, goals_QD, reduction="none").mean(1)
    return (loss_Q * weight_C1.expand_as(target_CT)[target_CT]).sum()

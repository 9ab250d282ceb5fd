"""From "what is shown and what is predicted" to the tokens of both networks: the only place that knows who sees whom.

A `Partition` is all that distinguishes I-JEPA, DSeq-JEPA and every ablation; `plan_prediction` turns it into packed
token lists for the context encoder and the predictor (docs/protocols.md 1.1 and 1.3).

B images, T patches, G groups of targets (blocks, or steps), V encodings and U predictions of an image.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dseq_jepa.models.packing import TokenRules, pack
from dseq_jepa.models.predictor import PredictorTokens
from dseq_jepa.models.vit import VisibleTokens


@dataclass(frozen=True)
class Partition:
    """What every image shows and what it predicts."""

    rank_BT: Tensor
    """Rank at which a patch becomes visible, from 1 without gaps and at most G; 0: never visible."""
    target_BGT: Tensor
    """Patches that each group predicts; an image's empty groups come last."""
    sees_BG: Tensor
    """Highest rank that the group's prediction may use."""
    flat_B: Tensor
    """True: every group is predicted on its own, with full attention among its tokens (I-JEPA)."""

    def to(self, device: torch.device) -> "Partition":
        """The same partition on another device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


@dataclass(frozen=True)
class Plan:
    """Tokens of both networks, and what the predictions are compared with."""

    visible: VisibleTokens
    predictor: PredictorTokens
    goals_Q: Tensor
    """Row of each prediction's goal among all B*T patches."""
    group_Q: Tensor
    """Row of each prediction's group among all B*G groups."""
    weight_Q: Tensor
    """Loss weights: mean over a group's patches, then over an image's groups, then over images."""


def plan_prediction(partition: Partition, *, class_token: bool, prefix: bool) -> Plan:
    """Lay out the tokens of a batch.

    Args:
        partition: what is shown and predicted.
        class_token: give the encoder a copy of its class token for every visible rank.
        prefix: encode every prefix of the ranks on its own, instead of all ranks once with rank-causal attention.

    """
    seen_BVT = _seen(partition, prefix)
    visible, row_BVT = _encoder_tokens(partition, seen_BVT, class_token=class_token, prefix=prefix)
    predictor, batch_Q, group_Q = _predictor_tokens(partition, seen_BVT, row_BVT, prefix=prefix)
    groups, patches = partition.target_BGT.shape[1:]
    count_BG = partition.target_BGT.sum(2)
    groups_B1 = (count_BG > 0).sum(1, keepdim=True)
    weight_BG = 1.0 / (count_BG * groups_B1 * len(count_BG)).clamp(min=1)
    row_Q = batch_Q * groups + group_Q
    return Plan(
        visible=visible,
        predictor=predictor,
        goals_Q=batch_Q * patches + predictor.patch_P[predictor.masks_Q],
        group_Q=row_Q,
        weight_Q=weight_BG.flatten()[row_Q],
    )


def _seen(partition: Partition, prefix: bool) -> Tensor:
    """(B, V, T): the patches that each encoding of an image shows; a flat image is encoded once."""
    shown_B1T = (partition.rank_BT > 0)[:, None]
    if not prefix:
        return shown_B1T
    first_G = torch.arange(partition.sees_BG.shape[1], device=shown_B1T.device) == 0
    used_BG = partition.target_BGT.any(2) & (~partition.flat_B[:, None] | first_G)
    return shown_B1T & (partition.rank_BT[:, None] <= partition.sees_BG[:, :, None]) & used_BG[:, :, None]


def _encoder_tokens(
    partition: Partition, seen_BVT: Tensor, *, class_token: bool, prefix: bool
) -> tuple[VisibleTokens, Tensor]:
    """The context encoder's tokens, and the row of every seen patch among its outputs, (B, V, T)."""
    B, V, T = seen_BVT.shape
    rank_B1T = partition.rank_BT[:, None]
    rank_BVT = torch.where(seen_BVT, rank_B1T.clamp(max=1) if prefix else rank_B1T, 0)
    copies = (1 if prefix else partition.target_BGT.shape[1]) if class_token else 0
    copy_rank_R = torch.arange(1, copies + 1, device=seen_BVT.device)
    copy_rank_BVR = torch.where(copy_rank_R <= rank_BVT.amax(2, keepdim=True), copy_rank_R, 0)
    rank_SC = torch.cat([copy_rank_BVR, rank_BVT], dim=2).flatten(0, 1)
    is_patch_C = torch.arange(copies + T, device=seen_BVT.device) >= copies
    read_SC = is_patch_C & (rank_SC > 0)
    packed = pack(TokenRules(club_SC=rank_SC, reach_SC=rank_SC, open_SC=read_SC), read_SC)

    index_P = packed.index_P
    image_P, column_P = index_P // ((copies + T) * V), index_P % (copies + T)
    patch_P = image_P * T + (column_P - copies).clamp(min=0)
    row_N = torch.zeros_like(rank_SC).flatten()
    row_N[index_P[packed.rows_Q]] = torch.arange(len(packed.rows_Q), device=index_P.device)
    row_BVT = row_N.view(B, V, copies + T)[:, :, copies:]
    return VisibleTokens(patch_P, column_P < copies, packed.packing, packed.last), row_BVT


def _predictor_tokens(
    partition: Partition, seen_BVT: Tensor, row_BVT: Tensor, *, prefix: bool
) -> tuple[PredictorTokens, Tensor, Tensor]:
    """The predictor's tokens, and the image and the group of every prediction.

    A sequence is laid out as T context places, then T mask places for each of the G groups. Flat images (and prefixes)
    have a sequence per group; rank-causal images have one sequence with all groups.
    """
    G, T = partition.target_BGT.shape[1:]
    target_BGT, flat_B11 = partition.target_BGT, partition.flat_B[:, None, None]
    device = target_BGT.device
    alone_B11 = torch.ones_like(flat_B11) if prefix else flat_B11
    same_group_GG = torch.eye(G, dtype=torch.bool, device=device)
    first_G = torch.arange(G, device=device) == 0
    used_BU = torch.where(alone_B11[:, 0], target_BGT.any(2), first_G)
    mask_BUGT = target_BGT[:, None] & torch.where(alone_B11, same_group_GG, first_G[:, None])[..., None]
    encoding_BU = torch.where(flat_B11[:, 0] | (not prefix), 0, torch.arange(G, device=device))
    context_BUT = _take(seen_BVT, encoding_BU) & used_BU[:, :, None]

    context_club_BUT = torch.where(flat_B11, 1, partition.rank_BT[:, None]) * context_BUT
    mask_club_BUGT = torch.where(flat_B11[..., None], 1, G + 1 + torch.arange(G, device=device)[:, None]) * mask_BUGT
    mask_reach_BUGT = partition.sees_BG[:, None, :, None] * mask_BUGT
    club_SC = torch.cat([context_club_BUT, mask_club_BUGT.flatten(2)], dim=2).flatten(0, 1)
    reach_SC = torch.cat([context_club_BUT, mask_reach_BUGT.flatten(2)], dim=2).flatten(0, 1)
    is_mask_C = torch.arange(T + G * T, device=device) >= T
    present_SC = club_SC > 0
    rules = TokenRules(club_SC=club_SC, reach_SC=reach_SC, open_SC=~is_mask_C & present_SC)
    packed = pack(rules, is_mask_C & present_SC)

    index_P, masks_Q, columns = packed.index_P, packed.rows_Q, T + G * T
    image_P, column_P, patch_P = index_P // (columns * G), index_P % columns, index_P % T
    is_mask_P = column_P >= T
    encoding_P = encoding_BU.flatten()[index_P // columns]
    encoded_P = torch.where(is_mask_P, 0, row_BVT.flatten()[(image_P * seen_BVT.shape[1] + encoding_P) * T + patch_P])
    tokens = PredictorTokens(encoded_P, patch_P, is_mask_P, masks_Q, packed.packing, packed.last)
    return tokens, image_P[masks_Q], (column_P // T - 1)[masks_Q]


def _take(values_BVT: Tensor, encoding_BU: Tensor) -> Tensor:
    """(B, U, T): for every prediction the row of its encoding."""
    index_BUT = encoding_BU[:, :, None].expand(-1, -1, values_BVT.shape[2])
    return values_BVT.gather(1, index_BUT)

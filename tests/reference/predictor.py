"""The predictor on one image: mask tokens look at the context under the rank-causal rule or the flat rule.

    pytest tests/reference -k predict

Parameter names: embed, mask_token, blocks.N.*, norm, project.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.vit import Allowed, State, block, depth, full_attention, layer_norm, linear, sincos_positions


def rank_causal(context_ranks: Sequence[int], mask_groups: Sequence[int], mask_sees: Sequence[int]) -> Allowed:
    """Who sees whom: context tokens first, then mask tokens.

    A context token of rank r sees context of rank <= r and no mask token; a mask token sees context of rank <= its
    `sees` and the mask tokens of its own group.
    """
    context = len(context_ranks)
    length = context + len(mask_groups)
    allowed = [[False] * length for _ in range(length)]
    for i in range(length):
        for j in range(length):
            if j < context:
                limit = context_ranks[i] if i < context else mask_sees[i - context]
                allowed[i][j] = context_ranks[j] <= limit
            elif i >= context:
                allowed[i][j] = mask_groups[i - context] == mask_groups[j - context]
    return allowed


def predict(
    state: State,
    context_LD: Tensor,
    context_positions: Sequence[int],
    context_ranks: Sequence[int],
    mask_positions: Sequence[int],
    mask_groups: Sequence[int],
    mask_sees: Sequence[int],
    heads: int,
    grid: int,
) -> Tensor:
    """(mask tokens, D) predictions under the rank-causal rule.

    Args:
        state: predictor parameters.
        context_LD: the context encoder's patch outputs.
        context_positions: patch index of each context token.
        context_ranks: rank of each context token.
        mask_positions: patch index of each mask token.
        mask_groups: the target region that a mask token belongs to.
        mask_sees: the highest rank of context that a mask token may see.
        heads: attention heads of the predictor.
        grid: patches per side.
    """
    allowed = rank_causal(context_ranks, mask_groups, mask_sees)
    return _run(state, context_LD, context_positions, mask_positions, allowed, heads, grid)


def predict_flat(
    state: State,
    context_LD: Tensor,
    context_positions: Sequence[int],
    mask_positions: Sequence[int],
    heads: int,
    grid: int,
) -> Tensor:
    """(mask tokens, D) predictions of one target block: [context, its mask tokens] with full attention (I-JEPA)."""
    allowed = full_attention(len(context_positions) + len(mask_positions))
    return _run(state, context_LD, context_positions, mask_positions, allowed, heads, grid)


def _run(
    state: State,
    context_LD: Tensor,
    context_positions: Sequence[int],
    mask_positions: Sequence[int],
    allowed: Allowed,
    heads: int,
    grid: int,
) -> Tensor:
    token_P = state["mask_token"].reshape(-1)
    positions_TP = sincos_positions(grid, len(token_P)).to(token_P.dtype)
    context_LP = linear(state, "embed", context_LD) + positions_TP[list(context_positions)]
    masks_LP = torch.stack([token_P + positions_TP[position] for position in mask_positions])
    rows_LP = torch.cat([context_LP, masks_LP])
    for index in range(depth(state)):
        rows_LP = block(state, f"blocks.{index}", rows_LP, allowed, heads)
    return linear(state, "project", layer_norm(state, "norm", rows_LP)[len(context_positions) :])

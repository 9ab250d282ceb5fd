"""One image's JEPA loss, step by step (paper 3.3-3.4): sequential over ranked regions, or flat over blocks.

    pytest tests/reference -k "sequential or flat"

A batch's loss is the mean of its images' losses.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.reference.predictor import predict, predict_flat
from tests.reference.vit import State, encode, encode_image

Ranks = NDArray[np.int64]


class Heads(NamedTuple):
    """Attention heads."""

    encoder: int
    predictor: int


class Prediction(NamedTuple):
    """What one image contributes. Lists run over steps (sequential) or target blocks (flat)."""

    loss: Tensor
    losses: list[Tensor]
    """Mean over the patches of each step."""
    predictions: list[Tensor]
    """(patches, D) each, in the order of `patches`."""
    goals: list[Tensor]
    """What the predictions are compared with; no gradient."""
    patches: list[list[int]]
    """Row-major indices of each step's targets."""


def saliency(state: State, image_CHW: Tensor, patch_size: int, heads: int, block: int) -> Tensor:
    """(H, W) scaled similarity of the class embedding to the patches at a 1-based block, after the final LayerNorm."""
    output = encode_image(state, image_CHW, patch_size, heads)[block - 1]
    grid = image_CHW.shape[-1] // patch_size
    class_D = output.class_RD[0]
    values = [patch_D @ class_D / math.sqrt(len(class_D)) for patch_D in output.patches_LD]
    return torch.stack(values).reshape(grid, grid)


def goals(target_state: State, image_CHW: Tensor, patch_size: int, heads: int) -> Tensor:
    """(T, D) targets: last block, final LayerNorm, then LayerNorm without parameters (eps 1e-5); no gradient."""
    with torch.no_grad():
        patches_TD = encode_image(target_state, image_CHW, patch_size, heads)[-1].patches_LD
        centred_TD = patches_TD - patches_TD.mean(-1, keepdim=True)
        return centred_TD / torch.sqrt((centred_TD**2).mean(-1, keepdim=True) + 1e-5)


def smooth_l1(prediction_LD: Tensor, goal_LD: Tensor) -> Tensor:
    """Mean over patches of the mean over the width, beta 1 (Eq. 6-7)."""
    per_patch = []
    for prediction_D, goal_D in zip(prediction_LD, goal_LD, strict=True):
        gap_D = (prediction_D - goal_D).abs()
        per_patch.append(torch.where(gap_D < 1, gap_D**2 / 2, gap_D - 0.5).mean())
    return torch.stack(per_patch).mean()


def region(ranks_HW: Ranks, rank: int) -> list[int]:
    """Row-major indices of R_rank, ascending."""
    return [index for index, value in enumerate(ranks_HW.reshape(-1).tolist()) if value == rank]


def sequential_loss(
    online_state: State,
    predictor_state: State,
    target_state: State,
    image_CHW: Tensor,
    ranks_HW: Ranks,
    patch_size: int,
    heads: Heads,
    realisation: Literal["causal", "prefix"] = "causal",
    truncate: int | None = None,
) -> Prediction:
    """For i = 1..M-1 predict R_{i+1} from R_1..R_i (Eq. 5); mean over the steps.

    Args:
        online_state: context encoder; it has a class token or not.
        predictor_state: predictor.
        target_state: target encoder.
        image_CHW: normalised pixels.
        ranks_HW: 1..M per patch, M >= 2.
        patch_size: side in pixels.
        heads: of encoder and predictor.
        realisation: causal: R_1..R_{M-1} are encoded once, rank-causally, with a class copy per rank. prefix: R_1..R_i
            is encoded anew for every step, with full attention and one class token.
        truncate: only the steps that predict regions up to this rank; None: all.
    """
    last = int(ranks_HW.max())
    goals_TD = goals(target_state, image_CHW, patch_size, heads.encoder)
    has_class = "cls_token" in online_state
    regions = {rank: region(ranks_HW, rank) for rank in range(1, last + 1)}
    outputs: dict[int, Tensor] = {}
    if realisation == "causal":
        visible = [patch for rank in range(1, last) for patch in regions[rank]]
        ranks = [rank for rank in range(1, last) for _ in regions[rank]]
        copies = list(range(1, last)) if has_class else []
        encoded_LD = encode(online_state, image_CHW, patch_size, heads.encoder, visible, ranks, copies).patches_LD
        outputs = {patch: encoded_LD[place] for place, patch in enumerate(visible)}
    predictions, targets = [], []
    for step in range(1, last):
        if truncate is not None and step + 1 > truncate:
            break
        visible = [patch for rank in range(1, step + 1) for patch in regions[rank]]
        ranks = [rank for rank in range(1, step + 1) for _ in regions[rank]]
        if realisation == "prefix":
            copies = [1] if has_class else []
            context_LD = encode(online_state, image_CHW, patch_size, heads.encoder, visible, None, copies).patches_LD
        else:
            context_LD = torch.stack([outputs[patch] for patch in visible])
        hidden = regions[step + 1]
        prediction_LD = predict(
            predictor_state,
            context_LD,
            visible,
            ranks,
            hidden,
            [step + 1] * len(hidden),
            [step] * len(hidden),
            heads.predictor,
            ranks_HW.shape[1],
        )
        predictions.append(prediction_LD)
        targets.append(hidden)
    return _summed_up(predictions, goals_TD, targets)


def flat_loss(
    online_state: State,
    predictor_state: State,
    target_state: State,
    image_CHW: Tensor,
    context: Collection[int],
    targets: Sequence[Collection[int]],
    patch_size: int,
    heads: Heads,
) -> Prediction:
    """Every target from the same context, each in a sequence of its own (I-JEPA); mean over the targets.

    Args:
        online_state: context encoder; full attention, with its class token if it has one.
        predictor_state: predictor.
        target_state: target encoder.
        image_CHW: normalised pixels.
        context: indices of the visible patches.
        targets: indices of each target block or region.
        patch_size: side in pixels.
        heads: of encoder and predictor.
    """
    goals_TD = goals(target_state, image_CHW, patch_size, heads.encoder)
    visible = sorted(context)
    copies = [1] if "cls_token" in online_state else []
    context_LD = encode(online_state, image_CHW, patch_size, heads.encoder, visible, None, copies).patches_LD
    grid = image_CHW.shape[-1] // patch_size
    hidden = [sorted(target) for target in targets]
    predictions = [
        predict_flat(predictor_state, context_LD, visible, patches, heads.predictor, grid) for patches in hidden
    ]
    return _summed_up(predictions, goals_TD, hidden)


def _summed_up(predictions: list[Tensor], goals_TD: Tensor, patches: list[list[int]]) -> Prediction:
    wanted = [goals_TD[indices] for indices in patches]
    losses = [smooth_l1(prediction, goal) for prediction, goal in zip(predictions, wanted, strict=True)]
    return Prediction(torch.stack(losses).mean(), losses, predictions, wanted, patches)


def discriminative_flat_sets(ranks_HW: Ranks) -> tuple[list[int], list[list[int]]]:
    """Context and targets of Table 4's discriminative + flat cell: R_M, and R_1..R_{M-1} each on its own."""
    last = int(ranks_HW.max())
    return region(ranks_HW, last), [region(ranks_HW, rank) for rank in range(1, last)]


def uniform_sequential_ranks(blocks: Sequence[Collection[int]], grid: int) -> Ranks:
    """(grid, grid) ranks of Table 4's uniform + sequential cell from blocks in the order of prediction.

    A patch in several blocks belongs to the earliest; blocks left empty are dropped; the patches in no block come last.
    Blocks that cover the whole grid leave no remainder: the last block is R_M then.
    """
    ranks = np.zeros(grid * grid, dtype=np.int64)
    rank = 0
    for patches in blocks:
        free = [patch for patch in sorted(patches) if ranks[patch] == 0]
        if free:
            rank += 1
            ranks[free] = rank
    ranks[ranks == 0] = rank + 1
    if ranks.max() < 2:
        raise ValueError("one block covers the whole grid: nothing is left to predict")
    return ranks.reshape(grid, grid)

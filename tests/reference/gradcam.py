"""Grad-CAM of one image by finite differences: nothing here differentiates (docs/protocols.md 1.5).

    pytest tests/methods/test_gradcam.py

The loss is I-JEPA's flat loss, as a function of h, the target encoder's last-block patches after the final LayerNorm.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tests.reference.jepa import Heads, flat_loss
from tests.reference.vit import State, encode_image

STEP = 1e-4


def share_of_patch(h_D: Tensor, predictions_KD: Tensor, shares_K: Tensor) -> float:
    """What one patch adds to the loss of its image: smooth L1 of each of its K predictions, by their shares."""
    centred_D = h_D - h_D.mean()
    goal_D = centred_D / torch.sqrt((centred_D**2).mean() + 1e-5)
    gap_KD = (predictions_KD - goal_D).abs()
    return float((torch.where(gap_KD < 1, gap_KD**2 / 2, gap_KD - 0.5).mean(1) * shares_K).sum())


def gradient(h_TD: Tensor, predictions: Sequence[Tensor], patches: Sequence[Sequence[int]]) -> Tensor:
    """(T, D) central differences in h of the mean over blocks of the mean over a block's patches.

    A patch enters the loss with the blocks that predict it, a patch that no block predicts does not.
    """
    result_TD = torch.zeros_like(h_TD)
    for patch in sorted({patch for block in patches for patch in block}):
        places = [(n, block.index(patch)) for n, block in enumerate(patches) if patch in block]
        predictions_KD = torch.stack([predictions[n][place] for n, place in places])
        shares_K = torch.tensor([1 / (len(patches[n]) * len(patches)) for n, _ in places], dtype=h_TD.dtype)
        for dimension in range(h_TD.shape[1]):
            sides = []
            for step in (STEP, -STEP):
                moved_D = h_TD[patch].clone()
                moved_D[dimension] += step
                sides.append(share_of_patch(moved_D, predictions_KD, shares_K))
            result_TD[patch, dimension] = (sides[0] - sides[1]) / (2 * STEP)
    return result_TD


def gradcam_by_differences(
    online_state: State,
    predictor_state: State,
    target_state: State,
    image_CHW: Tensor,
    context: Collection[int],
    targets: Sequence[Collection[int]],
    patch_size: int,
    heads: Heads,
) -> Tensor:
    """(H, W) float64 map: relu(<mean over all patches of dL/dh, h_j>).

    Args:
        online_state: context encoder.
        predictor_state: predictor.
        target_state: target encoder.
        image_CHW: normalised pixels.
        context: indices of the visible patches.
        targets: indices of each target block.
        patch_size: side in pixels.
        heads: of encoder and predictor.
    """
    with torch.no_grad():
        online, predictor, target = (
            {name: value.double() for name, value in state.items()}
            for state in (online_state, predictor_state, target_state)
        )
        image_CHW = image_CHW.double()
        flat = flat_loss(online, predictor, target, image_CHW, context, targets, patch_size, heads)
        h_TD = encode_image(target, image_CHW, patch_size, heads.encoder)[-1].patches_LD
        weight_D = gradient(h_TD, flat.predictions, flat.patches).mean(0)
        grid = image_CHW.shape[-1] // patch_size
        return torch.stack([(weight_D @ h_D).clamp(min=0) for h_D in h_TD]).reshape(grid, grid)

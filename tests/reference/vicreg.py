"""The contrastive regulariser on pooled predictions, slot by slot (docs/protocols.md 1.4; C-JEPA).

pytest tests/reference -k vicreg
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor


def pooled(rows_LD: Tensor) -> Tensor:
    """Mean over the patches of one slot of one image."""
    return torch.stack(list(rows_LD)).sum(0) / len(rows_LD)


def vicreg(
    slots: Sequence[Hashable],
    predicted_ND: Tensor,
    target_ND: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Tensor:
    """The bracket of the regulariser (without the factor 0.001), on projected rows.

    Args:
        slots: of every row, such as ("region", 2) or ("block", 0).
        predicted_ND: projected pooled predictions.
        target_ND: projected pooled targets, aligned.
        invariance: factor of the mean squared difference over all rows, whatever their slot.
        variance: factor of (2 / S) sum_s mean_d relu(1 - sqrt(Var_s,d + 1e-4)), Var unbiased.
        covariance: factor of (2 / S) sum_s (1 / D) sum_{d != d'} Cov_s(d, d')^2, Cov over n - 1.
    """
    loss = invariance * ((predicted_ND - target_ND) ** 2).sum() / predicted_ND.numel()
    terms = []
    for slot in dict.fromkeys(slots):
        members = [index for index, other in enumerate(slots) if other == slot]
        if len(members) >= 2:
            terms.append(variance * spread(predicted_ND[members]) + covariance * redundancy(predicted_ND[members]))
    if terms:
        loss = loss + 2 / len(terms) * torch.stack(terms).sum()
    return loss


def spread(rows_ND: Tensor) -> Tensor:
    """Mean over d of relu(1 - sqrt(Var_d + 1e-4)), unbiased variance."""
    count, width = rows_ND.shape
    hinges = []
    for d in range(width):
        column = rows_ND[:, d]
        variance = ((column - column.sum() / count) ** 2).sum() / (count - 1)
        hinges.append(torch.relu(1 - torch.sqrt(variance + 1e-4)))
    return torch.stack(hinges).sum() / width


def redundancy(rows_ND: Tensor) -> Tensor:
    """(1 / D) sum over d != d' of the squared covariance over n - 1."""
    count, width = rows_ND.shape
    centred_ND = rows_ND - rows_ND.sum(0) / count
    total = rows_ND.new_zeros(())
    for d in range(width):
        for other in range(width):
            if d != other:
                total = total + ((centred_ND[:, d] * centred_ND[:, other]).sum() / (count - 1)) ** 2
    return total / width


def batch_norm(rows_ND: Tensor, weight_D: Tensor, bias_D: Tensor) -> Tensor:
    """BatchNorm in training mode: biased variance over the rows, eps 1e-5."""
    mean_D = rows_ND.sum(0) / len(rows_ND)
    variance_D = ((rows_ND - mean_D) ** 2).sum(0) / len(rows_ND)
    return (rows_ND - mean_D) / torch.sqrt(variance_D + 1e-5) * weight_D + bias_D


def project(state: Mapping[str, Tensor], rows_ND: Tensor) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear, BatchNorm, ReLU, Linear on all valid rows of the global batch in one call.

    The state's names do not matter, only its order: three 2-d weights, two 1-d weights with their biases.
    """
    linears = [value for value in state.values() if value.ndim == 2]
    scales = [value for name, value in state.items() if value.ndim == 1 and name.endswith("weight")]
    shifts = [value for name, value in state.items() if value.ndim == 1 and name.endswith("bias")]
    if (len(linears), len(scales), len(shifts)) != (3, 2, 2):
        raise ValueError(f"not a projector without linear biases: {list(state)}")
    for layer in range(2):
        rows_ND = torch.relu(batch_norm(rows_ND @ linears[layer].T, scales[layer], shifts[layer]))
    return rows_ND @ linears[2].T


def contrastive_loss(
    projector_state: Mapping[str, Tensor],
    slots: Sequence[Hashable],
    pooled_predictions_ND: Tensor,
    pooled_targets_ND: Tensor,
    weight: float = 0.001,
) -> Tensor:
    """What a contrastive method adds to the JEPA loss: predictions and targets are projected in separate calls."""
    predicted_ND = project(projector_state, pooled_predictions_ND)
    target_ND = project(projector_state, pooled_targets_ND)
    return weight * vicreg(slots, predicted_ND, target_ND)

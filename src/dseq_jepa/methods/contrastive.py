"""The contrastive regulariser of C-JEPA and DSeq-C-JEPA: VICReg on pooled predictions (docs/protocols.md 1.4).

Predictions and targets are pooled per slot (one I-JEPA block, or one rank of region), gathered over the global batch
with gradient and projected by one MLP. Formula and coefficients follow the authors' configuration; the C-JEPA paper
instead aligns the block means of one image with each other.

B images of this rank (in `vicreg` of all ranks), G groups, S slots, N pooled rows, D encoder width, W projector width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.methods.plan import Partition, Plan
from dseq_jepa.methods.settings import ContrastiveSettings
from dseq_jepa.models.packing import initialise

Gather = Callable[[Tensor], Tensor]
"""Concatenates equally many rows of every rank, with gradient."""


@dataclass(frozen=True)
class VicregTerms:
    """The three terms before their coefficients, and their weighted sum."""

    invariance: Tensor
    variance: Tensor
    covariance: Tensor
    total: Tensor


class Projector(nn.Sequential):
    """Linear, BatchNorm, ReLU twice, then Linear; no biases. Statistics are those of the rows it is given."""

    def __init__(self, width: int, settings: ContrastiveSettings) -> None:
        hidden = settings.projector_width
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers += [
                nn.Linear(inputs, hidden, bias=False),
                nn.BatchNorm1d(hidden, track_running_stats=False),
                nn.ReLU(),
            ]
        super().__init__(*layers, nn.Linear(hidden, hidden, bias=False))
        self.apply(initialise)


class ContrastiveLoss(nn.Module):
    """Pool, gather, project, regularise."""

    def __init__(self, width: int, settings: ContrastiveSettings, *, two_schemes: bool) -> None:
        """`two_schemes`: images with regions and images with random blocks share batches, each with their own slots."""
        super().__init__()
        self.settings = settings
        self.two_schemes = two_schemes
        self.projector = Projector(width, settings)

    def forward(
        self, predictions_QD: Tensor, goals_QD: Tensor, plan: Plan, partition: Partition, gather: Gather
    ) -> VicregTerms:
        """Regulariser of the global batch; every rank returns the same value.

        Args:
            predictions_QD: predicted embeddings, with gradient.
            goals_QD: their targets.
            plan: which group each prediction belongs to.
            partition: which groups an image has, and of which scheme.
            gather: concatenation over ranks.

        """
        count_BG = partition.target_BGT.sum(2)
        pooled_BG2D = torch.stack(
            [_pool(rows_QD, plan.group_Q, count_BG) for rows_QD in (predictions_QD.float(), goals_QD.float())], dim=2
        )
        slot_BG = gather(self._slots(partition.flat_B, count_BG))
        pooled_BG2D, count_BG = gather(pooled_BG2D), gather(count_BG)
        valid_BG = count_BG > 0
        image_B1 = torch.arange(len(slot_BG), device=slot_BG.device)[:, None]
        rows_N2D, place_N = pooled_BG2D[valid_BG], (slot_BG * len(slot_BG) + image_B1)[valid_BG]
        predicted_NW, target_NW = self.projector(rows_N2D[:, 0]), self.projector(rows_N2D[:, 1])
        shape = (slot_BG.shape[1] * (2 if self.two_schemes else 1), len(slot_BG))
        with torch.autocast(rows_N2D.device.type, enabled=False):  # covariances need more than 8 bits
            return vicreg(predicted_NW.float(), target_NW.float(), place_N, shape, self.settings)

    def _slots(self, flat_B: Tensor, count_BG: Tensor) -> Tensor:
        """(B, G) slot of each group: its number, and behind those of regions the random blocks' of the same number."""
        slot_BG = torch.arange(count_BG.shape[1], device=count_BG.device).expand_as(count_BG)
        return slot_BG + count_BG.shape[1] * flat_B[:, None] if self.two_schemes else slot_BG


def _pool(rows_QD: Tensor, group_Q: Tensor, count_BG: Tensor) -> Tensor:
    """Mean of each group's rows, (B, G, D); zeros for empty groups."""
    sums_ND = rows_QD.new_zeros(count_BG.numel(), rows_QD.shape[1]).index_add(0, group_Q, rows_QD)
    return (sums_ND / count_BG.reshape(-1, 1).clamp(min=1)).view(*count_BG.shape, -1)


def vicreg(
    predicted_NW: Tensor, target_NW: Tensor, place_N: Tensor, shape: tuple[int, int], settings: ContrastiveSettings
) -> VicregTerms:
    """VICReg per slot; a slot with fewer than two rows leaves the sums and S.

    An image has at most one row in a slot, so a table of slots by images holds all rows and little else. Its size is
    known without reading anything from the device, however the rows are spread over the slots.

    Args:
        predicted_NW: projected predictions of the global batch.
        target_NW: projected targets, row by row.
        place_N: of each row in the flattened table; no two are equal.
        shape: of the table, (S, B).
        settings: coefficients.

    """
    places = shape[0] * shape[1]
    member_SB = predicted_NW.new_zeros(places).index_fill(0, place_N, 1).view(shape)
    rows_SBW = (
        predicted_NW.new_zeros(places, predicted_NW.shape[1]).index_copy(0, place_N, predicted_NW).view(*shape, -1)
    )
    count_S = member_SB.sum(1)
    counts_S = count_S >= 2
    slots = counts_S.sum().clamp(min=1)
    degrees_S = (count_S - 1).clamp(min=1)
    mean_SW = rows_SBW.sum(1) / count_S.clamp(min=1)[:, None]
    centred_SBW = (rows_SBW - mean_SW[:, None]) * member_SB[:, :, None]
    covariance_SWW = centred_SBW.transpose(1, 2) @ centred_SBW / degrees_S[:, None, None]
    variance_SW = covariance_SWW.diagonal(dim1=1, dim2=2)

    spread_S = F.relu(1 - torch.sqrt(variance_SW + 1e-4)).mean(1)
    off_diagonal_S = (covariance_SWW.square().sum((1, 2)) - variance_SW.square().sum(1)) / predicted_NW.shape[1]
    invariance = F.mse_loss(predicted_NW, target_NW)
    variance = 2 / slots * torch.where(counts_S, spread_S, 0).sum()
    covariance = 2 / slots * torch.where(counts_S, off_diagonal_S, 0).sum()
    total = settings.invariance * invariance + settings.variance * variance + settings.covariance * covariance
    return VicregTerms(invariance, variance, covariance, total)

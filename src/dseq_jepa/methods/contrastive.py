"""The contrastive regulariser of C-JEPA and DSeq-C-JEPA: VICReg on pooled predictions (docs/protocols.md 1.4).

Predictions and targets are pooled per slot (one I-JEPA block, or one rank of region), gathered over the global batch
with gradient and projected by one MLP. Formula and coefficients follow the authors' configuration; the C-JEPA paper
instead aligns the block means of one image with each other.

B images of this rank, G groups, S slots, n images of a slot, D encoder width, W projector width.
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

    def __init__(self, width: int, settings: ContrastiveSettings) -> None:
        super().__init__()
        self.settings = settings
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
        pooled_BG2D, count_BG = gather(pooled_BG2D), gather(count_BG)
        flat_B = gather(partition.flat_B.long())
        groups = count_BG.shape[1]
        slot_BG = torch.arange(groups, device=count_BG.device) + groups * flat_B[:, None]
        valid_BG = count_BG > 0
        rows_N2D, slot_N = pooled_BG2D[valid_BG], slot_BG[valid_BG]
        predicted_NW, target_NW = self.projector(rows_N2D[:, 0]), self.projector(rows_N2D[:, 1])
        with torch.autocast(rows_N2D.device.type, enabled=False):  # covariances need more than 8 bits
            members_SN = F.one_hot(slot_N, 2 * groups).T.float()
            return vicreg(predicted_NW.float(), target_NW.float(), members_SN, self.settings)


def _pool(rows_QD: Tensor, group_Q: Tensor, count_BG: Tensor) -> Tensor:
    """Mean of each group's rows, (B, G, D); zeros for empty groups."""
    sums_ND = rows_QD.new_zeros(count_BG.numel(), rows_QD.shape[1]).index_add(0, group_Q, rows_QD)
    return (sums_ND / count_BG.reshape(-1, 1).clamp(min=1)).view(*count_BG.shape, -1)


def vicreg(predicted_NW: Tensor, target_NW: Tensor, member_SN: Tensor, settings: ContrastiveSettings) -> VicregTerms:
    """VICReg per slot; a slot with fewer than two rows leaves the sums and S.

    Args:
        predicted_NW: projected predictions of the global batch.
        target_NW: projected targets, row by row.
        member_SN: 1 where a row belongs to a slot.
        settings: coefficients.

    """
    count_S = member_SN.sum(1)
    counts_S = count_S >= 2
    slots = counts_S.sum().clamp(min=1)
    degrees_S = (count_S - 1).clamp(min=1)
    mean_SW = (member_SN @ predicted_NW) / count_S.clamp(min=1)[:, None]
    centred_SNW = (predicted_NW - mean_SW[:, None]) * member_SN[:, :, None]
    covariance_SWW = centred_SNW.transpose(1, 2) @ centred_SNW / degrees_S[:, None, None]
    variance_SW = covariance_SWW.diagonal(dim1=1, dim2=2)

    spread_S = F.relu(1 - torch.sqrt(variance_SW + 1e-4)).mean(1)
    off_diagonal_S = (covariance_SWW.square().sum((1, 2)) - variance_SW.square().sum(1)) / predicted_NW.shape[1]
    invariance = F.mse_loss(predicted_NW, target_NW)
    variance = 2 / slots * torch.where(counts_S, spread_S, 0).sum()
    covariance = 2 / slots * torch.where(counts_S, off_diagonal_S, 0).sum()
    total = settings.invariance * invariance + settings.variance * variance + settings.covariance * covariance
    return VicregTerms(invariance, variance, covariance, total)

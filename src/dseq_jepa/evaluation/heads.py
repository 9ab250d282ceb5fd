"""Linear heads on frozen features, all of a probe trained at once (docs/protocols.md 3).

    heads = Heads(settings, candidates(settings), {"last4": 3072, "last": 768}, classes=1000, device=device, seed=0)
    heads.step({"last4": x_BF, "last": y_BF}, labels_B, step=0, epoch_steps=100)
    predicted_HN = heads.predict({"last4": x_NF, "last": y_NF})

A head is one kind of features, a number of epochs and a learning rate. Heads share nothing but the features and their
normalisation, so each is trained as if it were alone, and one whose epochs are over stays as it is. B images on this
rank, F feature width, C classes, L learning rates, H heads, R of them running.
"""

import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.evaluation.settings import Features, ProbeSettings

FeaturesOf = Mapping[Features, Tensor]
Reduce = Callable[[Tensor], Tensor]
"""Sum over the ranks that share a batch."""


def alone(tensor: Tensor) -> Tensor:
    """The sum over one rank."""
    return tensor


@dataclass(frozen=True)
class HeadSettings:
    """Which head."""

    features: Features
    epochs: int
    learning_rate: float
    """As configured, before scaling with the batch."""


def candidates(settings: ProbeSettings) -> list[HeadSettings]:
    """Every head of a probe, in the order features x epochs x learning rates."""
    return [
        HeadSettings(kind, epochs, rate)
        for kind in settings.features
        for epochs in settings.epochs
        for rate in settings.learning_rates
    ]


class FeatureNorm(nn.Module):
    """BatchNorm1d(affine=False, eps=1e-6) whose statistics are over the batch of all ranks (MAE's linear probe).

    Its input is frozen, so nothing flows back through it and exact global statistics are two sums. The running
    statistics of the first ten steps are plain averages: a probe of a few steps is not tested with the initial values.
    """

    mean: Tensor
    variance: Tensor
    steps: Tensor

    def __init__(self, width: int, reduce: Reduce) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))
        self.register_buffer("steps", torch.zeros(()))
        self.reduce = reduce

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) normalised: in training mode by the batch, else by the running statistics (momentum 0.1)."""
        if not self.training:
            return (x_BF - self.mean) * (self.variance + 1e-6).rsqrt()
        count_and_sum = self.reduce(torch.cat([x_BF.new_tensor([len(x_BF)]), x_BF.sum(dim=0)]))
        count = count_and_sum[0]
        mean_F = count_and_sum[1:] / count
        variance_F = self.reduce((x_BF - mean_F).square().sum(dim=0)) / count
        self.steps += 1
        momentum = self.steps.reciprocal().clamp(min=0.1)
        self.mean.lerp_(mean_F, momentum)
        self.variance.lerp_(variance_F * count / (count - 1).clamp(min=1), momentum)
        return (x_BF - mean_F) * (variance_F + 1e-6).rsqrt()


class LinearHeads(nn.Module):
    """The heads of one kind of features and one number of epochs: L linear layers that start alike."""

    def __init__(
        self, members: Sequence[HeadSettings], width: int, classes: int, norm: FeatureNorm | None, seed: int
    ) -> None:
        super().__init__()
        self.features, self.epochs = members[0].features, members[0].epochs
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.features} {seed}".encode()))
        weight_FC = 0.01 * torch.randn(width, classes, generator=generator)
        self.weights = nn.ParameterList(weight_FC.clone() for _ in members)
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in members)
        self.norm = norm

    def forward(self, x_BF: Tensor) -> Tensor:
        """(L, B, C) logits."""
        if self.norm is not None:
            x_BF = self.norm(x_BF)
        bias_L1C = torch.stack(list(self.biases))[:, None]
        return torch.baddbmm(bias_L1C, x_BF.expand(len(self.weights), -1, -1), torch.stack(list(self.weights)))


class Heads(nn.Module):
    """Heads with their optimizer and schedules."""

    def __init__(
        self,
        settings: ProbeSettings,
        members: Sequence[HeadSettings],
        widths: Mapping[Features, int],
        classes: int,
        *,
        device: torch.device,
        seed: int,
        reduce: Reduce = alone,
    ) -> None:
        """`members` are together when they have features and epochs in common."""
        super().__init__()
        self.protocol = settings
        self.reduce = reduce
        self.members = list(members)
        self.epochs = max(member.epochs for member in members)
        self.groups = nn.ModuleList()
        for _, alike in itertools.groupby(self.members, key=lambda member: (member.features, member.epochs)):
            together = list(alike)
            width = widths[together[0].features]
            norm = FeatureNorm(width, reduce) if settings.batch_norm else None
            self.groups.append(LinearHeads(together, width, classes, norm, seed))
        self.to(device)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        scale = self.protocol.batch_size / self.protocol.scale_rate_per if self.protocol.scale_rate_per else 1.0
        layers = [layer for group in self._groups() for layer in zip(group.weights, group.biases, strict=True)]
        groups = [
            {"params": list(layer), "peak": scale * member.learning_rate, "epochs": member.epochs}
            for member, layer in zip(self.members, layers, strict=True)
        ]
        decay = self.protocol.weight_decay
        if self.protocol.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=0.0, weight_decay=decay)
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True, weight_decay=decay)

    def running(self, epoch: int) -> list[HeadSettings]:
        """The heads that are trained in an epoch, from 0."""
        return [member for member in self.members if epoch < member.epochs]

    def step(self, features: FeaturesOf, labels_B: Tensor, *, step: int, epoch_steps: int) -> tuple[Tensor, Tensor]:
        """One optimisation step of every head that is still running.

        Args:
            features: this rank's part of the batch.
            labels_B: likewise.
            step: from 0.
            epoch_steps: steps of an epoch.

        Returns:
            loss_R, correct_R: of the R running heads, summed over this rank's images, on the device, no gradient.

        """
        self.train()
        for layer in self.optimizer.param_groups:
            layer["lr"] = layer["peak"] * self._rate_factor(layer["epochs"], step, epoch_steps)
        groups = [group for group in self._groups() if step // epoch_steps < group.epochs]
        logits_RBC = torch.cat([group(features[group.features]) for group in groups])
        heads, batch, _ = logits_RBC.shape
        loss_RB = F.cross_entropy(logits_RBC.flatten(0, 1), labels_B.repeat(heads), reduction="none").view(heads, batch)
        images = self.reduce(labels_B.new_tensor([len(labels_B)], dtype=torch.float32))
        self.optimizer.zero_grad(set_to_none=True)  # a layer without gradient is left alone
        torch.autograd.backward(loss_RB.sum() / images[0])
        self._share_gradients()
        self.optimizer.step()
        return loss_RB.detach().sum(dim=1), (logits_RBC.detach().argmax(dim=2) == labels_B).sum(dim=1)

    def _rate_factor(self, epochs: int, step: int, epoch_steps: int) -> float:
        """Of a head of so many epochs; milestones are those of the longest schedule of the protocol."""
        if self.protocol.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (epochs * epoch_steps)))
        epoch, longest = step // epoch_steps, max(self.protocol.epochs)
        return float(0.1 ** sum(epoch * longest >= milestone * epochs for milestone in self.protocol.milestones))

    def _share_gradients(self) -> None:
        if self.reduce is alone:
            return
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        summed = self.reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        totals = torch.split(summed, [gradient.numel() for gradient in gradients])
        for gradient, total in zip(gradients, totals, strict=True):
            gradient.copy_(total.view_as(gradient))

    @torch.no_grad()
    def predict(self, features: FeaturesOf, chunk: int = 4096) -> Tensor:
        """(H, N) predicted classes."""
        self.eval()
        images = len(next(iter(features.values())))
        parts = []
        for begin in range(0, images, chunk):
            logits = [group(features[group.features][begin : begin + chunk]) for group in self._groups()]
            parts.append(torch.cat(logits).argmax(dim=2))
        return torch.cat(parts, dim=1)

    def _groups(self) -> list[LinearHeads]:
        return cast(list[LinearHeads], list(self.groups))

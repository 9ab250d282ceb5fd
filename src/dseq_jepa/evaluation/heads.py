"""Linear heads on frozen features, all of a probe trained at once (docs/protocols.md 3).

    heads = Heads(settings, {"last4": 3072, "last": 768}, classes=1000, device=device, seed=0)
    heads.step({"last4": x_BF, "last": y_BF}, labels_B, progress=0.0, epoch=0)
    predicted_HN = heads.predict({"last4": x_NF, "last": y_NF})

A head is one kind of features and one learning rate. Heads share nothing but the features and their normalisation, so
each is trained as if it were alone. B images on this rank, F feature width, C classes, L learning rates, H heads.
"""

import math
import zlib
from collections.abc import Callable, Mapping
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
    learning_rate: float
    """As configured, before scaling with the batch."""


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
    """The heads of one kind of features: L linear layers that start alike."""

    def __init__(self, width: int, classes: int, count: int, norm: FeatureNorm | None, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight_FC = 0.01 * torch.randn(width, classes, generator=generator)
        self.weights = nn.ParameterList(weight_FC.clone() for _ in range(count))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(count))
        self.norm = norm

    def forward(self, x_BF: Tensor) -> Tensor:
        """(L, B, C) logits."""
        if self.norm is not None:
            x_BF = self.norm(x_BF)
        bias_L1C = torch.stack(list(self.biases))[:, None]
        return torch.baddbmm(bias_L1C, x_BF.expand(len(self.weights), -1, -1), torch.stack(list(self.weights)))


class Heads(nn.Module):
    """Every head of a probe with its optimizer and schedule, in the order features x learning rates."""

    def __init__(
        self,
        settings: ProbeSettings,
        widths: Mapping[Features, int],
        classes: int,
        *,
        device: torch.device,
        seed: int,
        reduce: Reduce = alone,
    ) -> None:
        super().__init__()
        self.protocol = settings
        self.reduce = reduce
        self.members = [HeadSettings(kind, rate) for kind in settings.features for rate in settings.learning_rates]
        rates = len(settings.learning_rates)
        self.groups = nn.ModuleDict()
        for kind in settings.features:
            norm = FeatureNorm(widths[kind], reduce) if settings.batch_norm else None
            group_seed = zlib.crc32(f"{kind} {seed}".encode())
            self.groups[kind] = LinearHeads(widths[kind], classes, rates, norm, group_seed)
        self.to(device)
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.Optimizer:
        scale = self.protocol.batch_size / self.protocol.scale_rate_per if self.protocol.scale_rate_per else 1.0
        members = iter(self.members)
        groups = [
            {"params": [weight, bias], "lr": (peak := scale * next(members).learning_rate), "peak": peak}
            for _, group in self._by_kind()
            for weight, bias in zip(group.weights, group.biases, strict=True)
        ]
        decay = self.protocol.weight_decay
        if self.protocol.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=decay)
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)

    def step(self, features: FeaturesOf, labels_B: Tensor, *, epoch: int, progress: float) -> tuple[Tensor, Tensor]:
        """One optimisation step of every head.

        Args:
            features: this rank's part of the batch.
            labels_B: likewise.
            epoch: from 0.
            progress: completed part of all steps, in [0, 1).

        Returns:
            loss_H, correct_H: summed over this rank's images, on the device, no gradient.

        """
        self.train()
        factor = self._rate_factor(epoch, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        logits_HBC = torch.cat([group(features[kind]) for kind, group in self._by_kind()])
        heads, batch, _ = logits_HBC.shape
        loss_HB = F.cross_entropy(logits_HBC.flatten(0, 1), labels_B.repeat(heads), reduction="none").view(heads, batch)
        images = self.reduce(labels_B.new_tensor([len(labels_B)], dtype=torch.float32))
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss_HB.sum() / images[0])
        self._share_gradients()
        self.optimizer.step()
        return loss_HB.detach().sum(dim=1), (logits_HBC.detach().argmax(dim=2) == labels_B).sum(dim=1)

    def _rate_factor(self, epoch: int, progress: float) -> float:
        if self.protocol.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return float(0.1 ** sum(epoch >= milestone for milestone in self.protocol.milestones))

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
            logits = [group(features[kind][begin : begin + chunk]) for kind, group in self._by_kind()]
            parts.append(torch.cat(logits).argmax(dim=2))
        return torch.cat(parts, dim=1)

    def _by_kind(self) -> list[tuple[Features, LinearHeads]]:
        return [(kind, cast(LinearHeads, self.groups[kind])) for kind in self.protocol.features]

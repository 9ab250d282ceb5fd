from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.evaluation.heads import FeatureNorm, Heads, HeadSettings, LinearHeads, alone, candidates
from dseq_jepa.evaluation.settings import ProbeSettings

CPU = torch.device("cpu")
WIDTHS: Any = {"last4": 12, "last": 3}


def settings(**changes: Any) -> ProbeSettings:
    plain: dict[str, Any] = {
        "kind": "probe",
        "data": "d", "features": ["last4", "last"], "learning_rates": [0.1, 0.5], "weight_decay": 5e-4, "epochs": [6],
        "batch_size": 16, "scale_rate_per": None, "milestones": (2, 4),
    }  # fmt: skip
    return ProbeSettings.model_validate(plain | changes)


def batches(count: int, classes: int = 4) -> list[tuple[dict[Any, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels_B = torch.randint(0, classes, (16,), generator=generator)
        features = {kind: 3 + torch.randn(16, width, generator=generator) for kind, width in WIDTHS.items()}
        made.append((features, labels_B))
    return made


def untrained(protocol: ProbeSettings) -> Heads:
    return Heads(protocol, candidates(protocol), WIDTHS, 4, device=CPU, seed=0)


def trained(protocol: ProbeSettings, data: list[tuple[dict[Any, Tensor], Tensor]]) -> Heads:
    """Every step an epoch."""
    heads = untrained(protocol)
    for step, (features, labels_B) in enumerate(data):
        heads.step(features, labels_B, step=step, epoch_steps=1)
    return heads


def layer(heads: Heads, member: HeadSettings) -> tuple[Tensor, Tensor]:
    """Weight and bias of a head."""
    for group in heads.groups:
        assert isinstance(group, LinearHeads)
        if (group.features, group.epochs) == (member.features, member.epochs):
            index = heads.protocol.learning_rates.index(member.learning_rate)
            return group.weights[index], group.biases[index]
    raise AssertionError(member)


def by_torch(
    protocol: ProbeSettings, start: Heads, index: int, data: list[tuple[dict[Any, Tensor], Tensor]]
) -> nn.Linear:
    """One head the plain way: nn.Linear, torch's BatchNorm, its optimizer and its scheduler."""
    member = start.members[index]
    linear = nn.Linear(WIDTHS[member.features], 4)
    with torch.no_grad():
        weight_FC, bias_C = layer(start, member)
        linear.weight.copy_(weight_FC.T)
        linear.bias.copy_(bias_C)
    norm = nn.BatchNorm1d(WIDTHS[member.features], eps=1e-6, affine=False) if protocol.batch_norm else nn.Identity()
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if protocol.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            linear.parameters(), lr=member.learning_rate, weight_decay=protocol.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data))
    else:
        optimizer = torch.optim.SGD(
            linear.parameters(), member.learning_rate, momentum=0.9, nesterov=True, weight_decay=protocol.weight_decay
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(protocol.milestones))
    for features, labels_B in data:
        optimizer.zero_grad()
        F.cross_entropy(linear(norm(features[member.features])), labels_B).backward()
        optimizer.step()
        scheduler.step()
    return linear


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "adamw", "schedule": "cosine", "milestones": (), "batch_norm": False}],
    ids=["sgd, steps, batch norm", "adamw, cosine"],
)
def test_every_head_is_what_torch_trains_alone(changes: dict[str, Any]) -> None:
    protocol, data = settings(**changes), batches(6)
    start, heads = untrained(protocol), trained(protocol, data)
    for index, member in enumerate(heads.members):
        expected = by_torch(protocol, start, index, data)
        weight_FC, bias_C = layer(heads, member)
        assert torch.allclose(weight_FC.T, expected.weight, atol=1e-5)
        assert torch.allclose(bias_C, expected.bias, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "sgd"}, {"optimizer": "adamw", "schedule": "cosine", "milestones": ()}],
    ids=["sgd, steps", "adamw, cosine"],
)
def test_a_head_of_a_sweep_is_the_head_trained_alone(changes: dict[str, Any]) -> None:
    data = batches(6)
    sweep = trained(settings(epochs=[3, 6], **changes), data)
    short = changes | ({"milestones": (1, 2)} if "milestones" not in changes else {})
    for epochs, scaled in ((3, short), (6, changes)):
        alone_heads = trained(
            settings(features=["last"], epochs=[epochs], learning_rates=[0.5], **scaled), data[:epochs]
        )
        member = alone_heads.members[0]
        assert torch.equal(layer(sweep, member)[0], layer(alone_heads, member)[0])
        features = data[0][0]
        of_sweep = sweep.predict(features)[sweep.members.index(member)]
        assert torch.equal(of_sweep, alone_heads.predict(features)[0])


def test_the_norm_is_batch_norm_with_a_plain_average_at_first() -> None:
    ours, theirs = FeatureNorm(5, alone), nn.BatchNorm1d(5, eps=1e-6, affine=False)
    for step in range(1, 15):
        x_BF = torch.randn(20, 5) * torch.arange(1, 6) + step
        theirs.momentum = max(0.1, 1 / step)
        assert torch.allclose(ours(x_BF), theirs(x_BF), atol=1e-5)
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    assert torch.allclose(ours.mean, theirs.running_mean, rtol=1e-5)
    assert torch.allclose(ours.variance, theirs.running_var, rtol=1e-5)
    ours.eval(), theirs.eval()
    assert torch.allclose(ours(x_BF), theirs(x_BF), atol=1e-5)


def test_separable_classes_are_learned() -> None:
    heads = untrained(settings(features=["last4"]))
    features, labels_B = batches(1)[0]
    separable: dict[Any, Tensor] = {"last4": features["last4"] + 9 * F.one_hot(labels_B, 12)}
    for step in range(60):
        heads.step(separable, labels_B, step=step, epoch_steps=60)
    assert (heads.predict(separable) == labels_B).all()


def test_rates_scale_with_the_batch() -> None:
    heads = untrained(settings(scale_rate_per=256, batch_size=512))
    assert [group["peak"] for group in heads.optimizer.param_groups] == [0.2, 1.0, 0.2, 1.0]


def test_rates_fall_at_the_milestones() -> None:
    heads = untrained(settings())
    rates = []
    for epoch in range(6):
        heads.step(*batches(1)[0], step=epoch, epoch_steps=1)
        rates.append(heads.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_losses_and_hits_are_sums_over_images() -> None:
    heads = untrained(settings(batch_norm=False))
    features, labels_B = batches(1)[0]
    before = heads.predict(features)
    logits_BC = heads.groups[1](features["last"])[0]
    loss_H, correct_H = heads.step(features, labels_B, step=0, epoch_steps=1)
    assert torch.allclose(loss_H[2], F.cross_entropy(logits_BC, labels_B, reduction="sum"))
    assert correct_H.tolist() == (before == labels_B).sum(1).tolist()


def test_predictions_do_not_depend_on_the_chunk() -> None:
    heads = trained(settings(), batches(3))
    features = batches(1)[0][0]
    assert torch.equal(heads.predict(features), heads.predict(features, chunk=5))

"""The encoder that is trained on, and its layer-wise rates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dseq_jepa.evaluation.backbone import Backbone, layer_groups
from dseq_jepa.evaluation.settings import TunedSettings
from tests.evaluation.pictures import export
from tests.models.checkpoints import encoder

PLAIN = TunedSettings(data="d", batch_size=4, learning_rate=0.1, layer_decay=0.5, weight_decay=0.3, drop_path=0.0)


@pytest.mark.parametrize("class_token", [False, True])
def test_outputs_before_the_norm_are_the_encoders(tmp_path: Path, class_token: bool):
    model = encoder(class_token)
    backbone = Backbone.load(export(model, tmp_path), PLAIN)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = backbone.normalise(images)
    expected = model.read(pixels, [2, 4])
    for tokens_BTD, read in zip(backbone(pixels, [2, 4]), expected, strict=True):
        assert torch.allclose(model.norm(tokens_BTD), read.patches_BTD, atol=1e-5)


def test_positions_of_a_larger_picture_are_resampled(tmp_path: Path):
    backbone = Backbone.load(export(encoder(True), tmp_path), PLAIN, image_size=64)
    assert backbone.pos_embed.shape == (1, 64, 24)
    (tokens_BTD,) = backbone(torch.randn(1, 3, 64, 64), [4])
    assert tokens_BTD.shape == (1, 64, 24)
    small = Backbone.load(tmp_path / "encoder.safetensors", PLAIN).pos_embed
    pooled = nn.functional.avg_pool2d(backbone.pos_embed.transpose(1, 2).unflatten(2, (8, 8)), 2)
    assert torch.allclose(pooled.flatten(2).transpose(1, 2), small, atol=0.1)


class Head(nn.Module):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.fc_norm, self.head = backbone, nn.LayerNorm(24), nn.Linear(24, 5)


def expected_of(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """MAE's rule by hand, for 4 blocks: layer 0 is the stem, block i is layer i + 1, the head is layer 5."""
    parts = name.split(".")
    if parts[0] != "backbone":
        layer = 5
    elif parts[1] == "blocks":
        layer = int(parts[2]) + 1
    else:
        layer = 0
    token = name in ("backbone.pos_embed", "backbone.cls_token")
    return 0.5 ** (5 - layer), 0.0 if parameter.ndim == 1 or token else 0.3


def test_every_parameter_has_its_layers_rate_and_decay(tmp_path: Path):
    model = Head(Backbone.load(export(encoder(True), tmp_path), PLAIN))
    groups: list[dict[str, Any]] = layer_groups(model, PLAIN)
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    expected = {name: expected_of(name, p) for name, p in model.named_parameters()}
    assert {name: found[id(p)] for name, p in model.named_parameters()} == expected
    assert expected["backbone.patch_embed.proj.weight"] == (0.5**5, 0.3)
    assert expected["backbone.blocks.3.mlp.fc2.weight"] == (0.5, 0.3)
    assert expected["backbone.pos_embed"] == (0.5**5, 0.0)
    assert all(p.requires_grad for p in model.parameters())

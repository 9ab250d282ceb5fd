"""Stochastic depth and channel dropout by handed-out numbers."""

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from dseq_jepa.models.dropping import ImageDropout2d, ImageDropPath, hand_out
from dseq_jepa.models.vit import VisionTransformer
from tests.models.checkpoints import TINY

CPU = torch.device("cpu")


def test_each_image_is_kept_as_timm_keeps_it_or_dropped():
    drop = ImageDropPath(0.25)
    drop.numbers_BK = torch.tensor([[0.1], [0.25], [0.9]])
    x = torch.ones(3, 2, 4)
    assert drop(x)[:, 0, 0].tolist() == pytest.approx([0.0, 4 / 3, 4 / 3])
    torch.manual_seed(0)
    assert set(DropPath(0.25)(torch.ones(64, 1)).unique().tolist()) == set(drop(x).unique().tolist())
    assert torch.equal(drop.eval()(x), x)


def test_channels_are_dropped_at_the_rate_and_scaled_up():
    drop = ImageDropout2d(0.3, 500)
    hand_out(drop, seed=1, step=2, ids_B=np.arange(40), device=CPU)
    kept = drop(torch.ones(40, 500, 1, 1))
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.02)


def test_an_image_meets_the_same_fate_in_any_part_of_the_batch():
    torch.manual_seed(0)
    model = VisionTransformer(TINY, True, drop_path=0.5).train()
    images = torch.randn(6, 3, 32, 32)
    ids = np.array([3, 9, 4, 11, 7, 5])

    def run(rows: slice, step: int = 4) -> torch.Tensor:
        hand_out(model, seed=1, step=step, ids_B=ids[rows], device=CPU)
        return model.read(images[rows], [4])[0].patches_BTD

    whole = run(slice(0, 6))
    assert torch.allclose(torch.cat([run(slice(0, 2)), run(slice(2, 6))]), whole, atol=1e-5)
    assert not torch.allclose(run(slice(0, 6), step=5), whole, atol=1e-2)
    assert not torch.allclose(model.eval().read(images, [4])[0].patches_BTD, whole, atol=1e-2)


def test_the_rate_rises_linearly_from_0_to_the_whole():
    model = VisionTransformer(TINY, True, drop_path=0.3)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert model.state_dict().keys() == VisionTransformer(TINY, True).state_dict().keys()

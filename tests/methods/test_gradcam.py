"""Grad-CAM's map is the one derived by hand, the one found by finite differences, and leaves no trace.

pytest tests/methods/test_gradcam.py
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dseq_jepa.methods.gradcam import gradcam
from dseq_jepa.methods.jepa import Jepa
from dseq_jepa.methods.regions import ranked_regions
from dseq_jepa.methods.settings import JepaSettings
from dseq_jepa.models.vit import patch_pixels
from tests.methods.small import ARCHITECTURE, DSEQ, HEADS, IDS, MOMENT, REGIONS, build, images, states
from tests.reference.gradcam import gradcam_by_differences

SETTINGS = DSEQ.model_copy(update={"regions": REGIONS.model_copy(update={"saliency": "gradcam"})})


def map_of(method: Jepa, pictures: Tensor, ids: np.ndarray) -> Tensor:
    return method(pictures, ids, MOMENT).saliency_BT


def test_a_linear_loss_gives_the_closed_form() -> None:
    """L = sum_j <v_j, h_j> with h = W x: dL/dh_j = v_j, so A_j = relu(<mean v, W x_j>)."""
    x_TK = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 1.0]])
    W_DK = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    v_TD = torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, 0.0]])
    h_TD = x_TK @ W_DK.T  # (1, 3), (2, -1), (0, -7)
    map_BT = gradcam(h_TD[None], lambda h_BTD: (h_BTD * v_TD).sum())  # mean v = (1, 1)
    assert map_BT.tolist() == [[4.0, 1.0, 0.0]]


def test_the_gradient_of_a_jepa_loss_is_the_one_derived_by_hand() -> None:
    """A patch whose goal is g = LN(h), predicted as p within the quadratic part of smooth L1, on D dimensions:

    dL/dg = (g - p) / D and dL/dh = (u - mean(u) - g mean(u g)) / s with u = dL/dg, s the deviation of h.

    Patch 1: h = (-3, 0, 3), so s = sqrt(6), g = (-a, 0, a) with a = sqrt(3/2). p = g - (0.3, 0, 0): u = (0.1, 0, 0),
    mean u = 0.1 / 3, mean u g = -0.1 a / 3, and dL/dh = 0.1 / s (1 - 1/3 - 1/2, -1/3, -1/3 + 1/2)
    = 0.1 / s (1/6, -1/3, 1/6). Patch 2 is no target. w is half of it: A = relu(<w, h>).
    """
    s, a = math.sqrt(6), math.sqrt(1.5)
    h_BTD = torch.tensor([[[-3.0, 0.0, 3.0], [1.0, -6.0, 5.0]]])
    prediction_D = torch.tensor([-a - 0.3, 0.0, a])

    def loss(h_BTD: Tensor) -> Tensor:
        return F.smooth_l1_loss(F.layer_norm(h_BTD[0, 0], (3,), eps=0.0), prediction_D)

    w = [0.5 * 0.1 / s * factor for factor in (1 / 6, -1 / 3, 1 / 6)]
    expected = [max(0.0, sum(w_d * h_d for w_d, h_d in zip(w, h_D, strict=True))) for h_D in h_BTD[0].tolist()]
    assert expected[1] == pytest.approx(0.05 / s * 3)
    torch.testing.assert_close(gradcam(h_BTD, loss)[0], torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("class_token", [True, False])
def test_the_batched_map_is_that_of_every_image_alone_by_finite_differences(class_token: bool) -> None:
    method = build(SETTINGS.model_copy(update={"class_token": class_token}))
    blocks = method._blocks(IDS, MOMENT)
    found_BT = map_of(method, images(), IDS)
    assert (found_BT > 0).any(1).all(), "a map without a positive value would show nothing"
    assert (found_BT == 0).any(), "and one without a zero would not show the relu"
    for i, found_T in enumerate(found_BT):
        context = blocks.rank_BT[i].nonzero()[:, 0].tolist()
        targets = [target.nonzero()[:, 0].tolist() for target in blocks.target_BGT[i]]
        expected_HW = gradcam_by_differences(
            *states(method), images()[i], context, targets, ARCHITECTURE.patch_size, HEADS
        )
        # Against the map's own size: it has no unit, regions see it normalised.
        scale = float(expected_HW.max())
        torch.testing.assert_close(found_T.double() / scale, expected_HW.flatten() / scale, rtol=0, atol=2e-4)


def test_the_extra_pass_leaves_no_trace() -> None:
    """No gradient, no changed weight; loss and gradients are those of a class-token method with the same map."""
    method = build(SETTINGS)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.no_grad():
        blocks = method._blocks(IDS, MOMENT)
        source, _ = method._target_pass(patch_pixels(images(), ARCHITECTURE.patch_size))
        map_BT = method._saliency(source, patch_pixels(images(), ARCHITECTURE.patch_size), blocks)
    assert not map_BT.requires_grad
    assert all(parameter.grad is None for parameter in method.parameters())
    output = method(images(), IDS, MOMENT)
    assert all(parameter.grad is None for parameter in method.parameters())
    output.loss.backward()
    assert all(parameter.grad is None for parameter in method.target_encoder.parameters())
    assert not any(parameter.requires_grad for parameter in method.target_encoder.parameters())
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), name

    twin = build(DSEQ)
    twin._saliency = lambda *_: map_BT  # type: ignore[method-assign]
    twin(images(), IDS, MOMENT).loss.backward()
    for (name, ours), theirs in zip(method.named_parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def test_it_works_under_autocast_and_reads_the_map_in_full_precision() -> None:
    method = build(SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        output = method(images(), IDS, MOMENT)
    output.loss.backward()
    assert output.saliency_BT.dtype == torch.float32
    exact_BT = map_of(method, images(), IDS)
    pairs = torch.stack([output.saliency_BT, exact_BT], dim=1)  # (B, 2, T)
    assert all(torch.corrcoef(pair)[0, 1] > 0.99 for pair in pairs)


def test_an_all_zero_map_has_no_region() -> None:
    map_BT = gradcam(torch.ones(2, 36, 4), lambda h_BTD: -h_BTD.sum())
    assert not map_BT.any()
    assert not ranked_regions(map_BT, 6, REGIONS).any()


def test_without_the_class_tokens_saliency_no_class_token_is_needed() -> None:
    values = SETTINGS.model_dump() | {"class_token": False}
    assert JepaSettings.model_validate(values).regions.saliency == "gradcam"
    values["regions"]["saliency"] = "cls"
    with pytest.raises(ValueError, match=r"set class_token: true, or regions\.saliency: gradcam"):
        JepaSettings.model_validate(values)

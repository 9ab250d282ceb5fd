"""Multiply-adds are those of closed formulas, and of the paper's encoders those that are known.

pytest tests/cost/test_count.py
"""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dseq_jepa.config import load
from dseq_jepa.cost.count import inference_multiply_adds, multiply_adds, parameters
from dseq_jepa.methods.jepa import Jepa, Moment
from dseq_jepa.methods.plan import Plan, plan_prediction
from dseq_jepa.methods.settings import JepaSettings
from dseq_jepa.models.packing import Packing
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.models.vit import patch_pixels
from tests.methods.small import ARCHITECTURE, DSEQ, I_JEPA, IDS, MOMENT, build, images

PAPER = load(Path(__file__).parents[2] / "configs" / "paper.yaml").architectures


def whole_image(settings: ArchitectureSettings, class_token: bool) -> int:
    """The encoder on an image: 12 L D^2 of linear layers and 2 L^2 D of attention in each block."""
    T, D = settings.patches, settings.width
    L = T + class_token
    return T * 3 * settings.patch_size**2 * D + settings.depth * (12 * L * D**2 + 2 * L**2 * D)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("class_token", [False, True])
def test_inference_is_the_closed_formula(name: str, class_token: bool) -> None:
    assert inference_multiply_adds(PAPER[name], class_token=class_token) == whole_image(PAPER[name], class_token)


def test_vit_b16_at_224_px_is_the_known_one() -> None:
    base = PAPER["vit-b16"]
    assert f"{inference_multiply_adds(base, class_token=False) / 1e9:.3f}" == "17.471"
    assert f"{inference_multiply_adds(base, class_token=True) / 1e9:.3f}" == "17.563"
    assert f"{parameters(base, class_token=True, classes=1000) / 1e6:.2f}" == "86.57"


@pytest.mark.slow
@pytest.mark.parametrize("class_token", [False, True])
def test_parameters_are_timms(class_token: bool) -> None:
    import timm

    with torch.device("meta"):
        pool = "token" if class_token else "avg"
        model = timm.create_model(
            "vit_base_patch16_224", num_classes=1000, class_token=class_token, global_pool=pool, fc_norm=False
        )
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert parameters(PAPER["vit-b16"], class_token=class_token, classes=1000) == expected


def test_attention_counts_forward_twice_and_backward_four_times_on_this_device() -> None:
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    one = 2 * 3 * 5 * 7 * 8  # a product of queries with keys
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    assert multiply_adds(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)) == 2 * one
    assert multiply_adds(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()) == 6 * one


def attention(packing: Packing, width: int) -> int:
    """Both products, over the padded tables that are computed."""
    pairs = zip(packing.queries.shapes, packing.keys.shapes, strict=True)
    return sum(2 * sequences * queries * keys * width for (sequences, queries), (_, keys) in pairs)


def blocks(depth: int, width: int, tokens: int, read: int, packing: Packing, last: Packing) -> int:
    """All blocks of a network; the last computes the tokens that are read, from the keys and values of all."""
    full = 12 * tokens * width**2 + attention(packing, width)
    final = 2 * tokens * width**2 + 10 * read * width**2 + attention(last, width)
    return (depth - 1) * full + final


def forward(settings: ArchitectureSettings, plan: Plan) -> tuple[int, int]:
    """Context encoder and predictor on a batch; and the part of it, the embedding, whose input needs no gradient."""
    D, W = settings.width, settings.predictor.width
    P, Q = len(plan.visible.patch_P), int((~plan.visible.is_class_P).sum())
    N, M = len(plan.predictor.patch_P), len(plan.predictor.masks_Q)
    embedding = P * 3 * settings.patch_size**2 * D
    encoder = embedding + blocks(settings.depth, D, P, Q, plan.visible.packing, plan.visible.last)
    inner = blocks(settings.predictor.depth, W, N, M, plan.predictor.packing, plan.predictor.last)
    return encoder + Q * D * W + inner + M * W * D, embedding


def plan_of(method: Jepa, moment: Moment) -> Plan:
    pixels, drawn = patch_pixels(images(), ARCHITECTURE.patch_size), method._blocks(IDS, moment)
    with torch.no_grad():
        source, _ = method._target_pass(pixels)
        partition, *_ = method._partition(method._saliency(source, pixels, drawn), drawn, IDS, moment)
    prefix = method.settings.realisation == "prefix"
    return plan_prediction(partition, class_token=method.settings.class_token, prefix=prefix)


GRADCAM = DSEQ.model_copy(update={"regions": DSEQ.regions.model_copy(update={"saliency": "gradcam"})})
STEPS = {
    "I-JEPA": I_JEPA,
    "DSeq causal": DSEQ,
    "DSeq prefix": DSEQ.model_copy(update={"realisation": "prefix"}),
    "DSeq Grad-CAM": GRADCAM,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_target_forward_and_three_times_the_rest(name: str) -> None:
    """Backward is twice forward, but for the embedding of pixels, which has no gradient to pass on."""
    settings: JepaSettings = STEPS[name]
    method = build(settings)
    expected = len(IDS) * whole_image(ARCHITECTURE, settings.class_token)
    online, embedding = forward(ARCHITECTURE, plan_of(method, MOMENT))
    expected += 3 * online - embedding
    if name == "DSeq Grad-CAM":  # a pass over the random blocks, without gradient
        flat = plan_prediction(method._blocks(IDS, MOMENT), class_token=True, prefix=False)
        expected += forward(ARCHITECTURE, flat)[0]
    counted = multiply_adds(lambda: method(images(), IDS, MOMENT).loss.backward())
    saliency = len(IDS) * ARCHITECTURE.patches * ARCHITECTURE.width if settings.generation == "discriminative" else 0
    assert counted == expected + saliency

"""The batched step equals slow per-image loops, and no prediction sees what it must not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dseq_jepa.draws import uniforms
from dseq_jepa.methods.blocks import draw_blocks
from dseq_jepa.methods.jepa import Jepa
from dseq_jepa.methods.plan import Plan, plan_prediction
from dseq_jepa.methods.regions import by_scikit_image
from dseq_jepa.methods.settings import ContrastiveSettings, JepaSettings
from dseq_jepa.models.vit import patch_pixels
from tests.methods.small import ARCHITECTURE, DSEQ, HEADS, I_JEPA, IDS, MOMENT, REGIONS, build, images, states
from tests.reference import ijepa_public
from tests.reference.gradcam import gradcam_by_differences
from tests.reference.jepa import (
    Prediction,
    discriminative_flat_sets,
    flat_loss,
    saliency,
    sequential_loss,
    uniform_sequential_ranks,
)
from tests.reference.regions import reorder
from tests.reference.vicreg import contrastive_loss, pooled

GRID, PATCH = ARCHITECTURE.grid, ARCHITECTURE.patch_size


def variant(**changes: Any) -> JepaSettings:
    return DSEQ.model_copy(update=changes)


def ranks_of(method: Jepa, image: Tensor) -> np.ndarray:
    """Regions of one image by the slow forward and scikit-image."""
    map_HW = saliency(states(method)[2], image, PATCH, HEADS.encoder, ARCHITECTURE.saliency_block)
    return by_scikit_image(map_HW.numpy(), method.settings.regions)


def slow_gradcam(method: Jepa, index: int) -> np.ndarray:
    """(H, W) Grad-CAM of one image of the batch, by numbers."""
    map_HW = gradcam_by_differences(*states(method), images()[index], *blocks_of(index), PATCH, HEADS)
    return map_HW.numpy().astype(np.float32)


def blocks_of(index: int) -> tuple[list[int], list[list[int]]]:
    """The random blocks of one image of the batch."""
    context_BT, targets_BGT = draw_blocks(GRID, I_JEPA.blocks, MOMENT.seed, MOMENT.step, IDS)
    return np.flatnonzero(context_BT[index]).tolist(), [np.flatnonzero(t).tolist() for t in targets_BGT[index]]


def slow_flat(method: Jepa, index: int) -> Prediction:
    context, targets = blocks_of(index)
    return flat_loss(*states(method), images()[index], context, targets, PATCH, HEADS)


def slow_sequential(method: Jepa, index: int) -> Prediction:
    settings = method.settings
    if settings.regions.saliency == "gradcam":
        ranks = by_scikit_image(slow_gradcam(method, index), settings.regions)
    else:
        ranks = ranks_of(method, images()[index])
    if not ranks.any():
        return slow_flat(method, index)
    if settings.order == "spatial":
        ranks = reorder(ranks, "spatial")
    if settings.order == "random":
        keys = uniforms(MOMENT.seed, "region order", MOMENT.step, IDS, settings.regions.count - 1)[index]
        ranks = reorder(ranks, [int(k) + 1 for k in np.argsort(keys) if k + 1 < ranks.max()])
    return sequential_loss(
        *states(method), images()[index], ranks, PATCH, HEADS, settings.realisation, settings.truncate
    )


def slow_discriminative_flat(method: Jepa, index: int) -> Prediction:
    context, targets = discriminative_flat_sets(ranks_of(method, images()[index]))
    return flat_loss(*states(method), images()[index], context, targets, PATCH, HEADS)


def slow_uniform_sequential(method: Jepa, index: int) -> Prediction:
    targets = blocks_of(index)[1]
    order = np.argsort(uniforms(MOMENT.seed, "region order", MOMENT.step, IDS, len(targets))[index])
    ranks = uniform_sequential_ranks([targets[k] for k in order], GRID)
    return sequential_loss(*states(method), images()[index], ranks, PATCH, HEADS)


GRADCAM = variant(regions=REGIONS.model_copy(update={"saliency": "gradcam"}))
CASES = {
    "I-JEPA": (I_JEPA, slow_flat),
    "I-JEPA with class token": (I_JEPA.model_copy(update={"class_token": True}), slow_flat),
    "DSeq causal": (DSEQ, slow_sequential),
    "DSeq prefix": (variant(realisation="prefix"), slow_sequential),
    "DSeq causal, truncated": (variant(truncate=3), slow_sequential),
    "DSeq prefix, truncated": (variant(truncate=3, realisation="prefix"), slow_sequential),
    "DSeq spatial": (variant(order="spatial"), slow_sequential),
    "DSeq random": (variant(order="random"), slow_sequential),
    "DSeq N=3": (variant(regions=REGIONS.model_copy(update={"count": 3})), slow_sequential),
    "DSeq N=7": (variant(regions=REGIONS.model_copy(update={"count": 7})), slow_sequential),
    "DSeq Grad-CAM": (GRADCAM, slow_sequential),
    "DSeq Grad-CAM without class token": (GRADCAM.model_copy(update={"class_token": False}), slow_sequential),
    "no image has a region": (variant(regions=REGIONS.model_copy(update={"min_patches": 30})), slow_flat),
    "discriminative flat": (variant(prediction="flat"), slow_discriminative_flat),
    "uniform sequential": (variant(generation="uniform"), slow_uniform_sequential),
}


@pytest.mark.parametrize("name", CASES)
def test_the_batched_loss_and_its_gradient_equal_a_slow_loop_over_images(name: str) -> None:
    settings, slow = CASES[name]
    method = build(settings)
    output = method(images(), IDS, MOMENT)
    output.loss.backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}

    slow_method = build(settings)
    loss = torch.stack([slow(slow_method, i).loss for i in range(len(IDS))]).mean()
    loss.backward()

    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=1e-6)
    for key, parameter in slow_method.named_parameters():
        if parameter.requires_grad:
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[key], expected, rtol=2e-4, atol=2e-6, msg=key)


def test_a_batch_mixes_sequences_of_different_lengths() -> None:
    ranks = [ranks_of(build(DSEQ), image).max() for image in images()]
    assert len(set(ranks)) > 1, "the cases above would not test ragged batches"


def test_the_curriculum_decides_image_by_image() -> None:
    method = build(variant(curriculum=True))
    moment = MOMENT.__class__(seed=3, step=17, progress=0.5)
    output = method(images(), IDS, moment)
    coins = uniforms(3, "curriculum", 17, IDS, 1)[:, 0] < 0.5
    assert 0 < coins.sum() < len(coins)
    assert output.discriminative_B.tolist() == coins.tolist()
    slow = [slow_sequential(method, i) if coin else slow_flat(method, i) for i, coin in enumerate(coins)]
    torch.testing.assert_close(output.loss, torch.stack([p.loss for p in slow]).mean(), rtol=1e-5, atol=1e-6)


def test_i_jepa_equals_an_independent_forward_of_the_public_step_weight_for_weight() -> None:
    method = build(I_JEPA)
    context, targets = blocks_of(0)
    rows = [torch.tensor([context])]
    expected = ijepa_public.public_step(
        states(method)[0],
        ijepa_public.to_public_names(states(method)[1]),
        states(method)[2],
        images()[:1],
        rows[0],
        [torch.tensor([target]) for target in targets],
        HEADS.encoder,
        HEADS.predictor,
    )
    output = method(images()[:1], IDS[:1], MOMENT)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-6)


def _predict(method: Jepa, pixels: Tensor, plan: Plan) -> Tensor:
    return method.predictor(method.context_encoder(patch_pixels(pixels, PATCH), plan.visible), plan.predictor)


def _sequential_plan(method: Jepa, batch: Tensor) -> tuple[Plan, np.ndarray]:
    pixels, blocks = patch_pixels(batch, PATCH), method._blocks(IDS, MOMENT)
    source, _ = method._target_pass(pixels)
    partition, ranks_BT, _ = method._partition(method._saliency(source, pixels, blocks), blocks, IDS, MOMENT)
    plan = plan_prediction(partition, class_token=True, prefix=method.settings.realisation == "prefix")
    return plan, ranks_BT.numpy()


@pytest.mark.parametrize("realisation", ["causal", "prefix"])
def test_no_step_sees_its_own_target_or_a_later_region(realisation: str) -> None:
    method, batch = build(variant(realisation=realisation)), images()
    plan, ranks_BT = _sequential_plan(method, batch)
    before_QD = _predict(method, batch, plan)
    for step in range(1, ranks_BT.max()):
        noisy = patch_pixels(batch, PATCH).clone()
        noisy[torch.from_numpy(ranks_BT > step)] += 10.0
        after_QD = method.predictor(method.context_encoder(noisy, plan.visible), plan.predictor)
        mine_Q = plan.group_Q % 4 == step - 1
        assert torch.equal(after_QD[mine_Q], before_QD[mine_Q]), f"step {step} saw a region after its context"
        earlier = patch_pixels(batch, PATCH).clone()
        earlier[torch.from_numpy(ranks_BT <= step)] += 10.0
        moved_QD = method.predictor(method.context_encoder(earlier, plan.visible), plan.predictor)
        assert not torch.isclose(moved_QD[mine_Q], before_QD[mine_Q]).all(1).any(), f"step {step} ignores its context"


@pytest.mark.parametrize("realisation", ["causal", "prefix"])
def test_every_step_reaches_the_encoder_through_the_patches_it_sees(realisation: str) -> None:
    method, batch = build(variant(realisation=realisation)), images()
    plan, ranks_BT = _sequential_plan(method, batch)
    for image in range(len(batch)):
        for step in range(1, ranks_BT[image].max()):
            pixels = patch_pixels(batch, PATCH).clone().requires_grad_()
            predictions_QD = method.predictor(method.context_encoder(pixels, plan.visible), plan.predictor)
            predictions_QD[plan.group_Q == image * 4 + step - 1].square().sum().backward()
            touched_BT = pixels.grad.abs().sum(2) > 0
            expected_BT = np.zeros_like(ranks_BT, dtype=bool)
            expected_BT[image] = ranks_BT[image] <= step
            np.testing.assert_array_equal(touched_BT.numpy(), expected_BT)


def test_an_image_with_a_single_component_trains_the_encoder() -> None:
    method = build(variant(regions=REGIONS.model_copy(update={"count": 2})))
    output = method(images(), IDS, MOMENT)
    assert (output.ranks_BT.amax(1) == 2).all()
    output.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in method.context_encoder.parameters())


def test_prefix_and_causal_agree_at_the_first_step_only() -> None:
    causal, prefix = (build(variant(realisation=r))(images(), IDS, MOMENT) for r in ("causal", "prefix"))
    causal_G, prefix_G = (output.group_loss_BG.nanmean(0) for output in (causal, prefix))
    torch.testing.assert_close(causal_G[0], prefix_G[0], rtol=1e-6, atol=1e-7)
    assert abs(causal_G[1] - prefix_G[1]) > 1e-5


@pytest.mark.parametrize(
    "base", [I_JEPA, DSEQ, variant(curriculum=True)], ids=["C-JEPA", "DSeq-C-JEPA", "both schemes"]
)
def test_the_contrastive_term_equals_the_slot_by_slot_reference(base: JepaSettings) -> None:
    contrastive = ContrastiveSettings(weight=0.5, projector_width=24)
    method = build(base.model_copy(update={"contrastive": contrastive}))
    moment = MOMENT.__class__(seed=3, step=17, progress=0.5)
    output = method(images(), IDS, moment)
    slots, predictions, targets = [], [], []
    for i in range(len(IDS)):
        coin = uniforms(3, "curriculum", 17, IDS[i : i + 1], 1)[0, 0] < 0.5
        regional = base.generation == "discriminative" and (coin or not base.curriculum)
        result = slow_sequential(method, i) if regional else slow_flat(method, i)
        for group, (prediction_LD, goal_LD) in enumerate(zip(result.predictions, result.goals, strict=True)):
            slots.append(("region" if regional else "block", group))
            predictions.append(pooled(prediction_LD))
            targets.append(pooled(goal_LD))
    expected = contrastive_loss(
        method.contrastive.projector.state_dict(), slots, torch.stack(predictions), torch.stack(targets), weight=0.5
    )
    torch.testing.assert_close(output.loss - output.prediction_loss, expected, rtol=1e-4, atol=1e-5)


def test_the_target_encoder_follows_by_ema_and_takes_no_gradient() -> None:
    method = build(DSEQ)
    before = [p.clone() for p in method.target_encoder.parameters()]
    method.update_target(0.9)
    for old, target, context in zip(
        before, method.target_encoder.parameters(), method.context_encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * context)
        assert not target.requires_grad

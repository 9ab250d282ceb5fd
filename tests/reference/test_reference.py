"""The references for models, losses and scores, by values computed by hand and by independent library routes.

pytest tests/reference/test_reference.py
"""

import math
from functools import partial
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from tests.reference import ijepa_public, jepa, knn, predictor, schedules, vicreg, vit
from tests.reference.tiny import GRID, HEADS, PATCH, RANKS_HW, WIDTH, encoder_state, picture, predictor_state

# ViT and predictor


def test_vit_patches_and_positions_by_hand() -> None:
    image_CHW = torch.arange(2 * 4 * 4.0).reshape(2, 4, 4)
    assert vit.patchify(image_CHW, 2)[1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    table = vit.sincos_positions(3, 8)
    # Patch 5 lies in row 1, column 2; frequencies 1 and 1/100.
    expected = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)]
    expected += [math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)]
    torch.testing.assert_close(table[5], torch.tensor(expected))


def test_vit_rank_causal_by_hand() -> None:
    # Copies 1 and 2, then patches of ranks 1, 2, 1.
    assert vit.rank_causal([1, 2], [1, 2, 1]) == [
        [True, False, True, False, True],
        [False, True, True, True, True],
        [True, False, True, False, True],
        [False, True, True, True, True],
        [True, False, True, False, True],
    ]


def test_vit_block_equals_timm() -> None:
    state = encoder_state(0)
    theirs = Block(WIDTH, 4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)).double()
    theirs.load_state_dict({name[9:]: value for name, value in state.items() if name.startswith("blocks.0.")})
    rows_LD = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine_LD = vit.block(state, "blocks.0", rows_LD, vit.full_attention(5), 4)
    torch.testing.assert_close(mine_LD, theirs(rows_LD[None])[0], rtol=1e-12, atol=1e-12)
    allowed = vit.rank_causal([1, 2], [1, 2, 1])
    mine_LD = vit.block(state, "blocks.0", rows_LD, allowed, 4)
    theirs_BLD = theirs(rows_LD[None], attn_mask=torch.tensor(allowed)[None, None])
    torch.testing.assert_close(mine_LD, theirs_BLD[0], rtol=1e-12, atol=1e-12)


def test_encode_first_rank_equals_its_own_prefix_and_later_ranks_do_not() -> None:
    state, image_CHW = encoder_state(0), picture(0)
    first, second = [0, 1, 6, 7], [20, 21, 22]
    ranks = [1] * 4 + [2] * 3
    both = vit.encode(state, image_CHW, PATCH, 4, first + second, ranks, [1, 2])
    alone = vit.encode(state, image_CHW, PATCH, 4, first, None, [1])
    torch.testing.assert_close(both.patches_LD[:4], alone.patches_LD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both.class_RD[:1], alone.class_RD, rtol=1e-12, atol=1e-12)
    together = vit.encode(state, image_CHW, PATCH, 4, first + second, None, [1])
    assert (both.patches_LD - together.patches_LD).abs().max() > 1e-3


def test_encode_image_lists_every_block() -> None:
    state, image_CHW = encoder_state(0, class_token=False), picture(0)
    outputs = vit.encode_image(state, image_CHW, PATCH, 4)
    assert [output.patches_LD.shape for output in outputs] == [(36, WIDTH)] * 2
    assert [output.class_RD.shape for output in outputs] == [(0, WIDTH)] * 2
    public = ijepa_public.public_encoder(state, image_CHW[None], 4)
    torch.testing.assert_close(outputs[-1].patches_LD, public[0], rtol=1e-11, atol=1e-11)


def test_predictor_mask_by_hand() -> None:
    # Context ranks 1, 2; mask tokens: one of region 2 (sees 1), two of region 3 (see 2).
    assert predictor.rank_causal([1, 2], [2, 3, 3], [1, 2, 2]) == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, False, True, False, False],
        [True, True, False, True, True],
        [True, True, False, True, True],
    ]


def test_predict_in_one_pass_equals_predict_per_step() -> None:
    state = predictor_state(0)
    context_LD = torch.randn(5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    where, ranks = [0, 1, 8, 9, 30], [1, 1, 2, 2, 2]
    once = predictor.predict(
        state, context_LD, where, ranks, [8, 9, 30, 3, 4], [2, 2, 2, 3, 3], [1, 1, 1, 2, 2], 2, GRID
    )
    step_1 = predictor.predict(state, context_LD[:2], where[:2], [1, 1], [8, 9, 30], [2] * 3, [1] * 3, 2, GRID)
    step_2 = predictor.predict(state, context_LD, where, ranks, [3, 4], [3] * 2, [2] * 2, 2, GRID)
    torch.testing.assert_close(once, torch.cat([step_1, step_2]), rtol=1e-12, atol=1e-12)


def test_predict_with_one_rank_is_not_flat_since_context_ignores_mask_tokens() -> None:
    state = predictor_state(0)
    context_LD = torch.randn(2, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    causal = predictor.predict(state, context_LD, [0, 1], [1, 1], [2, 3], [2, 2], [1, 1], 2, GRID)
    flat = predictor.predict_flat(state, context_LD, [0, 1], [2, 3], 2, GRID)
    assert causal.shape == flat.shape == (2, WIDTH)
    assert (causal - flat).abs().max() > 1e-3


# JEPA


def test_sequential_realisations_agree_at_the_first_step_only() -> None:
    states = encoder_state(0), predictor_state(1), encoder_state(2)
    causal = jepa.sequential_loss(*states, picture(0), RANKS_HW, PATCH, HEADS)
    prefix = jepa.sequential_loss(*states, picture(0), RANKS_HW, PATCH, HEADS, realisation="prefix")
    assert causal.patches == prefix.patches == [jepa.region(RANKS_HW, rank) for rank in (2, 3, 4)]
    torch.testing.assert_close(causal.predictions[0], prefix.predictions[0], rtol=1e-12, atol=1e-12)
    assert (causal.predictions[1] - prefix.predictions[1]).abs().max() > 1e-4
    torch.testing.assert_close(causal.loss, sum(causal.losses, torch.zeros(())) / 3)


@pytest.mark.parametrize("realisation", ["causal", "prefix"])
def test_sequential_steps_see_nothing_of_later_regions(realisation: Literal["causal", "prefix"]) -> None:
    states = encoder_state(0), predictor_state(1), encoder_state(2)
    image_CHW = picture(0)
    before = jepa.sequential_loss(*states, image_CHW, RANKS_HW, PATCH, HEADS, realisation=realisation)
    for step in (1, 2, 3):
        hidden = torch.from_numpy(step < RANKS_HW).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
        changed_CHW = torch.where(hidden, picture(9), image_CHW)
        after = jepa.sequential_loss(*states, changed_CHW, RANKS_HW, PATCH, HEADS, realisation=realisation)
        for earlier in range(step):
            assert torch.equal(before.predictions[earlier], after.predictions[earlier])
        for later in range(step, 3):
            assert not torch.equal(before.predictions[later], after.predictions[later])
        assert not torch.equal(before.goals[step - 1], after.goals[step - 1])


def test_sequential_gradient_reaches_the_visible_pixels_and_only_those() -> None:
    states = encoder_state(0), predictor_state(1), encoder_state(2)
    image_CHW = picture(0).requires_grad_()
    result = jepa.sequential_loss(*states, image_CHW, RANKS_HW, PATCH, HEADS)
    (gradient,) = torch.autograd.grad(result.losses[1], image_CHW)
    seen = torch.from_numpy(RANKS_HW <= 2).repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)
    assert (gradient.abs().sum(0)[seen] > 0).all()
    assert (gradient.abs().sum(0)[~seen] == 0).all()


def test_sequential_truncation_drops_later_steps() -> None:
    states = encoder_state(0, class_token=False), predictor_state(1), encoder_state(2, class_token=False)
    whole = jepa.sequential_loss(*states, picture(0), RANKS_HW, PATCH, HEADS)
    short = jepa.sequential_loss(*states, picture(0), RANKS_HW, PATCH, HEADS, truncate=3)
    assert [float(loss) for loss in short.losses] == [float(loss) for loss in whole.losses[:2]]
    torch.testing.assert_close(short.loss, (whole.losses[0] + whole.losses[1]) / 2)


def test_sequential_goals_are_normalised_embeddings_of_the_whole_image() -> None:
    target = encoder_state(2, class_token=False)
    goals_TD = jepa.goals(target, picture(0), PATCH, 4)
    expected = F.layer_norm(ijepa_public.public_encoder(target, picture(0)[None], 4)[0], (WIDTH,))
    torch.testing.assert_close(goals_TD, expected, rtol=1e-11, atol=1e-11)


def test_flat_smooth_l1_by_hand() -> None:
    prediction = torch.tensor([[0.5, -2.0], [0.0, 1.0]])
    # 0.125 and 1.5; 0 and 0.5.
    assert float(jepa.smooth_l1(prediction, torch.zeros(2, 2))) == pytest.approx((0.8125 + 0.25) / 2)


def test_flat_loss_equals_the_public_step() -> None:
    encoder, narrow, target = encoder_state(0, False), predictor_state(1), encoder_state(2, False)
    images = [picture(0), picture(1)]
    contexts = [[0, 1, 2, 6, 7, 8], [30, 31, 32, 24, 25, 26]]
    targets = [[[9, 10, 15, 16], [20, 21, 26, 27]], [[2, 3, 8, 9], [15, 16, 21, 22]]]
    mine = [
        jepa.flat_loss(encoder, narrow, target, image_CHW, context, hidden, PATCH, HEADS)
        for image_CHW, context, hidden in zip(images, contexts, targets, strict=True)
    ]
    public = ijepa_public.public_step(
        encoder,
        ijepa_public.to_public_names(narrow),
        target,
        torch.stack(images),
        torch.tensor([sorted(context) for context in contexts]),
        [torch.tensor([hidden[number] for hidden in targets]) for number in range(2)],
        HEADS.encoder,
        HEADS.predictor,
    )
    torch.testing.assert_close((mine[0].loss + mine[1].loss) / 2, public.loss, rtol=1e-11, atol=1e-11)
    block_major = torch.stack([mine[image].predictions[number] for number in range(2) for image in range(2)])
    torch.testing.assert_close(block_major, public.predictions_NLD, rtol=1e-11, atol=1e-11)


def test_flat_targets_do_not_see_one_another() -> None:
    states = encoder_state(0), predictor_state(1), encoder_state(2)
    context, targets = jepa.discriminative_flat_sets(RANKS_HW)
    assert len(context) == 18
    assert [len(target) for target in targets] == [6, 6, 6]
    several = jepa.flat_loss(*states, picture(0), context, targets, PATCH, HEADS)
    alone = jepa.flat_loss(*states, picture(0), context, targets[1:2], PATCH, HEADS)
    assert torch.equal(several.predictions[1], alone.predictions[0])


def test_flat_saliency_by_hand() -> None:
    state = encoder_state(0)
    output = vit.encode_image(state, picture(0), PATCH, 4)[0]
    map_HW = jepa.saliency(state, picture(0), PATCH, 4, block=1)
    assert map_HW.shape == (GRID, GRID)
    expected = float((output.class_RD[0] * output.patches_LD[13]).sum()) / math.sqrt(WIDTH)
    assert float(map_HW[2, 1]) == pytest.approx(expected)


def test_sequential_ranks_of_uniform_blocks() -> None:
    ranks = jepa.uniform_sequential_ranks([{0, 1}, {1, 0}, {1, 2}, {4}], 3)
    assert ranks.tolist() == [[1, 1, 2], [4, 3, 4], [4, 4, 4]]
    assert jepa.uniform_sequential_ranks([{0, 1}, {2, 3}], 2).tolist() == [[1, 1], [2, 2]]
    with pytest.raises(ValueError, match="whole grid"):
        jepa.uniform_sequential_ranks([{0, 1, 2, 3}, {1}], 2)


# Contrastive regulariser


def test_vicreg_by_hand() -> None:
    predicted = torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 5.0]], dtype=torch.float64)
    target = torch.tensor([[1.0, 0.0], [1.0, 2.0], [5.0, 7.0]], dtype=torch.float64)
    # Slot a: variances 0.5 and 2, covariance 1. Slot b has one image: only the squared differences count it.
    spread = (1 - math.sqrt(0.5001)) / 2
    assert float(vicreg.spread(predicted[:2])) == pytest.approx(spread)
    assert float(vicreg.redundancy(predicted[:2])) == pytest.approx(1.0)
    expected = 25 * 5 / 6 + 2 * (25 * spread + 1.0)
    assert float(vicreg.vicreg(["a", "a", "b"], predicted, target)) == pytest.approx(expected)
    # Two slots of the same rows: the mean over slots, times two.
    twice = vicreg.vicreg(["a", "a", "c", "c"], predicted[[0, 1, 0, 1]], predicted[[0, 1, 0, 1]])
    assert float(twice) == pytest.approx(2 * (25 * spread + 1.0))
    assert float(vicreg.vicreg(["a", "b", "c"], predicted, target)) == pytest.approx(25 * 5 / 6)


def test_vicreg_projector_equals_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(
        *(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()),
        *(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Linear(8, 8, bias=False),
    ).double()
    for norm in (theirs[1], theirs[4]):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    rows = torch.randn(5, 6, dtype=torch.float64)
    state = {name: value.detach() for name, value in theirs.named_parameters()}
    mine = vicreg.project(state, rows)
    torch.testing.assert_close(mine, theirs(rows), rtol=1e-12, atol=1e-12)
    targets = torch.randn(5, 6, dtype=torch.float64)
    total = vicreg.contrastive_loss(state, list("aabbb"), rows, targets)
    with torch.no_grad():
        expected = 0.001 * vicreg.vicreg(list("aabbb"), theirs(rows), theirs(targets))
    torch.testing.assert_close(total, expected)
    assert vicreg.pooled(torch.tensor([[1.0, 2.0], [3.0, 6.0]])).tolist() == [2.0, 4.0]


# Schedules, neighbours, ranks


def test_schedule_end_points_and_middles() -> None:
    rate = [schedules.learning_rate(step, 21, 10, 2.0, 8.0, 1.0) for step in range(21)]
    assert rate[0] == 2
    assert rate[5] == 5
    assert rate[10] == 8
    assert rate[15] == pytest.approx(4.5)
    assert rate[20] == pytest.approx(1)
    assert schedules.learning_rate(4, 5, 4, 2.0, 8.0, 1.0) == 8
    decay = [schedules.weight_decay(step, 5, 0.04, 0.4) for step in range(5)]
    assert decay == pytest.approx(
        [0.04, 0.4 - 0.18 * (1 + math.sqrt(0.5)), 0.22, 0.4 - 0.18 * (1 - math.sqrt(0.5)), 0.4]
    )
    assert [schedules.ema_momentum(step, 5) for step in range(5)] == pytest.approx([0.996, 0.997, 0.998, 0.999, 1.0])
    assert [schedules.curriculum(step, 5) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert schedules.curriculum(0, 1) == 0
    assert schedules.ema_momentum(0, 1) == 0.996


def test_knn_by_hand() -> None:
    bank = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [-1.0, 0.0]])
    query = np.array([5.0, 0.0])
    votes = knn.knn_votes(bank, [0, 1, 1, 2], query, neighbours=3, temperature=0.5)
    assert votes == pytest.approx({0: math.exp(2), 1: 2.0})
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    # The last query is nearest to class 2 but labelled 0.
    assert knn.knn_top1(bank, [0, 1, 1, 2], queries, [0, 1, 0], 1, 0.07) == pytest.approx(200 / 3)


def test_rankme_by_hand() -> None:
    assert knn.rankme(np.eye(4)) == pytest.approx(4, rel=1e-5)
    assert knn.rankme(np.ones((5, 3))) == pytest.approx(1, rel=1e-4)
    # Singular values 3 and 1.
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert knn.rankme(np.diag([3.0, 1.0])) == pytest.approx(expected, rel=1e-5)


def test_lidar_rank_by_hand() -> None:
    # Image means (+-1, 0) and (0, +-2), views at distance (0.1, 0.2) on both sides of the mean.
    means = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    offset = np.array([0.1, 0.2])
    views = np.stack([means + offset, means - offset], axis=1)
    # Without delta, within is singular: rank one dominates. With independent views it is diagonal and whitens.
    corners = [[0.1, 0.2], [-0.1, 0.2], [0.1, -0.2], [-0.1, -0.2]]
    square = np.stack([means + corner for corner in corners], axis=1)
    # Between diag(0.5, 2), within diag(0.01, 0.04): equal eigenvalues 50.
    assert knn.lidar(square, delta=0.0) == pytest.approx(2, rel=1e-5)
    shares = np.array([0.5 / 0.02, 2 / 0.05])
    shares /= shares.sum()
    assert knn.lidar(square, delta=0.01) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert knn.lidar(views) < 1.5

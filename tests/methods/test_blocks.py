"""Random blocks obey I-JEPA's law, reach every patch, and depend on seed, step and image alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dseq_jepa.draws import uniforms
from dseq_jepa.methods.blocks import block_size, draw_blocks
from dseq_jepa.methods.settings import BlockSettings
from tests.reference import blocks as reference

BLOCKS = BlockSettings()


def sets(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(mask).tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(0, 10**6), grid=st.sampled_from([8, 14, 16]))
def test_every_batch_is_lawful(seed: int, step: int, grid: int) -> None:
    context_BT, targets_BGT = draw_blocks(grid, BLOCKS, seed, step, np.arange(6))
    law = reference.Law(
        grid=grid,
        target_scale=BLOCKS.target_scale,
        target_aspect=BLOCKS.target_aspect,
        context_scale=BLOCKS.context_scale,
        min_context=BLOCKS.min_context,
    )
    reference.assert_lawful_batch([sets(c) for c in context_BT], [[sets(t) for t in ts] for ts in targets_BGT], law)


def test_an_image_draws_the_same_blocks_in_any_batch() -> None:
    together = draw_blocks(14, BLOCKS, 1, 5, np.array([7, 3, 9]))
    alone = draw_blocks(14, BLOCKS, 1, 5, np.array([3]))
    for batch, single in zip(together, alone, strict=True):
        np.testing.assert_array_equal(batch[1], single[0])


def test_every_place_of_the_grid_is_covered_as_often_as_a_uniform_placement_says() -> None:
    settings_ = BlockSettings(target_scale=(0.16, 0.16), target_aspect=(1.0, 1.0))
    size = block_size(14, 0.16, 1.0)
    covered = np.mean([draw_blocks(14, settings_, 0, step, np.arange(256))[1].mean((0, 1)) for step in range(12)], 0)
    expected = np.array(reference.patch_coverage(14, size), dtype=float)
    assert expected[-1, -1] > 0
    # 12 * 256 * 4 blocks: the standard deviation of a frequency is below 0.005. The images whose context came out too
    # small drew again, which favours overlapping targets a little.
    np.testing.assert_allclose(covered.reshape(14, 14), expected, atol=0.03)


def test_a_grid_on_which_contexts_run_out_still_ends() -> None:
    crowded = BlockSettings(targets=12, min_context=30)
    context_BT, targets_BGT = draw_blocks(8, crowded, 0, 0, np.arange(50))
    starved = context_BT.sum(1) < 30
    assert starved.any()
    np.testing.assert_array_equal(context_BT[starved], ~targets_BGT[starved].any(1))


@pytest.mark.parametrize("scale", [0.15, 0.2, 1.0])
def test_block_size_is_the_references(scale: float) -> None:
    for aspect in np.linspace(0.75, 1.5, 31):
        assert block_size(14, scale, aspect) == tuple(reference.block_size(14, scale, aspect))


def test_draws_are_uniform_and_keep_purposes_steps_and_images_apart() -> None:
    draws = uniforms(0, "crop", 3, np.arange(2000), 10)
    assert ((draws >= 0) & (draws < 1)).all()
    histogram = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 50  # chi-square with 19 degrees of freedom: p < 1e-4
    assert abs(np.corrcoef(draws.T)[np.triu_indices(10, 1)]).max() < 0.1
    others = [
        uniforms(1, "crop", 3, np.arange(2000), 10),
        uniforms(0, "curriculum", 3, np.arange(2000), 10),
        uniforms(0, "crop", 4, np.arange(2000), 10),
        uniforms(0, "crop", 3, np.arange(2000) + 1, 10),
    ]
    for other in others:
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(uniforms(0, "crop", 3, [5], 4)[0], uniforms(0, "crop", 3, [9, 5], 10)[1, :4])

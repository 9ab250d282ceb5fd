"""The references for Otsu, regions and blocks, by values computed by hand and against scikit-image.

pytest tests/reference/test_partition.py
"""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.filters import threshold_otsu

from tests.reference import blocks, otsu, regions
from tests.reference.tiny import RANKS_HW

# Otsu


def test_otsu_by_hand() -> None:
    levels = np.array([0, 0, 10, 255], dtype=np.uint8)
    variances = otsu.between_class_variances(levels)
    assert variances[0] == variances[9] == 2 * 2 * Fraction(265, 2) ** 2
    assert variances[10] == variances[254] == 3 * 1 * (Fraction(10, 3) - 255) ** 2
    assert variances[255] == 0
    assert otsu.otsu_threshold(levels) == otsu.exact_threshold(levels) == 10


def test_otsu_breaks_exact_ties_as_scikit_image() -> None:
    generator = np.random.default_rng(0)
    ties = exact_differs = 0
    for _ in range(300):
        half = generator.integers(0, 128, size=generator.integers(1, 5))
        counts = generator.integers(1, 6, size=len(half))
        values = np.concatenate([np.repeat(half, counts), np.repeat(255 - half, counts), [0, 255]])
        levels_HW = values.astype(np.uint8)[None]
        assert otsu.otsu_threshold(levels_HW) == threshold_otsu(levels_HW)
        tie = otsu.tied(levels_HW)
        differs = otsu.exact_threshold(levels_HW) != threshold_otsu(levels_HW)
        assert tie or not differs
        ties, exact_differs = ties + tie, exact_differs + differs
    assert ties > 20
    assert exact_differs > 0, "exact arithmetic breaks every tie as scikit-image does: one threshold function is enough"


# Regions


def saliency_map() -> np.ndarray:
    """Three components: 4 patches at 1.0, 4 at 0.9 in an L that touches one of 3 at 0.9 only by a corner, 2 at 0.95."""
    return np.array(
        [
            [1.0, 1.0, 0.0, 0.0, 0.0, 0.95],
            [1.0, 1.0, 0.0, 0.0, 0.0, 0.95],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.9, 0.9, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.9, 0.0, 0.0],
            [0.1, 0.0, 0.0, 0.9, 0.0, 0.0],
        ],
        dtype=np.float32,
    )


def test_regions_by_hand() -> None:
    expected = np.full((6, 6), 4)
    expected[:2, :2], expected[:2, 5] = 1, 2
    expected[3, 1:3] = expected[4:, 3] = 3
    for rank in (regions.ranked_regions, regions.ranked_regions_by_flood_fill):
        np.testing.assert_array_equal(rank(saliency_map(), 5, 1), expected)
        # Fewer than three patches: the second goes to the remainder, and ranks close up.
        shorter = np.where(expected == 2, 3, np.where(expected == 3, 2, np.where(expected == 4, 3, 1)))
        np.testing.assert_array_equal(rank(saliency_map(), 5, 3), shorter)
        np.testing.assert_array_equal(rank(saliency_map(), 3, 1), np.minimum(expected, 3))
        # 2 of 36 patches is 0.0556, 4 of 36 is 0.1111.
        np.testing.assert_array_equal(rank(saliency_map(), 5, 1, min_scale=0.1), shorter)
        np.testing.assert_array_equal(rank(saliency_map(), 5, 1, max_scale=0.1), np.where(expected == 2, 1, 2))
        assert rank(saliency_map(), 5, 5) is None
        assert rank(np.full((4, 4), 0.3, dtype=np.float32), 5, 1) is None


def test_regions_flood_fill_joins_both_diagonals_and_does_not_wrap() -> None:
    slash_HW = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]], dtype=bool)
    assert regions.flood_fill(slash_HW) == [[2, 4, 6], [11]]
    assert regions.flood_fill(slash_HW[:, ::-1]) == [[0, 4, 8], [9]]


def test_regions_ties_go_to_the_larger_then_to_the_first() -> None:
    map_HW = np.zeros((5, 7), dtype=np.float32)
    map_HW[0, 0] = map_HW[0, 2] = map_HW[4, 0] = 1
    map_HW[2, 4:6] = 1
    expected = np.full((5, 7), 5)
    expected[2, 4:6], expected[0, 0], expected[0, 2], expected[4, 0] = 1, 2, 3, 4
    np.testing.assert_array_equal(regions.ranked_regions(map_HW, 5, 1), expected)


def test_regions_quantise_by_floor() -> None:
    map_HW = np.array([[0.0, 0.5, 0.999, 1.0]], dtype=np.float32)
    assert regions.quantised(map_HW).tolist() == [[0, 127, 254, 255]]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, (6, 7), elements=st.one_of(st.floats(-4, 4, width=32), st.sampled_from([0.0, 0.5, 1.0]))),
    st.integers(2, 7),
    st.integers(1, 5),
)
def test_regions_flood_fill_equals_scikit_image(map_HW: np.ndarray, count: int, min_patches: int) -> None:
    by_library = regions.ranked_regions(map_HW, count, min_patches)
    by_hand = regions.ranked_regions_by_flood_fill(map_HW, count, min_patches)
    assert (by_library is None) == (by_hand is None)
    if by_library is not None and by_hand is not None:
        np.testing.assert_array_equal(by_library, by_hand)
        assert set(by_library.reshape(-1).tolist()) == set(range(1, int(by_library.max()) + 1))


def test_regions_reorder() -> None:
    # Centroid rows: R_1 0.5, R_2 2, R_3 14/3, so saliency order is already spatial; swap two ranks to see it restored.
    permuted = regions.reorder(RANKS_HW, [2, 3, 1])
    assert [int(permuted[0, 0]), int(permuted[1, 4]), int(permuted[5, 0]), int(permuted[0, 5])] == [3, 1, 2, 4]
    np.testing.assert_array_equal(regions.reorder(permuted, "spatial"), RANKS_HW)
    # Equal centroid rows: the left one first.
    side_by_side = np.array([[2, 3, 1], [2, 3, 1]])
    np.testing.assert_array_equal(regions.reorder(side_by_side, "spatial"), [[1, 3, 2], [1, 3, 2]])
    # Equal centroids: a ring around a dot; the ring has the smaller index.
    ring = np.array([[2, 2, 2], [2, 1, 2], [2, 2, 2], [3, 3, 3]])
    assert regions.reorder(ring, "spatial")[0, 0] == 1
    with pytest.raises(ValueError, match="no permutation"):
        regions.reorder(RANKS_HW, [1, 2, 2])


# Blocks


def test_blocks_sizes() -> None:
    assert blocks.block_size(14, 0.15, 1.0) == (5, 5)  # 29 patches: sqrt = 5.39
    assert blocks.block_size(14, 0.2, 1.5) == (8, 5)  # 39: sqrt(58.5) = 7.65, sqrt(26) = 5.10
    assert blocks.block_size(14, 1.0, 1.5) == (14, 11)  # 196: 17.1 is clipped to the grid, 11.43
    sizes = blocks.attainable_sizes(14, (0.15, 0.2), (0.75, 1.5))
    for scale in np.linspace(0.15, 0.2, 41):
        for aspect in np.linspace(0.75, 1.5, 101):
            assert blocks.block_size(14, float(scale), float(aspect)) in sizes
    assert (5, 5) in sizes
    assert (4, 9) not in sizes
    assert blocks.attainable_sizes(14, (0.85, 1.0), (1.0, 1.0)) == {(13, 13), (14, 14)}


def test_blocks_law_accepts_and_refuses() -> None:
    law = blocks.Law(grid=8, min_context=20)
    size = (3, 3)
    assert size in blocks.attainable_sizes(8, law.target_scale, law.target_aspect)
    targets = [blocks.Rectangle(top, left, *size).patches(8) for top, left in ((0, 0), (5, 5), (1, 4), (2, 2))]
    whole = blocks.Rectangle(0, 0, 8, 8).patches(8)
    context = whole.difference(*targets)
    blocks.assert_lawful(context, targets, law)
    blocks.assert_lawful_batch([context, context], [targets, targets], law)
    holey = [targets[0] - {9}, *targets[1:]]
    with pytest.raises(AssertionError, match="not a solid rectangle"):
        blocks.assert_lawful(context, holey, law)
    other = [blocks.Rectangle(0, 0, 4, 3).patches(8), *targets[1:]]
    with pytest.raises(AssertionError, match="several sizes"):
        blocks.assert_lawful(context, other, law)
    with pytest.raises(AssertionError, match="visible"):
        blocks.assert_lawful(context | {0}, targets, law)
    with pytest.raises(AssertionError, match="no rectangle minus"):
        blocks.assert_lawful(context - {min(context)} - {max(context)}, targets, law)
    with pytest.raises(AssertionError, match="only"):
        blocks.assert_lawful(context, targets, law._replace(min_context=60))
    row = [set(range(start, start + 9)) for start in (0, 9)]
    with pytest.raises(AssertionError):
        blocks.assert_lawful(whole.difference(*row), row, law)


def test_blocks_coverage_by_hand() -> None:
    third = Fraction(1, 3)
    assert blocks.row_coverage(4, 2) == [third, 2 * third, 2 * third, third]
    assert blocks.row_coverage(3, 3) == [1, 1, 1]
    cover = blocks.patch_coverage(4, (2, 3))
    assert cover[0][0] == third / 2
    assert sum(sum(row) for row in cover) == 6

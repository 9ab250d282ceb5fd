"""Batched regions equal scikit-image and a flood fill on every kind of map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from dseq_jepa.methods.partition import random_order, spatial_order
from dseq_jepa.methods.regions import by_scikit_image, cls_saliency, on_device, ranked_regions
from dseq_jepa.methods.settings import RegionSettings
from tests.reference import otsu
from tests.reference import regions as reference

Map = NDArray[np.float32]


def spiral(side: int) -> Map:
    """One path of single patches that winds inwards: the longest component that a map can have."""
    map_HW = np.zeros((side, side), np.float32)
    row, column, turn = 0, 0, 0
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    map_HW[0, 0] = 1
    while True:
        for _ in range(2):
            ahead = row + 2 * steps[turn][0], column + 2 * steps[turn][1]
            inside = 0 <= ahead[0] - steps[turn][0] < side and 0 <= ahead[1] - steps[turn][1] < side
            free = not (0 <= ahead[0] < side and 0 <= ahead[1] < side) or not map_HW[ahead]
            if inside and free:
                break
            turn = (turn + 1) % 4
        else:
            return map_HW
        row, column = row + steps[turn][0], column + steps[turn][1]
        if map_HW[row, column]:
            return map_HW
        map_HW[row, column] = 1


def maps(side: int, count: int, seed: int) -> list[Map]:
    """Noise, smooth noise, plateaus with ties, binary noise, one patch, constants, a spiral and its negative."""
    rng = np.random.default_rng(seed)
    result = []
    for n in range(count):
        noise = rng.standard_normal((side, side))
        kind = n % 8
        if kind == 1:
            noise = gaussian_filter(noise, rng.uniform(0.5, 2.5))
        elif kind == 2:
            noise = np.round(noise)
        elif kind == 3:
            noise = (noise > rng.uniform(-1.5, 1.5)).astype(float)
        elif kind == 4:
            noise = (np.arange(side * side) == rng.integers(side * side)).reshape(side, side).astype(float)
        elif kind == 5:
            noise = np.full((side, side), rng.standard_normal())
        elif kind == 6:
            noise = spiral(side) * rng.choice([-1, 1])
        elif kind == 7:
            noise = noise * 10.0 ** rng.integers(-20, 20)
        result.append(noise.astype(np.float32))
    return result


def test_the_spiral_is_one_long_path() -> None:
    map_HW = spiral(14)
    assert map_HW.sum() > 14 * 14 / 3
    assert reference.flood_fill(map_HW > 0)[0].__len__() == map_HW.sum()


@pytest.mark.parametrize(("side", "count"), [(14, 2400), (7, 1600), (28, 48), (3, 400)])
def test_regions_equal_scikit_image(side: int, count: int) -> None:
    for number, map_HW in enumerate(maps(side, count, seed=side)):
        regions = RegionSettings(count=2 + number % 6, min_patches=1 + number % 11)
        expected = by_scikit_image(map_HW, regions).ravel()
        row_1T = torch.from_numpy(map_HW).view(1, -1)
        np.testing.assert_array_equal(ranked_regions(row_1T, side, regions)[0], expected)
        np.testing.assert_array_equal(on_device(row_1T, side, regions)[0], expected)


def test_a_batch_equals_its_images_one_by_one() -> None:
    regions = RegionSettings(min_patches=2)
    maps_BT = torch.from_numpy(np.stack(maps(9, 64, seed=1)).reshape(64, -1))
    alone_BT = torch.cat([ranked_regions(row_1T, 9, regions) for row_1T in maps_BT.split(1)])
    assert torch.equal(ranked_regions(maps_BT, 9, regions), alone_BT)
    assert torch.equal(on_device(maps_BT, 9, regions), alone_BT)
    skimage = regions.model_copy(update={"backend": "skimage"})
    assert torch.equal(ranked_regions(maps_BT, 9, skimage), alone_BT)


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [3e38, -3e38]])
def test_a_map_that_is_not_finite_has_no_region_and_leaves_the_others_alone(bad: list[float]) -> None:
    """3e38 is finite, but no fp32 holds the span of such a map."""
    regions = RegionSettings(min_patches=1)
    maps_BT = torch.from_numpy(np.stack(maps(9, 3, seed=1)).reshape(3, -1))
    expected_BT = ranked_regions(maps_BT, 9, regions)
    assert (expected_BT > 0).all()
    maps_BT[1, : len(bad)] = torch.tensor(bad)
    expected_BT[1] = 0
    assert torch.equal(ranked_regions(maps_BT, 9, regions), expected_BT)
    assert torch.equal(on_device(maps_BT, 9, regions), expected_BT)
    skimage = regions.model_copy(update={"backend": "skimage"})
    assert torch.equal(ranked_regions(maps_BT, 9, skimage), expected_BT)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(2, 8),
    min_patches=st.integers(1, 9),
    scales=st.sampled_from([(0.0, 1.0), (0.1, 1.0), (0.0, 0.2), (0.05, 0.3)]),
)
def test_regions_equal_the_independent_reference(
    seed: int, count: int, min_patches: int, scales: tuple[float, float]
) -> None:
    regions = RegionSettings(
        count=count, min_patches=min_patches, min_region_scale=scales[0], max_region_scale=scales[1]
    )
    for map_HW in maps(8, 8, seed):
        expected = reference.ranked_regions_by_flood_fill(map_HW, count, min_patches, *scales)
        found = ranked_regions(torch.from_numpy(map_HW).view(1, -1), 8, regions)[0].numpy()
        assert found.any() == (expected is not None)
        if expected is not None:
            np.testing.assert_array_equal(found, expected.ravel())
            last = found.max()
            assert last <= count
            assert set(found) == set(range(1, last + 1)), "regions cover the image without gaps"


def test_otsu_is_the_brute_force_maximum() -> None:
    rng = np.random.default_rng(0)
    regions = RegionSettings(count=2, min_patches=1)
    for _ in range(50):
        map_HW = rng.random((6, 6)).astype(np.float32) ** 2
        levels = reference.quantised(reference.normalised(map_HW))
        foreground = levels > otsu.otsu_threshold(levels)
        largest = max(reference.flood_fill(foreground), key=lambda patches: map_HW.ravel()[patches].mean())
        found = ranked_regions(torch.from_numpy(map_HW).view(1, -1), 6, regions)[0]
        assert np.flatnonzero(found == 1).tolist() == largest


def test_ties_go_to_the_larger_region_and_then_to_the_first() -> None:
    map_HW = np.zeros((5, 5), np.float32)
    map_HW[0, 0] = map_HW[0, 4] = 1  # two single patches
    map_HW[3, 1:4] = 1  # three patches, the same score
    found = ranked_regions(torch.from_numpy(map_HW).view(1, -1), 5, RegionSettings(count=5, min_patches=1))[0].view(
        5, 5
    )
    assert found[3, 1] == 1
    assert found[0, 0] == 2
    assert found[0, 4] == 3
    assert found[2, 2] == 4


def test_saliency_is_the_scaled_similarity() -> None:
    class_BD, patches_BTD = torch.randn(2, 8), torch.randn(2, 5, 8)
    for b in range(2):
        for t in range(5):
            expected = sum(float(class_BD[b, d] * patches_BTD[b, t, d]) for d in range(8)) / 8**0.5
            assert float(cls_saliency(class_BD, patches_BTD)[b, t]) == pytest.approx(expected, rel=1e-5)


def _ranks(seed: int) -> torch.Tensor:
    maps_BT = torch.from_numpy(np.stack(maps(8, 32, seed)).reshape(32, -1))
    ranks_BT = ranked_regions(maps_BT, 8, RegionSettings(count=6, min_patches=1))
    return ranks_BT[ranks_BT[:, 0] > 0]


def test_spatial_order_equals_the_reference() -> None:
    ranks_BT = _ranks(5)
    for before_T, after_T in zip(ranks_BT, spatial_order(ranks_BT, 6, 8), strict=True):
        np.testing.assert_array_equal(after_T.view(8, 8), reference.reorder(before_T.view(8, 8).numpy(), "spatial"))


def test_random_order_permutes_regions_by_seed_step_and_image_and_keeps_the_remainder_last() -> None:
    ranks_BT = _ranks(6)
    ids = np.arange(len(ranks_BT))
    orders = [random_order(ranks_BT, 6, seed=1, step=step, ids_B=ids) for step in range(20)]
    assert torch.equal(orders[0], random_order(ranks_BT, 6, seed=1, step=0, ids_B=ids))
    assert any(not torch.equal(orders[0], order) for order in orders[1:])
    for order_BT in orders:
        for before_T, after_T in zip(ranks_BT, order_BT, strict=True):
            last = before_T.max()
            assert torch.equal(before_T == last, after_T == last)
            pairs = set(zip(before_T.tolist(), after_T.tolist(), strict=True))
            assert len(pairs) == last == len({new for _, new in pairs})


def most_found(side: int) -> dict[int, int]:
    """By smallest size: most components that any of the 2^(side^2) foregrounds has, by trying them all."""
    patches = side * side
    maps_NHW = (np.arange(2**patches)[:, None] >> np.arange(patches) & 1).astype(bool).reshape(-1, side, side)
    within_a_map = np.zeros((3, 3, 3), int)
    within_a_map[1] = 1
    labels_NHW, count = label(maps_NHW[:-1], structure=within_a_map)  # without the map that is all foreground
    area_K = np.bincount(labels_NHW.ravel(), minlength=count + 1)[1:]
    map_K = np.zeros(count + 1, int)
    map_K[labels_NHW.ravel()] = np.arange(len(labels_NHW)).repeat(patches)
    sizes = range(1, patches + 1)
    return {size: int(np.bincount(map_K[1:][area_K >= size], minlength=1).max()) for size in sizes}


def test_what_is_called_impossible_is_impossible() -> None:
    """On every map up to 4 x 4 patches no more components are found than are said to fit; rarely fewer."""
    loose = []
    for side in (2, 3, 4):
        for size, found in most_found(side).items():
            bound = RegionSettings(min_patches=size).most_components(side)
            assert found <= bound, f"{found} components of {size} patches exist on {side} x {side}"
            loose += [(side, size)] * (found < bound)
    assert loose == [(4, 3), (4, 6)]


def test_the_papers_seven_regions_fit_its_map_and_scales_count_too() -> None:
    assert RegionSettings().most_components(14) == 12
    assert RegionSettings(min_region_scale=0.2).most_components(14) == 225 // (40 + 13 + 1)
    assert RegionSettings(max_region_scale=0.05).most_components(14) == 0  # 9.8 patches, and 10 are needed

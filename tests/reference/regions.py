"""Discriminative regions of one saliency map (paper 3.2, Eq. 1-4), and their other orders (Table 5).

pytest tests/reference -k regions
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu
from skimage.measure import label

from tests.reference.otsu import otsu_threshold

Ranks = NDArray[np.int64]


class Component(NamedTuple):
    """A connected set of foreground patches."""

    patches: list[int]
    """Row-major indices, ascending."""
    score: float
    """Mean normalised saliency."""


def normalised(saliency_HW: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Min-max normalisation in float32 (Eq. 1); None for a constant map."""
    saliency_HW = saliency_HW.astype(np.float32)
    low, high = saliency_HW.min(), saliency_HW.max()
    if low == high:
        return None
    normalised_HW: NDArray[np.float32] = (saliency_HW - low) / (high - low)
    return normalised_HW


def quantised(normalised_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """floor(255 A), the product in float32."""
    levels_HW: NDArray[np.uint8] = np.floor(np.float32(255) * normalised_HW).astype(np.uint8)
    return levels_HW


def ranked_regions(
    saliency_HW: NDArray[np.float32],
    count: int,
    min_patches: int,
    min_scale: float = 0.0,
    max_scale: float = 1.0,
) -> Ranks | None:
    """Rank 1..M of every patch by scikit-image's Otsu and labels; None where no component is left.

    Args:
        saliency_HW: float32 and finite.
        count: N, regions at most, the remainder included.
        min_patches: smaller components are dropped.
        min_scale: components below this fraction of the image are dropped.
        max_scale: components above this fraction of the image are dropped.
    """
    normalised_HW = normalised(saliency_HW)
    if normalised_HW is None:
        return None
    levels_HW = quantised(normalised_HW)
    labels_HW = label(levels_HW > threshold_otsu(levels_HW), connectivity=2)
    groups = [np.flatnonzero(labels_HW == number).tolist() for number in range(1, int(labels_HW.max()) + 1)]
    return _ranked(normalised_HW, groups, count, min_patches, min_scale, max_scale)


def ranked_regions_by_flood_fill(
    saliency_HW: NDArray[np.float32],
    count: int,
    min_patches: int,
    min_scale: float = 0.0,
    max_scale: float = 1.0,
) -> Ranks | None:
    """`ranked_regions` without scikit-image: brute-force Otsu and a flood fill."""
    normalised_HW = normalised(saliency_HW)
    if normalised_HW is None:
        return None
    levels_HW = quantised(normalised_HW)
    groups = flood_fill(levels_HW > otsu_threshold(levels_HW))
    return _ranked(normalised_HW, groups, count, min_patches, min_scale, max_scale)


def flood_fill(foreground_HW: NDArray[np.bool_]) -> list[list[int]]:
    """8-connected components as ascending row-major indices, in order of their first index."""
    height, width = foreground_HW.shape
    unseen = {index for index in range(height * width) if foreground_HW[index // width, index % width]}
    groups = []
    while unseen:
        frontier = [min(unseen)]
        unseen.remove(frontier[0])
        group = []
        while frontier:
            patch = frontier.pop()
            group.append(patch)
            for row in range(patch // width - 1, patch // width + 2):
                for column in range(patch % width - 1, patch % width + 2):
                    if 0 <= row < height and 0 <= column < width and row * width + column in unseen:
                        unseen.remove(row * width + column)
                        frontier.append(row * width + column)
        groups.append(sorted(group))
    return groups


def _ranked(
    normalised_HW: NDArray[np.float32],
    groups: list[list[int]],
    count: int,
    min_patches: int,
    min_scale: float,
    max_scale: float,
) -> Ranks | None:
    values = normalised_HW.reshape(-1)
    components = []
    for patches in groups:
        fraction = len(patches) / values.size
        if len(patches) < min_patches or fraction < min_scale or fraction > max_scale:
            continue
        # Foreground values are float32 in [1/255, 1]: their float64 sum is exact in every order of summation.
        total = 0.0
        for patch in patches:
            total += float(values[patch])
        components.append(Component(patches, total / len(patches)))
    if not components:
        return None
    components.sort(key=lambda component: (-component.score, -len(component.patches), component.patches[0]))
    chosen = components[: count - 1]
    ranks = np.full(values.size, len(chosen) + 1, dtype=np.int64)
    for rank, component in enumerate(chosen, start=1):
        for patch in component.patches:
            ranks[patch] = rank
    return ranks.reshape(normalised_HW.shape)


def centroid(ranks_HW: Ranks, rank: int) -> tuple[Fraction, Fraction]:
    """Mean row and mean column of a region, exact."""
    width = ranks_HW.shape[1]
    patches = np.flatnonzero(ranks_HW == rank).tolist()
    rows = sum(patch // width for patch in patches)
    columns = sum(patch % width for patch in patches)
    return Fraction(rows, len(patches)), Fraction(columns, len(patches))


def reorder(ranks_HW: Ranks, order: Literal["spatial"] | Sequence[int]) -> Ranks:
    """Permute R_1..R_{M-1}; the remainder R_M stays last.

    Args:
        ranks_HW: 1..M.
        order: "spatial": by centroid row, then centroid column, then first index. A permutation of 1..M-1 (the random
            order): its j-th entry is the old rank of the region that becomes R_j.
    """
    last = int(ranks_HW.max())
    if isinstance(order, str):
        olds = sorted(
            range(1, last),
            key=lambda rank: (*centroid(ranks_HW, rank), np.flatnonzero(ranks_HW == rank)[0]),
        )
    else:
        olds = list(order)
        if sorted(olds) != list(range(1, last)):
            raise ValueError(f"{olds} is no permutation of 1..{last - 1}")
    result = np.full_like(ranks_HW, last)
    for new, old in enumerate(olds, start=1):
        result[ranks_HW == old] = new
    return result

"""What I-JEPA's random blocks must satisfy, and how often a uniformly placed block covers a patch.

pytest tests/reference -k blocks
"""

import functools
import itertools
import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import NamedTuple

Interval = tuple[float, float]
Size = tuple[int, int]


class Law(NamedTuple):
    """The numbers of a block scheme on a square grid (docs/protocols.md 1.1)."""

    grid: int
    """Patches per side."""
    target_scale: Interval = (0.15, 0.2)
    target_aspect: Interval = (0.75, 1.5)
    context_scale: Interval = (0.85, 1.0)
    min_context: int = 11


class Rectangle(NamedTuple):
    """A solid block of patches."""

    top: int
    left: int
    height: int
    width: int

    def patches(self, grid: int) -> set[int]:
        """Row-major indices."""
        return {
            row * grid + column
            for row in range(self.top, self.top + self.height)
            for column in range(self.left, self.left + self.width)
        }


def block_size(grid: int, scale: float, aspect: float) -> Size:
    """(height, width) of a block of this area fraction and aspect (height over width), clipped to the grid."""
    return _size(grid, int(grid * grid * scale), aspect)


def _size(grid: int, patches: int, aspect: float) -> Size:
    height = round(math.sqrt(patches * aspect))
    width = round(math.sqrt(patches / aspect))
    return min(height, grid), min(width, grid)


@functools.cache
def attainable_sizes(grid: int, scale: Interval, aspect: Interval) -> set[Size]:
    """Every (height, width) that some scale and some aspect in the closed intervals lead to.

    Exhaustive: for each number of patches, height and width change only at aspects where a square root passes k + 1/2;
    one aspect between each pair of neighbouring changes is tried, and the ends.
    """
    low, high = aspect
    sizes = set()
    for patches in range(int(grid * grid * scale[0]), int(grid * grid * scale[1]) + 1):
        changes = {low, high}
        for k in range(2 * grid * grid):
            for change in ((k + 0.5) ** 2 / patches, patches / (k + 0.5) ** 2):
                if low < change < high:
                    changes.add(change)
        ordered = sorted(changes)
        middles = [(left + right) / 2 for left, right in itertools.pairwise(ordered)]
        sizes |= {_size(grid, patches, value) for value in (low, high, *middles)}
    return sizes


def as_rectangle(patches: Collection[int], grid: int) -> Rectangle:
    """The solid rectangle that a set of patch indices is; an assertion fails if it is none or leaves the grid."""
    assert len(patches) == len(set(patches)), "a patch twice in a block"
    assert patches, "an empty block"
    assert all(0 <= patch < grid * grid for patch in patches), f"a patch outside the {grid} x {grid} grid"
    rows = [patch // grid for patch in patches]
    columns = [patch % grid for patch in patches]
    rectangle = Rectangle(min(rows), min(columns), max(rows) - min(rows) + 1, max(columns) - min(columns) + 1)
    assert rectangle.patches(grid) == set(patches), f"not a solid rectangle: {sorted(patches)}"
    return rectangle


def context_rectangles(context: Collection[int], targets: Sequence[Collection[int]], law: Law) -> list[Rectangle]:
    """Every rectangle of an attainable context size whose patches outside the targets are exactly the context."""
    hidden = set().union(*(set(target) for target in targets))
    explanations = []
    for height, width in sorted(attainable_sizes(law.grid, law.context_scale, (1.0, 1.0))):
        for top in range(law.grid - height + 1):
            for left in range(law.grid - width + 1):
                rectangle = Rectangle(top, left, height, width)
                if rectangle.patches(law.grid) - hidden == set(context):
                    explanations.append(rectangle)
    return explanations


def assert_lawful(context: Collection[int], targets: Sequence[Collection[int]], law: Law) -> None:
    """One image's blocks obey the law: solid targets of one attainable size, context = rectangle - targets."""
    sizes = {(block.height, block.width) for block in (as_rectangle(target, law.grid) for target in targets)}
    assert len(sizes) == 1, f"targets of several sizes: {sizes}"
    (size,) = sizes
    attainable = attainable_sizes(law.grid, law.target_scale, law.target_aspect)
    assert size in attainable, f"{size} is none of {sorted(attainable)}"
    assert len(context) == len(set(context)), "a patch twice in the context"
    for target in targets:
        assert not set(context) & set(target), "a target patch is visible"
    assert len(context) >= law.min_context, f"only {len(context)} patches visible"
    assert context_rectangles(context, targets, law), "the context is no rectangle minus the targets"


def assert_lawful_batch(
    contexts: Sequence[Collection[int]], targets: Sequence[Sequence[Collection[int]]], law: Law
) -> None:
    """Every image obeys the law, and one target size and one context size explain the whole step."""
    target_sizes: set[Size] = set()
    context_sizes: set[Size] | None = None
    for context, blocks in zip(contexts, targets, strict=True):
        assert_lawful(context, blocks, law)
        block = as_rectangle(blocks[0], law.grid)
        target_sizes.add((block.height, block.width))
        possible = {(found.height, found.width) for found in context_rectangles(context, blocks, law)}
        context_sizes = possible if context_sizes is None else context_sizes & possible
    assert len(target_sizes) == 1, f"the images of one step have targets of several sizes: {target_sizes}"
    assert context_sizes, "no single context size explains all images of the step"


def row_coverage(grid: int, height: int) -> list[Fraction]:
    """Probability that each row (or column) is covered by a block placed uniformly on all grid - height + 1 places.

    The first and the last row have the same probability, 1 / (grid - height + 1): none is out of reach.
    """
    tops = range(grid - height + 1)
    return [Fraction(sum(top <= row < top + height for top in tops), len(tops)) for row in range(grid)]


def patch_coverage(grid: int, size: Size) -> list[list[Fraction]]:
    """Probability of every patch, [row][column]; rows and columns are placed independently."""
    rows, columns = row_coverage(grid, size[0]), row_coverage(grid, size[1])
    return [[row * column for column in columns] for row in rows]

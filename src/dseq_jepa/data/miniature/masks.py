"""Masks in COCO's two codes, exact to the pixel.

    python -c 'from dseq_jepa.data.miniature.masks import outlines; help(outlines)'

A polygon follows the edges of pixels: its corners are whole numbers and a pixel's centre, at +0.5, is never on it. So
any rule that asks whether a pixel's centre is inside, and COCO's own rasteriser too, gives back the same mask.
"""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def counts(mask_HW: Mask) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with the zeros."""
    flat = np.concatenate([[False], mask_HW.ravel(order="F"), [False]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    ends = changes if len(changes) and changes[-1] == mask_HW.size else np.append(changes, mask_HW.size)
    return [int(run) for run in np.diff(ends, prepend=0)]


def box(mask_HW: Mask) -> list[float]:
    """Left, top, width and height of the pixels of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def outlines(mask_HW: Mask) -> list[list[float]]:
    """Polygons [x0, y0, x1, y1, ...] whose union is the mask; parts with a hole are cut through it."""
    from scipy.ndimage import label

    parts_HW, count = label(mask_HW)
    polygons = []
    for part in range(1, count + 1):
        loops = _loops(parts_HW == part)
        if len(loops) == 1:
            polygons.append([float(v) for point in loops[0] for v in point])
            continue
        cut = min(x for x, _ in loops[1]) + 1  # a column inside the first hole
        left_HW = (parts_HW == part) & (np.arange(mask_HW.shape[1]) < cut)
        polygons += outlines(left_HW) + outlines((parts_HW == part) & ~left_HW)
    return polygons


def _loops(mask_HW: Mask) -> list[list[tuple[int, int]]]:
    """Corner points (x, y) of the borders of one 4-connected part: the outer border first, then its holes.

    Every border edge is walked with the mask on its right; where two borders touch in a point, turning right keeps
    them apart, since diagonal neighbours are not connected.
    """
    padded = np.pad(mask_HW, 1)
    edges: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for dy, dx, start, step in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (0, 1)),
        (1, 0, (1, 1), (-1, 0)),
        (0, -1, (0, 1), (0, -1)),
    ):
        beside = padded[1 + dy : 1 + dy + mask_HW.shape[0], 1 + dx : 1 + dx + mask_HW.shape[1]]
        for y, x in np.argwhere(mask_HW & ~beside).tolist():
            edges.setdefault((x + start[0], y + start[1]), []).append(step)
    loops = []
    while edges:
        point = first = min(edges, key=lambda p: (p[1], p[0]))
        step = edges[point][0]
        corners: list[tuple[int, int]] = []
        while True:
            choices = edges[point]
            right = (-step[1], step[0])
            new = right if right in choices else choices[0]
            choices.remove(new)
            if not choices:
                del edges[point]
            if new != step or not corners:
                corners.append(point)
            point, step = (point[0] + new[0], point[1] + new[1]), new
            if point == first:
                break
        loops.append(corners)
    return loops

"""I-JEPA's random blocks, for a whole batch at once (docs/protocols.md 1.1; I-JEPA paper, section 4).

    context_BT, targets_BGT = draw_blocks(grid=14, settings=BlockSettings(), seed=0, step=3, ids_B=ids)

Sizes are drawn once per global step, positions per image, both from (seed, step, image): the same on any number of
ranks and after any resume. Unlike the public code, blocks reach the last row and column, contexts keep their own
length, and no loop can hang. B images, G target blocks, T = grid * grid patches, A attempts.
"""

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.draws import uniforms
from dseq_jepa.methods.settings import BlockSettings

ATTEMPTS = 8
"""Draws of an image before its context becomes the whole image without the targets."""

Mask = NDArray[np.bool_]


def block_size(grid: int, scale: float, aspect: float) -> tuple[int, int]:
    """Height and width in patches of a block with an area fraction and an aspect (height over width)."""
    area = int(grid * grid * scale)
    height = round(float(np.sqrt(area * aspect)))
    width = round(float(np.sqrt(area / aspect)))
    return min(max(height, 1), grid), min(max(width, 1), grid)


def draw_blocks(
    grid: int, settings: BlockSettings, seed: int, step: int, ids_B: NDArray[np.int64]
) -> tuple[Mask, Mask]:
    """Visible patches (B, T) and target blocks (B, G, T) of every image.

    The context is a large block without the targets' patches. An image whose context would keep fewer than
    `min_context` patches draws again; after `ATTEMPTS` draws everything but its targets is visible.
    """
    u = uniforms(seed, "block sizes", step, [0], 3)[0]
    low, high = settings.target_scale
    shortest, tallest = settings.target_aspect
    target_size = block_size(grid, low + u[0] * (high - low), shortest + u[1] * (tallest - shortest))
    low, high = settings.context_scale
    context_size = block_size(grid, low + u[2] * (high - low), 1.0)

    B, G, A = len(ids_B), settings.targets, ATTEMPTS
    corners_BAGX = uniforms(seed, "block positions", step, ids_B, A * (G + 1) * 2).reshape(B, A, G + 1, 2)
    targets_BAGT = _rectangles(grid, target_size, corners_BAGX[:, :, :G])
    blocks_BAT = _rectangles(grid, context_size, corners_BAGX[:, :, G])
    free_BAT = np.logical_not(targets_BAGT.any(axis=2))
    contexts_BAT = blocks_BAT & free_BAT
    enough_BA = contexts_BAT.sum(axis=2) >= settings.min_context
    found_B1 = enough_BA.any(axis=1, keepdims=True)
    chosen_B = np.where(found_B1[:, 0], enough_BA.argmax(axis=1), A - 1)
    rows_B = np.arange(B)
    context_BT = np.where(found_B1, contexts_BAT[rows_B, chosen_B], free_BAT[rows_B, chosen_B])
    return context_BT, targets_BAGT[rows_B, chosen_B]


def _rectangles(grid: int, size: tuple[int, int], corners: NDArray[np.float64]) -> Mask:
    """Masks (..., T) of equal rectangles whose top-left corners are drawn uniformly: (..., 2) numbers in [0, 1)."""
    spare = np.array([grid - size[0], grid - size[1]]) + 1
    top_left = (corners * spare).astype(np.int64)[..., None]
    line_G = np.arange(grid)
    inside = (line_G >= top_left) & (line_G < top_left + np.array(size)[:, None])
    rectangle: Mask = inside[..., 0, :, None] & inside[..., 1, None, :]
    return rectangle.reshape(*rectangle.shape[:-2], grid * grid)

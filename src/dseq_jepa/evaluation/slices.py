"""Seeded slices of a training set: which images are bank, queries or held out (docs/protocols.md 2 and 3).

Pure functions of (labels, seed): the same on every rank and after a resume. N images.
"""

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.draws import uniforms

Indices = NDArray[np.int64]


def balanced_slices(labels_N: NDArray[np.int64], sizes: list[int], seed: int) -> list[Indices]:
    """Disjoint slices, each as class-balanced as the images allow; each sorted by index.

    Images are dealt class by class in rounds, in random order within each; slice after slice takes its size from the
    deal. A class runs out only when all of its images are placed.
    """
    rank_N, _, draw_N = _rank_within_class(labels_N, seed, "balanced slices")
    deal_N = np.lexsort((draw_N, rank_N))
    ends = np.cumsum(sizes)
    return [np.sort(deal_N[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def stratified_holdout(labels_N: NDArray[np.int64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(kept, held out) indices, sorted: the fraction of every class as nearly as it can be, one image always kept."""
    rank_N, size_N, draw_N = _rank_within_class(labels_N, seed, "holdout")
    key_N = (rank_N + draw_N) / size_N
    may_leave = int((rank_N < size_N - 1).sum())
    order_N = np.lexsort((key_N, rank_N == size_N - 1))
    held = order_N[: min(may_leave, max(1, round(fraction * len(labels_N))))]
    return np.setdiff1d(np.arange(len(labels_N)), held), np.sort(held)


def _rank_within_class(
    labels_N: NDArray[np.int64], seed: int, purpose: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Of every image: its place in a random order of its class, the size of the class, and its draw."""
    draw_N = uniforms(seed, purpose, 0, np.arange(len(labels_N)), 1)[:, 0]
    order_N = np.lexsort((draw_N, labels_N))
    _, first, inverse_N, sizes = np.unique(
        labels_N[order_N], return_index=True, return_inverse=True, return_counts=True
    )
    rank_N, size_N = np.empty_like(order_N), np.empty_like(order_N)
    rank_N[order_N] = np.arange(len(labels_N)) - first[inverse_N]
    size_N[order_N] = sizes[inverse_N]
    return rank_N, size_N, draw_N

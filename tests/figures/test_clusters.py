"""Figures 6 and 7: clusters are found, and keep their number and colour from checkpoint to checkpoint.

pytest tests/figures/test_clusters.py
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.figures import style
from dseq_jepa.figures.clusters import Seen, by_similarity, cluster, match, matched
from dseq_jepa.figures.settings import MAX_CLUSTERS


@pytest.mark.parametrize("seed", range(5))
def test_matching_shares_as_many_patches_as_any_renumbering(seed: int):
    draws = np.random.default_rng(seed)
    labels, reference = draws.integers(0, 4, (2, 60))
    best = max((np.array(order)[labels] == reference).sum() for order in itertools.permutations(range(4)))
    renamed = match(labels, reference)
    assert (renamed == reference).sum() == best
    pairs = set(zip(labels.tolist(), renamed.tolist(), strict=True))
    assert len(pairs) == len(np.unique(labels))  # one number for one number


def test_the_same_clusters_keep_their_numbers_over_checkpoints():
    """Every checkpoint numbers the same parts differently; two patches move between the second and the third."""
    draws = np.random.default_rng(1)
    parts = np.repeat(np.arange(4), 9)
    moved = parts.copy()
    moved[[0, 35]] = moved[[35, 0]]
    numberings = [draws.permutation(4)[labels] for labels in (parts, parts, moved, moved)]
    similarity = -moved.astype(np.float32)  # part 0 is the most similar to the class token
    seen = [Seen(str(c), similarity[None], labels[None]) for c, labels in enumerate(numberings)]
    found = [checkpoint.labels_BT[0].tolist() for checkpoint in matched(seen)]
    assert found == [parts.tolist(), parts.tolist(), moved.tolist(), moved.tolist()]


def test_images_are_numbered_on_their_own():
    labels = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    similarity = np.array([[1.0, 1.0, 5.0, 5.0], [5.0, 5.0, 1.0, 1.0]], np.float32)
    (found,) = matched([Seen("", similarity, labels)])
    assert found.labels_BT.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_numbers_have_no_gap_where_a_cluster_stayed_empty():
    labels = by_similarity(np.array([3, 3, 1, 1]), np.array([0.0, 0.0, 1.0, 1.0], np.float32))
    assert labels.tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_directions_that_differ_are_told_apart_whatever_the_seed(seed: int):
    draws = np.random.default_rng(7)
    parts = np.repeat(np.arange(4), 16)
    patches = 5 * np.eye(4, 24)[parts] * draws.uniform(0.5, 3, (64, 1)) + 0.1 * draws.normal(size=(64, 24)) + 10
    labels = cluster(patches, 4, seed)
    assert len(set(zip(parts.tolist(), labels.tolist(), strict=True))) == 4
    np.testing.assert_array_equal(labels, cluster(patches, 4, seed))


def test_equal_patches_are_one_cluster_without_a_warning(recwarn: pytest.WarningsRecorder):
    labels = cluster(np.ones((36, 8)), 4, seed=0)
    assert len(np.unique(labels)) == 1
    assert not recwarn.list


def lightness(colour: str) -> float:
    """CIE L* of an sRGB colour."""
    linear = [((v + 0.055) / 1.055) ** 2.4 if v > 0.04045 else v / 12.92 for v in style._rgb(colour)]
    y = np.dot(linear, [0.2126, 0.7152, 0.0722])
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_clusters_differ_in_grey():
    shades = sorted(lightness(colour) for colour in style.CLUSTERS)
    assert len(shades) == MAX_CLUSTERS
    assert np.diff(shades).min() > 15


def test_the_last_checkpoint_is_the_anchor(tmp_path: Path):
    """Changing what came before changes no colour of the last checkpoint."""
    draws = np.random.default_rng(3)
    last = Seen("last", draws.random((2, 36), np.float32), draws.integers(0, 4, (2, 36)))
    first = [Seen("first", last.similarity_BT, draws.integers(0, 4, (2, 36))) for _ in range(2)]
    with_one, with_other = (matched([checkpoint, last])[-1].labels_BT for checkpoint in first)
    np.testing.assert_array_equal(with_one, with_other)

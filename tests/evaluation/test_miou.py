"""Intersection over union against hand-computed values and a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dseq_jepa.data.ade20k import IGNORED
from dseq_jepa.evaluation.miou import best_constant, confusion, overlaps, per_class, scores
from tests.reference.miou import mean_iou


def test_a_case_by_hand():
    truth = np.array([[0, 0, 0, 1], [1, 1, IGNORED, 2]], np.uint8)
    predicted = np.array([[0, 0, 1, 1], [1, 0, 3, 3]], np.uint8)
    counts = confusion(truth, predicted, 5)
    # class 0: 2 of {3 true, 3 predicted} = 2/4; 1: 2 of {3, 3} = 2/4; 2: 0/1; 3: only predicted, 0/1; 4: absent
    assert scores(counts) == pytest.approx(
        {"miou": 100 * (0.5 + 0.5 + 0 + 0) / 4, "pixel_accuracy": 100 * 4 / 7, "mean_accuracy": 100 * (4 / 3) / 3}
    )
    assert per_class(counts, "abcde") == {"a": 50.0, "b": 50.0, "c": 0.0, "d": 0.0}
    assert [count.tolist() for count in overlaps(counts)] == [[2, 2, 0, 0, 0], [4, 4, 1, 1, 0]]
    assert best_constant(counts) == pytest.approx(100 * 3 / 7 / 3)


def test_a_perfect_prediction_of_some_classes_is_100():
    truth = np.array([[7, 7, IGNORED]], np.uint8)
    assert scores(confusion(truth, np.array([[7, 7, 149]], np.uint8), 150))["miou"] == 100.0


def test_one_matrix_of_the_set_is_not_the_mean_over_pictures():
    half = confusion(np.array([[0, 1]], np.uint8), np.array([[0, 0]], np.uint8), 2)
    whole = confusion(np.array([[0, 0]], np.uint8), np.array([[0, 0]], np.uint8), 2)
    assert scores(half + whole)["miou"] == pytest.approx(100 * (3 / 4 + 0) / 2)


maps = st.lists(
    st.tuples(
        st.lists(st.lists(st.sampled_from([0, 1, 2, 3, IGNORED]), min_size=3, max_size=3), min_size=2, max_size=2),
        st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


@given(maps)
def test_equals_the_pixel_by_pixel_reference(pairs: list[tuple[list[list[int]], list[list[int]]]]):
    if all(label == IGNORED for truth, _ in pairs for row in truth for label in row):
        return
    counts = sum(confusion(np.array(t, np.uint8), np.array(p, np.uint8), 5) for t, p in pairs)
    assert scores(counts) == pytest.approx(mean_iou(pairs, 5))

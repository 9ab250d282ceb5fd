import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dseq_jepa.evaluation.slices import balanced_slices, stratified_holdout

LABELS = st.lists(st.integers(0, 5), min_size=8, max_size=120).map(np.array)


@given(LABELS, st.integers(0, 3))
def test_slices_are_disjoint_and_of_the_size_asked_for(labels_N: np.ndarray, seed: int) -> None:
    sizes = [len(labels_N) // 4, len(labels_N) // 2]
    slices = balanced_slices(labels_N, sizes, seed)
    assert [len(part) for part in slices] == sizes
    assert len(set(np.concatenate(slices))) == sum(sizes)


@given(LABELS, st.integers(0, 3))
def test_a_slice_is_as_balanced_as_the_images_allow(labels_N: np.ndarray, seed: int) -> None:
    (part,) = balanced_slices(labels_N, [len(labels_N) // 2], seed)
    there, taken = np.bincount(labels_N, minlength=6), np.bincount(labels_N[part], minlength=6)
    for label in range(6):
        assert taken[label] == there[label] or taken[label] >= taken.max() - 1


def test_the_seed_chooses_the_images() -> None:
    labels_N = np.repeat(np.arange(10), 20)
    first, again, other = (balanced_slices(labels_N, [50], seed)[0] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@given(LABELS, st.floats(0.05, 0.6), st.integers(0, 3))
def test_holding_out_keeps_every_class(labels_N: np.ndarray, fraction: float, seed: int) -> None:
    kept, held = stratified_holdout(labels_N, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels_N)))
    assert set(labels_N[kept]) == set(labels_N)


def test_holding_out_a_tenth_takes_a_tenth_of_each_class() -> None:
    labels_N = np.repeat([0, 1, 2], [100, 40, 10])
    _, held = stratified_holdout(labels_N, 0.1, 0)
    assert np.bincount(labels_N[held]).tolist() == [10, 4, 1]

"""The same images in the same order on any number of ranks, from any step; every evaluated image exactly once."""

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.decode import BadImage
from dseq_jepa.data.loaders import (
    Batch,
    EpochOrder,
    LabelledBatch,
    evaluation_batches,
    evaluation_steps,
    pretraining_batches,
    probe_steps,
    probe_training_batches,
    steps_per_epoch,
)
from dseq_jepa.data.names import Names
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.data.transforms import TestView
from dseq_jepa.errors import UserError

HERE = LoadingSettings(workers=0)
WORKERS = LoadingSettings(workers=2)


def make_split(root: Path, count: int = 23) -> Split:
    """Image i is i everywhere in red and its column in green."""
    for i in range(count):
        image_HWC = np.zeros((10, 14, 3), np.uint8)
        image_HWC[..., 0], image_HWC[..., 1] = i, np.arange(14) * 18
        Image.fromarray(image_HWC).save(root / f"{i}.png")
    labels = np.arange(count, dtype=np.int64) % 5
    return Split(root, Names(f"{i}.png" for i in range(count)), labels, tuple("abcde"))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_split(tmp_path_factory.mktemp("pictures"))


def pretraining(
    split: Split, *, rank: int = 0, ranks: int = 1, start: int = 0, loading: LoadingSettings = HERE, seed: int = 0
) -> list[Batch]:
    return list(
        pretraining_batches(
            split,
            image_size=8,
            crop_scale=(0.3, 1.0),
            batch_size=8,
            rank=rank,
            ranks=ranks,
            seed=seed,
            start_step=start,
            total_steps=7,
            loading=loading,
        )
    )


def probe_training(
    split: Split, *, indices: Iterable[int] = range(23), batch_size: int = 8, rank: int = 0, ranks: int = 1,
    epoch: int = 0, augment: bool = True, loading: LoadingSettings = HERE,
) -> list[LabelledBatch]:  # fmt: skip
    return list(
        probe_training_batches(
            split,
            np.asarray(list(indices)),
            image_size=8,
            batch_size=batch_size,
            rank=rank,
            ranks=ranks,
            seed=0,
            epoch=epoch,
            loading=loading,
            augment=augment,
            test_resize=None if augment else 10,
        )
    )


def evaluation(
    split: Split, *, indices: Iterable[int] = range(23), batch_size: int = 8, rank: int = 0, ranks: int = 1,
    loading: LoadingSettings = HERE,
) -> list[LabelledBatch]:  # fmt: skip
    return list(
        evaluation_batches(
            split,
            np.asarray(list(indices), dtype=np.int64),
            view=TestView(8, 10),
            batch_size=batch_size,
            rank=rank,
            ranks=ranks,
            loading=loading,
        )
    )


def ids(batches: Iterable[Batch | LabelledBatch]) -> list[int]:
    return [image_id for batch in batches for image_id in batch.ids_B.tolist()]


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.ids_B, b.ids_B)
        assert torch.equal(a.images_BCHW, b.images_BCHW)
        assert a.skipped == b.skipped


def test_batches_are_uint8_and_hold_the_images_they_name(split: Split) -> None:
    batches = pretraining(split)
    assert [batch.step for batch in batches] == list(range(7))
    for batch in batches:
        assert batch.images_BCHW.shape == (8, 3, 8, 8)
        assert batch.images_BCHW.dtype == torch.uint8
        assert batch.ids_B.dtype == torch.int64
        assert torch.equal(batch.images_BCHW[:, 0].unique(dim=1)[:, 0, 0].long(), batch.ids_B)
    for labelled in (*probe_training(split), *evaluation(split)):
        assert torch.equal(labelled.labels_B, labelled.ids_B % 5)


def test_an_epoch_shows_no_image_twice_and_epochs_differ(split: Split) -> None:
    shown = ids(pretraining(split))
    assert steps_per_epoch(23, 8) == 2
    epochs = [shown[:16], shown[16:32], shown[32:48]]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert shown != ids(pretraining(split, seed=1))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_see_the_batches_of_one(split: Split, ranks: int) -> None:
    alone = pretraining(split)
    together = [pretraining(split, rank=rank, ranks=ranks) for rank in range(ranks)]
    for step, batch in enumerate(alone):
        parts = [together[rank][step] for rank in range(ranks)]
        assert torch.equal(torch.cat([part.ids_B for part in parts]), batch.ids_B)
        assert torch.equal(torch.cat([part.images_BCHW for part in parts]), batch.images_BCHW)


def test_a_run_resumes_at_any_step(split: Split) -> None:
    whole = pretraining(split)
    for start in range(8):
        assert_equal(pretraining(split, start=start), whole[start:])


def test_worker_processes_give_the_same_batches(split: Split) -> None:
    assert_equal(pretraining(split, loading=WORKERS, start=3), pretraining(split, start=3))
    assert ids(evaluation(split, loading=WORKERS)) == list(range(23))


@pytest.mark.parametrize("loading", [HERE, WORKERS])
def test_global_random_states_are_neither_read_nor_moved(split: Split, loading: LoadingSettings) -> None:
    def states() -> tuple[bytes, bytes, object]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()

    before = states()
    first = pretraining(split, start=5, loading=loading)
    assert states() == before
    torch.rand(1), np.random.random(), random.random()
    assert_equal(pretraining(split, start=5, loading=loading), first)


@given(
    count=st.integers(0, 23),
    batch_size=st.integers(1, 30),
    ranks=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_evaluation_counts_every_image_exactly_once(split: Split, count: int, batch_size: int, ranks: int) -> None:
    indices = np.random.default_rng(count).permutation(23)[:count]
    per_rank = [
        evaluation(split, indices=indices, batch_size=batch_size, rank=rank, ranks=ranks) for rank in range(ranks)
    ]
    assert sorted(image_id for batches in per_rank for image_id in ids(batches)) == sorted(indices.tolist())
    assert {len(batches) for batches in per_rank} == {evaluation_steps(count, batch_size)}
    assert all(len(batch.images_BCHW) == len(batch.ids_B) for batches in per_rank for batch in batches)


def test_evaluation_is_in_order_on_one_rank(split: Split) -> None:
    assert ids(evaluation(split, indices=[5, 3, 22, 0])) == [5, 3, 22, 0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_probe_training_shows_no_image_twice_and_only_those_asked_for(split: Split, ranks: int) -> None:
    wanted = set(range(3, 22))
    shown = [
        image_id
        for rank in range(ranks)
        for image_id in ids(probe_training(split, indices=wanted, rank=rank, ranks=ranks))
    ]
    assert len(shown) == len(set(shown)) == 16
    assert set(shown) <= wanted
    assert len(probe_training(split, indices=wanted, ranks=ranks)) == probe_steps(19, 8) == 2


def test_probe_training_ranks_see_the_batches_of_one(split: Split) -> None:
    halves = [probe_training(split, rank=rank, ranks=2, epoch=3) for rank in range(2)]
    for batch, *parts in zip(probe_training(split, epoch=3), *halves, strict=True):
        assert torch.equal(torch.cat([part.images_BCHW for part in parts]), batch.images_BCHW)
        assert torch.equal(torch.cat([part.labels_B for part in parts]), batch.labels_B)


def test_a_probe_set_smaller_than_a_batch_is_one_step(split: Split) -> None:
    batches = [probe_training(split, indices=range(7), batch_size=64, rank=rank, ranks=2) for rank in range(2)]
    assert [len(part) for part in batches] == [probe_steps(7, 64)] * 2 == [1, 1]
    assert len(set(ids(batches[0]) + ids(batches[1]))) == 6
    with pytest.raises(UserError, match="1 training images are fewer than the 2 ranks"):
        probe_training(split, indices=[4], batch_size=64, ranks=2)


def test_probe_training_augments_only_when_asked(split: Split) -> None:
    plain = {
        i: image for b in probe_training(split, augment=False) for i, image in zip(ids([b]), b.images_BCHW, strict=True)
    }
    view = {i: image for b in evaluation(split) for i, image in zip(ids([b]), b.images_BCHW, strict=True)}
    assert all(torch.equal(image, view[i]) for i, image in plain.items())
    crops, later = probe_training(split)[0], probe_training(split, epoch=1)[0]
    assert not torch.equal(crops.images_BCHW[0], view[int(crops.ids_B[0])])
    assert ids([crops]) != ids([later])


def test_a_batch_that_ranks_cannot_share_or_the_data_cannot_fill_is_refused(split: Split) -> None:
    with pytest.raises(UserError, match="batch_size 8 cannot be shared equally by 3 ranks"):
        pretraining(split, ranks=3)
    small = Split(split.root, Names(["0.png"]), split.labels[:1], split.class_names)
    with pytest.raises(UserError, match="1 training images do not fill one batch of 8"):
        pretraining(small)


@pytest.fixture
def damaged(tmp_path: Path) -> Split:
    """Images 4, 5 (truncated, empty) and 11 (missing) cannot be read."""
    split = make_split(tmp_path)
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    (tmp_path / "5.png").write_bytes(b"")
    (tmp_path / "11.png").unlink()
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_sentence_that_names_it_also_from_a_worker(damaged: Split, workers: int) -> None:
    loading = LoadingSettings(workers=workers)
    with pytest.raises(BadImage) as caught:
        evaluation(damaged, loading=loading)
    message = str(caught.value)
    assert message.startswith(f"{damaged.root}/4.png: truncated or corrupt")
    assert message.endswith("(40 bytes found), image 5 of 23. Restore the file or set loading.on_bad_image: skip.")
    assert "\n" not in message
    with pytest.raises(BadImage, match=r"(4|5|11)\.png: .*, image (5|6|12) of 23\. Restore"):
        pretraining(damaged, loading=loading)


def test_a_missing_file_says_so(damaged: Split) -> None:
    with pytest.raises(BadImage, match=r"11\.png: cannot be read \(no such file or directory\), image 12 of 23"):
        evaluation(damaged, indices=[11])


def test_skipping_leaves_out_of_an_evaluation_and_counts(damaged: Split) -> None:
    loading = LoadingSettings(workers=0, on_bad_image="skip")
    batches = [batch for rank in range(3) for batch in evaluation(damaged, rank=rank, ranks=3, loading=loading)]
    assert sorted(ids(batches)) == sorted(set(range(23)) - {4, 5, 11})
    assert sum(batch.skipped for batch in batches) == 3
    (empty,) = evaluation(damaged, indices=[4, 5], loading=loading)
    assert (empty.images_BCHW.shape, empty.labels_B.tolist(), empty.skipped) == ((0, 3, 8, 8), [], 2)


def test_skipping_replaces_in_training_by_the_next_of_the_epochs_order_on_any_number_of_ranks(damaged: Split) -> None:
    loading = LoadingSettings(workers=0, on_bad_image="skip")
    bad = {4, 5, 11}
    batches = pretraining(damaged, loading=loading)
    for batch in batches:
        epoch, within = divmod(batch.step, 2)
        order = EpochOrder(damaged.ids, 0)(epoch).tolist()
        wanted, skipped = [], 0
        for position in range(8 * within, 8 * within + 8):
            while order[position % 23] in bad:
                position, skipped = position + 1, skipped + 1
            wanted.append(order[position % 23])
        assert (batch.ids_B.tolist(), batch.skipped) == (wanted, skipped)
    assert sum(batch.skipped for batch in batches) > 0
    halves = [pretraining(damaged, rank=rank, ranks=2, loading=loading) for rank in range(2)]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert torch.equal(torch.cat([first.images_BCHW, second.images_BCHW]), batch.images_BCHW)
        assert first.skipped + second.skipped == batch.skipped
    assert all(not bad & set(ids([batch])) for batch in probe_training(damaged, loading=loading))


def test_a_training_set_without_one_readable_image_ends(tmp_path: Path) -> None:
    split = make_split(tmp_path, 8)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(BadImage, match="not one of the training images can be decoded"):
        pretraining(split, loading=LoadingSettings(workers=0, on_bad_image="skip"))


@given(count=st.integers(1, 200), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_an_epochs_order_is_a_permutation_of_its_indices(count: int, seed: int, epoch: int) -> None:
    indices = np.arange(count) * 3 + 1
    order = EpochOrder(indices, seed)
    first = order(epoch)
    assert sorted(first.tolist()) == indices.tolist()
    order(epoch + 1)
    assert np.array_equal(order(epoch), first)

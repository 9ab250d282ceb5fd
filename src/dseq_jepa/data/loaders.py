"""Batches of uint8 pictures, the same on any number of ranks, from any step on.

    from dseq_jepa.data.loaders import pretraining_batches
    for batch in pretraining_batches(split, image_size=224, crop_scale=(0.3, 1.0), batch_size=2048, rank=0, ranks=8,
                                     seed=0, start_step=0, total_steps=375_000, loading=loading):
        images_BCHW = normalise(batch.images_BCHW.to(device, non_blocking=True))

An epoch is a permutation that depends on (seed, epoch) only; a global batch is its next `batch_size` images; rank r
takes the r-th contiguous part. So there is nothing to save or restore: a run resumes by naming the step. Pictures are
decoded by `loading.workers` processes per rank (one batch each at a time), or in this process with 0. No global random
state is read or moved.

Shapes: B images of this rank, C channels, H W pixels.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.decode import BadImage, read_picture
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.data.transforms import TestView, TrainView, View
from dseq_jepa.data.workers import Failure, load
from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError

PROBE_CROP_SCALE = (0.08, 1.0)
"""RandomResizedCrop of probe training (docs/protocols.md 3)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """This rank's part of a global training batch."""

    step: int
    ids_B: Tensor
    """int64 positions in the split."""
    images_BCHW: Tensor
    """uint8; pinned when this process uses a GPU."""
    skipped: int
    """Unreadable files met here, each replaced."""


@dataclass(frozen=True, eq=False)
class LabelledBatch:
    """This rank's part of a global batch with labels."""

    ids_B: Tensor
    """int64 positions in the split."""
    images_BCHW: Tensor
    """uint8; pinned when this process uses a GPU."""
    labels_B: Tensor
    """int64."""
    skipped: int
    """Unreadable files met here: replaced in training, left out in evaluation."""


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Full global batches in an epoch; the rest of the permutation is dropped."""
    return images // batch_size


def probe_steps(images: int, batch_size: int) -> int:
    """Steps of an epoch of probe training: as `steps_per_epoch`, but a set smaller than a batch is one step."""
    return max(1, images // batch_size)


def evaluation_steps(images: int, batch_size: int) -> int:
    """Batches that every rank gets from `evaluation_batches`."""
    return -(-images // batch_size)


def pretraining_batches(
    split: Split,
    *,
    image_size: int,
    crop_scale: tuple[float, float],
    batch_size: int,
    rank: int,
    ranks: int,
    seed: int,
    start_step: int,
    total_steps: int,
    loading: LoadingSettings,
) -> Iterator[Batch]:
    """`training_batches` of random crops without flips.

    Args:
        split: pictures; labels are not looked at.
        image_size: side of the crops in pixels.
        crop_scale: area of the crop as a fraction of the picture.
        batch_size: images per step over all ranks.
        rank: of this process.
        ranks: number of processes.
        seed: of the run: order and crops.
        start_step: first global step.
        total_steps: of the whole run.
        loading: workers, and what to do with an unreadable file.

    Raises:
        UserError: as `training_batches`.
        BadImage: likewise.

    """
    return training_batches(
        split,
        view=TrainView(image_size, crop_scale, False, seed),
        batch_size=batch_size,
        rank=rank,
        ranks=ranks,
        seed=seed,
        start_step=start_step,
        total_steps=total_steps,
        loading=loading,
    )


def training_batches(
    split: Split,
    *,
    view: View,
    batch_size: int,
    rank: int,
    ranks: int,
    seed: int,
    start_step: int,
    total_steps: int,
    loading: LoadingSettings,
) -> Iterator[Batch]:
    """Training batches of steps start_step..total_steps-1.

    Args:
        split: pictures; labels are not looked at.
        view: of every picture.
        batch_size: images per step over all ranks.
        rank: of this process.
        ranks: number of processes.
        seed: of the order.
        start_step: first global step.
        total_steps: of the whole run.
        loading: workers, and what to do with an unreadable file. A skipped one is replaced by the next readable image
            in the epoch's order.

    Raises:
        UserError: the ranks do not divide the batch, or the batch is larger than the data set.
        BadImage: an unreadable file with on_bad_image: error, or not one readable file.

    """
    share = _share(batch_size, ranks)
    steps = steps_per_epoch(len(split), batch_size)
    if not steps:
        raise UserError(
            f"{split.root}: {len(split):,} training images do not fill one batch of {batch_size:,}; "
            "set a smaller batch_size"
        )
    order = EpochOrder(split.ids, seed)

    def requests() -> Iterator[_Request]:
        for step in range(start_step, total_steps):
            epoch, within = divmod(step, steps)
            start = within * batch_size + rank * share
            yield _Request(epoch, np.arange(start, start + share), order(epoch)[start : start + share])

    reader = _Reader(split, view, loading.on_bad_image == "skip", order)
    return (
        Batch(step, loaded.ids_B, loaded.images_BCHW, loaded.skipped)
        for step, loaded in zip(itertools.count(start_step), load(reader, requests, loading.workers), strict=False)
    )


def probe_training_batches(
    split: Split,
    indices: NDArray[np.int64],
    *,
    image_size: int,
    batch_size: int,
    rank: int,
    ranks: int,
    seed: int,
    epoch: int,
    loading: LoadingSettings,
    augment: bool,
    test_resize: int | None,
) -> Iterator[LabelledBatch]:
    """One epoch of labelled training batches, `probe_steps(len(indices), batch_size)` of them.

    Args:
        split: pictures and labels.
        indices: the image ids to train on.
        image_size: side of the views in pixels.
        batch_size: images per step over all ranks; the last incomplete batch of an epoch is dropped, unless it is the
            only one (then it is cut to a multiple of the ranks).
        rank: of this process.
        ranks: number of processes.
        seed: of order, crops and flips.
        epoch: which epoch.
        loading: as for pre-training.
        augment: RandomResizedCrop of area 0.08-1 and flip; false: the test view.
        test_resize: of the test view (short side, or null for the squeezed whole); used without augmentation only.

    Raises:
        UserError: the ranks do not divide the batch, or there are fewer images than ranks.
        BadImage: an unreadable file with on_bad_image: error, or not one readable file.

    """
    size = batch_size if len(indices) >= batch_size else len(indices) // ranks * ranks
    share = _share(size, ranks)
    if not share:
        raise UserError(f"{split.root}: {len(indices):,} training images are fewer than the {ranks} ranks")
    order = EpochOrder(indices, seed)
    view: View = TestView(image_size, test_resize)
    if augment:
        view = TrainView(image_size, PROBE_CROP_SCALE, True, seed)

    def requests() -> Iterator[_Request]:
        for start in range(rank * share, len(indices) // size * size, size):
            yield _Request(epoch, np.arange(start, start + share), order(epoch)[start : start + share])

    reader = _Reader(split, view, loading.on_bad_image == "skip", order)
    return map(_Labeller(split), load(reader, requests, loading.workers))


def evaluation_batches(
    split: Split,
    indices: NDArray[np.int64],
    *,
    view: View,
    batch_size: int,
    rank: int,
    ranks: int,
    loading: LoadingSettings,
) -> Iterator[LabelledBatch]:
    """Every image of `indices` exactly once over all ranks, in order.

    Every rank gets the same number of batches, `evaluation_steps(len(indices), batch_size)`; the last may be smaller on
    some ranks than on others, or empty. Skipped images are left out, so a batch can also be empty for that reason.

    Args:
        split: pictures and labels.
        indices: the image ids.
        view: of every picture.
        batch_size: images per batch over all ranks.
        rank: of this process.
        ranks: number of processes.
        loading: workers, and what to do with an unreadable file.

    Raises:
        BadImage: an unreadable file with on_bad_image: error.

    """

    def requests() -> Iterator[_Request]:
        for start in range(0, len(indices), batch_size):
            mine_B = np.array_split(np.arange(start, min(start + batch_size, len(indices))), ranks)[rank]
            yield _Request(0, mine_B, indices[mine_B])

    reader = _Reader(split, view, loading.on_bad_image == "skip", None)
    return map(_Labeller(split), load(reader, requests, loading.workers))


class EpochOrder:
    """The order of an epoch's images: a permutation that depends on (seed, epoch) only."""

    def __init__(self, indices: NDArray[np.int64], seed: int) -> None:
        self.indices, self.seed = indices, seed
        self._latest: tuple[int, NDArray[np.int64]] | None = None

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """(N,) image ids in the order of that epoch; the latest epoch's is kept."""
        if self._latest is None or self._latest[0] != epoch:
            keys_N = uniforms(self.seed, "order", epoch, self.indices, 1)[:, 0]
            self._latest = (epoch, self.indices[np.argsort(keys_N, kind="stable")])
        return self._latest[1]


@dataclass(frozen=True, eq=False)
class _Request:
    """What one worker decodes at a time."""

    epoch: int
    positions_B: NDArray[np.int64]
    """In the epoch's order."""
    ids_B: NDArray[np.int64]
    """The images at these positions."""


@dataclass(frozen=True, eq=False)
class _Loaded:
    ids_B: Tensor
    images_BCHW: Tensor
    skipped: int

    def pin_memory(self) -> "_Loaded":
        """Called by the DataLoader's pinning thread."""
        return _Loaded(self.ids_B.pin_memory(), self.images_BCHW.pin_memory(), self.skipped)


@dataclass(frozen=True, eq=False)
class _Reader(Dataset["_Loaded | Failure"]):
    """Reads and decodes the images of a request; lives in the workers."""

    split: Split
    view: View
    skip: bool
    order: EpochOrder | None
    """Where the replacement of an unreadable image comes from; None: it is left out."""

    def __getitem__(self, request: _Request) -> "_Loaded | Failure":
        try:
            return self._read(request)
        except BadImage as error:
            return Failure(str(error))

    def _read(self, request: _Request) -> _Loaded:
        ids, views, skipped = [], [], 0
        for position, image_id in zip(request.positions_B.tolist(), request.ids_B.tolist(), strict=True):
            for candidate in itertools.chain([image_id], self._replacements(request.epoch, position)):
                try:
                    views.append(self._view(candidate, request.epoch))
                    ids.append(candidate)
                    break
                except BadImage as error:
                    if not self.skip:
                        raise BadImage(
                            f"{error}, image {candidate + 1:,} of {len(self.split):,}. "
                            "Restore the file or set loading.on_bad_image: skip."
                        ) from None
                    skipped += 1
            else:
                if self.order is not None:
                    raise BadImage(f"{self.split.root}: not one of the training images can be decoded.")
        size = self.view.image_size
        images_BCHW = torch.stack(views) if views else torch.empty((0, 3, size, size), dtype=torch.uint8)
        return _Loaded(torch.tensor(ids, dtype=torch.int64), images_BCHW, skipped)

    def _replacements(self, epoch: int, position: int) -> Iterator[int]:
        """The images that follow in the epoch's order, round to the one before: the same on any number of ranks."""
        if self.order is not None:
            ids_N = self.order(epoch)
            for ahead in range(1, len(ids_N)):
                yield int(ids_N[(position + ahead) % len(ids_N)])

    def _view(self, image_id: int, epoch: int) -> Tensor:
        return self.view(read_picture(self.split.path(image_id)), image_id, epoch)


@dataclass(frozen=True, eq=False)
class _Labeller:
    split: Split

    def __call__(self, loaded: _Loaded) -> LabelledBatch:
        labels_B = torch.from_numpy(self.split.labels[loaded.ids_B.numpy()])
        return LabelledBatch(loaded.ids_B, loaded.images_BCHW, labels_B, loaded.skipped)


def _share(batch_size: int, ranks: int) -> int:
    if batch_size % ranks:
        raise UserError(f"batch_size {batch_size} cannot be shared equally by {ranks} ranks; change either")
    return batch_size // ranks

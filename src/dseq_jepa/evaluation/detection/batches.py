"""Batches of views for detection, the same on any number of ranks, from any step on.

    for batch in training_batches(part, view, start_step=0, ...): losses = model(batch.images_BCHW, batch.sizes_B, ...)

As in pre-training, an epoch's order depends on (seed, epoch) only, so a run resumes by naming the step. B images of
this rank, S side of the square that they are padded to.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dseq_jepa.data.coco import CocoPart
from dseq_jepa.data.decode import BadImage, read_picture
from dseq_jepa.data.loaders import Batch, EpochOrder
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.data.workers import Failure, load
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.detection.views import JitteredView, Sample, Targets, place_image, whole


@dataclass(frozen=True, eq=False)
class TrainingBatch(Batch):
    """This rank's part of a global batch; images are padded with zeros at the right and at the bottom."""

    sizes_B: list[tuple[int, int]]
    """Height and width of the views without padding."""
    targets: list[Targets]
    """Masks are padded as the images are."""


@dataclass(frozen=True, eq=False)
class TestImage:
    """One picture to be searched for objects."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    index: int
    """Position in the split."""
    image_CHW: Tensor | None
    """uint8, its long side as long as the square's; None where the file cannot be read and that is allowed."""
    height: int
    """Of the picture itself."""
    width: int


def epoch_steps(part: CocoPart, batch_size: int) -> int:
    """Full global batches in an epoch over the pictures that have objects.

    Raises:
        UserError: not even one.

    """
    steps = len(part.trainable) // batch_size
    if not steps:
        raise UserError(
            f"{part.annotations}: {len(part.trainable)} pictures with objects are fewer than a batch of {batch_size}; "
            "lower the evaluation's batch_size"
        )
    return steps


def read_matching(part: CocoPart, index: int) -> NDArray[np.uint8]:
    """Pixels of a picture, (H, W, 3).

    Raises:
        BadImage: it cannot be read, or its size is not what the annotations say.

    """
    image = part.images[index]
    path = part.root / image.file
    pixels_HWC = read_picture(path)
    height, width = pixels_HWC.shape[:2]
    if (height, width) != (image.height, image.width):
        raise BadImage(
            f"{path}: is {width} x {height} pixels, {part.annotations.name} says {image.width} x {image.height} of "
            f"image {image.id}"
        )
    return pixels_HWC


def training_batches(
    part: CocoPart,
    view: JitteredView,
    *,
    batch_size: int,
    rank: int,
    ranks: int,
    start_step: int,
    total_steps: int,
    loading: LoadingSettings,
) -> Iterator[TrainingBatch]:
    """Training batches of steps start_step .. total_steps-1.

    Args:
        part: the training split; pictures without objects, or with crowds only, are left out.
        view: of every picture.
        batch_size: images per step over all ranks, which must divide it.
        rank: of this process.
        ranks: number of processes.
        start_step: first global step.
        total_steps: of the whole run.
        loading: workers, and what to do with an unreadable file; a skipped one is replaced by the next in the order.

    Raises:
        BadImage: an unreadable file with on_bad_image: error, or not one readable file.

    """
    order, steps, share = EpochOrder(part.trainable, view.seed), epoch_steps(part, batch_size), batch_size // ranks

    def requests() -> Iterator[tuple[int, int, int]]:
        for step in range(start_step, total_steps):
            epoch, within = divmod(step, steps)
            yield step, epoch, within * batch_size + rank * share

    return load(_TrainingReader(part, view, order, share, loading.on_bad_image == "skip"), requests, loading.workers)


def test_images(
    part: CocoPart, image_size: int, *, rank: int, ranks: int, loading: LoadingSettings
) -> Iterator[TestImage]:
    """This rank's pictures of a split: rank, rank + ranks, ...; every picture is one rank's.

    Raises:
        BadImage: an unreadable file with on_bad_image: error.

    """
    reader = _TestReader(part, image_size, loading.on_bad_image == "skip")
    return load(reader, lambda: iter(range(rank, len(part.images), ranks)), loading.workers)


test_images.__test__ = False  # type: ignore[attr-defined]  # not a test either


@dataclass(frozen=True, eq=False)
class _TrainingReader(Dataset["TrainingBatch | Failure"]):
    part: CocoPart
    view: JitteredView
    order: EpochOrder
    share: int
    skip: bool

    def __getitem__(self, request: tuple[int, int, int]) -> "TrainingBatch | Failure":
        step, epoch, start = request
        ids, samples, skipped = [], [], 0
        for position in range(start, start + self.share):
            try:
                index, sample, bad = self._first_readable(epoch, position)
            except BadImage as error:
                return Failure(str(error))
            ids.append(index)
            samples.append(sample)
            skipped += bad
        return padded(step, ids, samples, self.view.image_size, skipped)

    def _first_readable(self, epoch: int, position: int) -> tuple[int, Sample, int]:
        """The picture at a position of the epoch's order, or the next one that can be read; how many could not."""
        ids_N = self.order(epoch)
        for bad in range(len(ids_N)):
            index = int(ids_N[(position + bad) % len(ids_N)])
            try:
                pixels_HWC = read_matching(self.part, index)
            except BadImage as error:
                if not self.skip:
                    raise BadImage(f"{error}. Restore the file or set loading.on_bad_image: skip.") from None
                continue
            return index, self.view(pixels_HWC, self.part.objects[index], self.part.images[index].id, epoch), bad
        raise BadImage(f"{self.part.annotations}: not one of the training pictures can be read.")


@dataclass(frozen=True, eq=False)
class _TestReader(Dataset["TestImage | Failure"]):
    part: CocoPart
    image_size: int
    skip: bool

    def __getitem__(self, index: int) -> "TestImage | Failure":
        image = self.part.images[index]
        try:
            pixels_HWC = read_matching(self.part, index)
        except BadImage as error:
            if not self.skip:
                return Failure(f"{error}. Restore the file or set loading.on_bad_image: skip.")
            return TestImage(index, None, image.height, image.width)
        view_CHW = place_image(pixels_HWC, whole(image.height, image.width, self.image_size))
        return TestImage(index, view_CHW, image.height, image.width)


def padded(step: int, ids: list[int], samples: list[Sample], size: int, skipped: int = 0) -> TrainingBatch:
    """Views in one square batch."""
    images_BCSS = torch.zeros(len(samples), 3, size, size, dtype=torch.uint8)
    sizes, targets = [], []
    for image_CSS, sample in zip(images_BCSS, samples, strict=True):
        height, width = sample.image_CHW.shape[-2:]
        image_CSS[:, :height, :width] = sample.image_CHW
        masks_NSS = torch.zeros(len(sample.targets.labels_N), size, size, dtype=torch.uint8)
        masks_NSS[:, :height, :width] = sample.targets.masks_NHW
        targets.append(Targets(sample.targets.boxes_N4, sample.targets.labels_N, masks_NSS))
        sizes.append((height, width))
    return TrainingBatch(step, torch.tensor(ids), images_BCSS, skipped, sizes, targets)

"""What figures read: kept checkpoints as a method to look at, and pictures of the data set that was pre-trained on.

with reading(job) as device:
    kept = open_kept(job, job.models[0], 75, results, device)
    pictures = some_pictures(job, count=4)

B images, C channels, H W pixels.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dseq_jepa.data.catalog import Split, load_split
from dseq_jepa.data.loaders import LabelledBatch, evaluation_batches
from dseq_jepa.data.transforms import TestView, normalise
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.slices import balanced_slices
from dseq_jepa.figures.job import FigureJob
from dseq_jepa.jobs import Model, model_directory
from dseq_jepa.methods.jepa import Jepa, Moment
from dseq_jepa.methods.settings import MethodSettings
from dseq_jepa.models.weights import refuse_mismatches, refuse_other_architecture, unreadable
from dseq_jepa.training import distributed

Part = Literal["train", "val"]

BATCH = 64
"""Pictures per forward pass."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A kept checkpoint, to look at."""

    percent: int
    """Of the epochs."""
    epoch: float
    method: Jepa
    """Frozen, without a contrastive term and a curriculum: every image that has a region uses its regions."""
    seed: int

    @property
    def moment(self) -> Moment:
        """Seeds what is drawn at random: block positions, random orders."""
        return Moment(self.seed, step=0, progress=1.0)

    @property
    def label(self) -> str:
        """For titles."""
        return f"epoch {self.epoch:g}"


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures of a split, as the network sees them."""

    ids_B: NDArray[np.int64]
    names: list[str]
    """Files, relative to the data set's folder."""
    images_BCHW: Tensor
    """uint8."""

    def drawable(self) -> NDArray[np.uint8]:
        """(B, H, W, C), as matplotlib takes pictures."""
        images_BHWC: NDArray[np.uint8] = self.images_BCHW.permute(0, 2, 3, 1).numpy()
        return images_BHWC


@contextmanager
def reading(job: FigureJob) -> Iterator[torch.device]:
    """The configured device and threads, without gradients."""
    world = distributed.start(job.compute)
    try:
        with torch.no_grad():
            yield world.device
    finally:
        distributed.stop()


def open_kept(job: FigureJob, model: Model, percent: int, results: Path, device: torch.device) -> Kept:
    """The weights that a pre-training kept at a percentage of its epochs.

    Args:
        job: says the method's and the architecture's settings.
        model: which run.
        percent: which of its checkpoints.
        results: folder of the experiment.
        device: where to put it.

    Raises:
        UserError: naming the file that is missing, damaged, or of another architecture with what does not fit.

    """
    path = model_directory(results.parent, "pretrain", model) / f"checkpoint-{percent:03d}.safetensors"
    if not path.exists():
        raise UserError(
            f"{path}: is missing; {job.name} shows what the pre-training of {model.method} on {model.architecture} "
            f"keeps at {percent}% of its epochs. Run the workflow to make it."
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            about = json.loads((file.metadata() or {}).get("run", "{}"))
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from None
    refuse_other_architecture(str(path), about, job.architecture)
    method = Jepa(_without_curriculum(job.methods[model.method]), job.architecture, gather=lambda rows: rows)
    refuse_mismatches(str(path), _shapes(tensors), _shapes(method.state_dict()))
    method.load_state_dict(tensors, strict=True)
    method.contrastive = None  # no figure shows this term, and its statistics do not exist for a single row
    return Kept(percent, float(about["epoch"]), method.to(device).eval().requires_grad_(False), model.seed)


def _without_curriculum(settings: MethodSettings) -> MethodSettings:
    return settings.model_copy(update={"curriculum": False})


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def chosen(job: FigureJob, part: Part, count: int) -> tuple[Split, NDArray[np.int64]]:
    """A seeded choice of pictures, as many of each class as possible.

    Raises:
        UserError: the split has fewer.

    """
    split = load_split(job.data, part)
    if count > len(split):
        raise UserError(f"figures.{job.name}.images: {count:,} of the {len(split):,} {part} images of {job.data.root}")
    return split, balanced_slices(split.labels, [count], job.seeds[0])[0]


def batches(job: FigureJob, split: Split, ids_N: NDArray[np.int64]) -> Iterator[LabelledBatch]:
    """The pictures that can be read, in order: the short side is the input size, then the centre.

    Raises:
        UserError: none can be read.

    """
    size = job.architecture.image_size
    read = 0
    for batch in evaluation_batches(
        split, ids_N, view=TestView(size, size), batch_size=BATCH, rank=0, ranks=1, loading=job.loading
    ):
        if len(batch.ids_B):
            read += len(batch.ids_B)
            yield batch
    if not read:
        raise UserError(f"{job.data.root}: none of the {len(ids_N):,} pictures of figures.{job.name} can be read.")


def some_pictures(job: FigureJob, part: Part, count: int) -> Pictures:
    """A few pictures to draw; an unreadable one is left out where the configuration skips those."""
    split, ids_N = chosen(job, part, count)
    found = list(batches(job, split, ids_N))
    ids_B = torch.cat([batch.ids_B for batch in found]).numpy()
    names = [split.paths[image_id] for image_id in ids_B.tolist()]
    return Pictures(ids_B, names, torch.cat([batch.images_BCHW for batch in found]))


def as_input(images_BCHW: Tensor, device: torch.device) -> Tensor:
    """Normalised, on the device."""
    return normalise(images_BCHW.to(device))


def part_in_words(split: Part) -> str:
    """A split in words."""
    return {"train": "training images", "val": "held-out images"}[split]

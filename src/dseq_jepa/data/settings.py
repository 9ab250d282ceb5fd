"""Where the data sets lie, in which official layout, and how the miniature ones are generated."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from dseq_jepa.closed import Closed

Layout = Literal["imagenet", "inat21", "cub", "cars", "clevr", "coco", "ade20k"]


class DatasetSettings(Closed):
    """One data set in its official on-disk layout."""

    layout: Layout
    """How the official archive arranges pictures and labels."""
    root: Path
    """Folder of the data set as its archive unpacks it."""
    train_images: int | None = Field(None, ge=1)
    """Expected number of training images; null: whatever is there."""
    val_images: int | None = Field(None, ge=1)
    """Expected number of validation (or test) images; null: whatever is there."""
    classes: int | None = Field(None, ge=2)
    """Number of classes; null: as many as the labels name."""
    fingerprint: str | None = None
    """Expected fingerprint, from the manifest of `dseq-jepa data check`; null: whatever is there. The workflow gives
    every job the one that it found, so that a job whose data changed starts over instead of going on."""


class MiniatureSettings(Closed):
    """Generated data sets of the demo."""

    seed: int = Field(0, ge=0)
    """The same seed gives the same bytes."""
    image_size: int = Field(ge=16)
    """Side of the generated pictures in pixels, about."""
    train_images: dict[Layout, int]
    """Pictures to generate per layout."""
    val_images: dict[Layout, int]
    """Validation (or test) pictures to generate per layout."""
    classes: int = Field(ge=2)
    """Classes of the ImageNet layout."""


class StageSettings(Closed):
    """Copies of the data sets on a disk of the node that reads them (docs/cluster.md)."""

    folder: str
    """Folder on a local disk, such as /scratch/$USER/dseq-jepa; $NAMES are the job's environment variables."""
    keep_days: float = Field(14.0, ge=0.0)
    """A copy that no job has used for so long is removed by the next job on its node."""


class LoadingSettings(Closed):
    """Reading pictures."""

    workers: int = Field(ge=0)
    """Decoding processes per rank; 0: in the training process."""
    on_bad_image: Literal["error", "skip"] = "error"
    """skip: an unreadable file is left out and counted in the metrics."""
    stage: StageSettings | None = None
    """Read from a copy on the node's own disk, made once per node; null: from the root itself."""

"""What a probe is trained on, epoch by epoch: features kept in memory, or encoded anew from augmented pictures.

    for features, labels_B in epochs(3): heads.step(features, labels_B, ...)

Both are pure functions of (seed, epoch), so training resumes at any epoch. B images of this rank, N training images.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.loaders import EpochOrder, probe_steps, probe_training_batches
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.evaluation.features import Collected, FrozenEncoder
from dseq_jepa.evaluation.heads import FeaturesOf, Reduce, alone
from dseq_jepa.evaluation.settings import ProbeSettings
from dseq_jepa.training.distributed import World, all_sum


class Epochs(Protocol):
    """Training batches of a probe."""

    steps: int
    """Per epoch, the same for every epoch."""
    skipped: int
    """Unreadable training pictures that this rank met in the first epoch."""
    reduce: Reduce
    """Sum over the ranks that share a batch."""

    def __call__(self, epoch: int) -> Iterator[tuple[FeaturesOf, Tensor]]:
        """This rank's part of every batch: features and labels_B on the device."""


class KeptFeatures:
    """Features of the test view, computed once.

    Every rank has all of them and trains the same heads on whole batches: a head's step is cheaper than talking.
    """

    def __init__(self, collected: Collected, labels_N: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.features = collected.features
        self.skipped = 0  # counted where the features were computed
        self.reduce: Reduce = alone
        device = next(iter(self.features.values())).device
        self.labels_N = torch.from_numpy(labels_N).to(device)
        self.order = EpochOrder(np.arange(len(labels_N)), seed)
        self.batch_size = min(batch_size, len(labels_N))
        self.steps = probe_steps(len(labels_N), batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[FeaturesOf, Tensor]]:
        """Whole batches in the epoch's order; the last incomplete one is dropped."""
        rows_N = torch.from_numpy(self.order(epoch)).to(self.labels_N.device)
        for step in range(self.steps):
            rows_B = rows_N[step * self.batch_size : (step + 1) * self.batch_size]
            yield {kind: table[rows_B] for kind, table in self.features.items()}, self.labels_N[rows_B]


class AugmentedPictures:
    """Random crops and flips, each encoded once for all heads."""

    def __init__(
        self,
        encoder: FrozenEncoder,
        split: Split,
        ids: NDArray[np.int64],
        settings: ProbeSettings,
        *,
        seed: int,
        world: World,
        loading: LoadingSettings,
    ) -> None:
        self.encoder, self.split, self.ids, self.settings = encoder, split, ids, settings
        self.seed, self.world, self.loading = seed, world, loading
        self.reduce: Reduce = all_sum if world.size > 1 else alone
        self.steps = probe_steps(len(ids), settings.batch_size)
        self.skipped = 0

    def __call__(self, epoch: int) -> Iterator[tuple[FeaturesOf, Tensor]]:
        """This rank's part of every batch."""
        for batch in probe_training_batches(
            self.split,
            self.ids,
            image_size=self.encoder.image_size,
            batch_size=self.settings.batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            seed=self.seed,
            epoch=epoch,
            loading=self.loading,
            augment=True,
            test_resize=None,
        ):
            self.skipped += batch.skipped if epoch == 0 else 0
            labels_B = batch.labels_B.to(self.world.device, non_blocking=True)
            yield self.encoder(batch.images_BCHW, self.settings.features), labels_B

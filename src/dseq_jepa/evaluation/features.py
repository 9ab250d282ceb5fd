"""Features of frozen encoders: pictures in, pooled tokens out, each picture encoded once.

    encoder = FrozenEncoder.load(Path("out/encoder.safetensors"), device)
    features = encoder(images_BCHW, ["last4", "cls"])

`collect` encodes a list of pictures on all ranks and gives every rank all rows. B images of a batch, N of the list,
D width, F feature width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dseq_jepa.data.catalog import Split
from dseq_jepa.data.loaders import LabelledBatch, evaluation_batches, evaluation_steps
from dseq_jepa.data.settings import LoadingSettings
from dseq_jepa.data.transforms import View
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.settings import BLOCKS_OF_LAST4, Features
from dseq_jepa.models.vit import Tokens, VisionTransformer
from dseq_jepa.models.weights import IMAGENET_MEAN, IMAGENET_STD, load_encoder, read_card
from dseq_jepa.progress import Progress
from dseq_jepa.training.distributed import World, all_sum

FORWARD_IMAGES = {"cpu": 32, "cuda": 256}
"""Images that a rank encodes at once: on a CPU few enough for its caches."""


class FrozenEncoder:
    """An encoder that is only read from, with the normalisation that it expects."""

    def __init__(
        self,
        model: VisionTransformer,
        device: torch.device,
        *,
        name: str,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.name = name
        self.device = device
        self.image_size = model.settings.image_size
        self.mean_C11, self.std_C11 = (
            torch.tensor([255 * value for value in values], device=device)[:, None, None] for values in (mean, std)
        )

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """From an exported encoder file and its card."""
        card = read_card(path)
        return cls(load_encoder(path), device, name=str(path), mean=card.mean, std=card.std)

    def width(self, kind: Features) -> int:
        """F of a kind of features.

        Raises:
            UserError: last4 of an encoder with fewer blocks.

        """
        settings = self.model.settings
        if kind != "last4":
            return settings.width
        if settings.depth < BLOCKS_OF_LAST4:
            raise UserError(
                f"{self.name}: has {settings.depth} blocks; features last4 need {BLOCKS_OF_LAST4}, use last."
            )
        return BLOCKS_OF_LAST4 * settings.width

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, kinds: Sequence[Features]) -> dict[Features, Tensor]:
        """(B, F) float32 of every kind, from one pass over uint8 images.

        last4: patch means of the last four blocks, each after the final LayerNorm, first block first. On a GPU the
        products run in TF32: the encoder is frozen, and its own training was coarser still.
        """
        depth = self.model.settings.depth
        first = depth - BLOCKS_OF_LAST4 + 1 if "last4" in kinds else depth
        pixels_BCHW = images_BCHW.to(self.device, non_blocking=True).float().sub_(self.mean_C11).div_(self.std_C11)
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            blocks = self.model.read(pixels_BCHW, range(first, depth + 1))
        finally:
            torch.set_float32_matmul_precision(precision)
        means = [tokens.patches_BTD.mean(dim=1) for tokens in blocks]
        return {kind: _pooled(kind, blocks[-1], means) for kind in kinds}


def _pooled(kind: Features, last: Tokens, means: list[Tensor]) -> Tensor:
    if kind == "last4":
        return torch.cat(means, dim=1)
    if kind == "cls" and last.class_BD is not None:
        return last.class_BD
    return means[-1]


@dataclass(frozen=True, eq=False)
class Collected:
    """Features of a list of pictures, the same on every rank."""

    ids: NDArray[np.int64]
    """The pictures that could be read, in the order of the list."""
    features: dict[Features, Tensor]
    """(N, F) per kind, on the encoder's device."""
    skipped: int
    """Pictures of the list that could not."""

    def only(self, ids: NDArray[np.int64]) -> "Collected":
        """The rows of some of the pictures; those that could not be read are skipped here too."""
        keep_N = np.isin(self.ids, ids)
        rows = torch.from_numpy(np.flatnonzero(keep_N))
        features = {kind: table[rows.to(table.device)] for kind, table in self.features.items()}
        return Collected(self.ids[keep_N], features, len(ids) - int(keep_N.sum()))

    def require_finite(self, encoder: FrozenEncoder) -> Self:
        """Refuse NaN and infinity.

        Raises:
            UserError: naming the encoder.

        """
        for kind, table_NF in self.features.items():
            bad_N = ~torch.isfinite(table_NF).all(dim=1).cpu().numpy()
            if bad_N.any():
                raise UserError(
                    f"{encoder.name}: the {kind} features of {int(bad_N.sum())} of {len(bad_N)} images are NaN or "
                    f"infinite (first: image {int(self.ids[bad_N][0])}); this encoder is broken, choose another "
                    "checkpoint."
                )
        return self

    def require_different(self, encoder: FrozenEncoder) -> Self:
        """Refuse the same features for every picture: no head could use them.

        Raises:
            UserError: naming the encoder.

        """
        for kind, table_NF in self.features.items():
            if len(table_NF) > 1 and float(table_NF.std(dim=0).max()) < 1e-6:
                raise UserError(
                    f"{encoder.name}: all {len(table_NF)} images have the same {kind} features; this encoder has "
                    "collapsed, choose another checkpoint."
                )
        return self


def collect(
    encoders: Sequence[FrozenEncoder],
    split: Split,
    ids: NDArray[np.int64],
    *,
    view: View,
    kinds: Sequence[Features],
    world: World,
    loading: LoadingSettings,
    label: str,
) -> list[Collected]:
    """Encode pictures, each decoded once and read by every encoder once, on whichever rank.

    Args:
        encoders: one or several, on the world's device.
        split: where the pictures are.
        ids: which.
        view: of every picture.
        kinds: features to keep.
        world: ranks that share the work; every rank calls this.
        loading: workers, and what to do with an unreadable file.
        label: what the progress line calls this.

    Returns:
        One result per encoder.

    """
    row_of = np.full(len(split), -1)
    row_of[ids] = np.arange(len(ids))
    tables: list[dict[Features, Tensor]] = [
        {kind: torch.zeros(len(ids), encoder.width(kind), device=world.device) for kind in kinds}
        for encoder in encoders
    ]
    seen_N = torch.zeros(len(ids), device=world.device)
    batch_size = FORWARD_IMAGES[world.device.type] * world.size
    batches = evaluation_batches(
        split, ids, view=view, batch_size=batch_size, rank=world.rank, ranks=world.size, loading=loading
    )
    for batch in shown(batches, evaluation_steps(len(ids), batch_size), batch_size, label, world):
        if len(batch.ids_B):
            rows_B = torch.from_numpy(row_of[batch.ids_B.numpy()]).to(world.device)
            images_BCHW = batch.images_BCHW.to(world.device, non_blocking=True)
            seen_N[rows_B] += 1
            for encoder, table in zip(encoders, tables, strict=True):
                for kind, values_BF in encoder(images_BCHW, kinds).items():
                    table[kind][rows_B] = values_BF
    read_N = np.flatnonzero(all_sum(seen_N).cpu().numpy())
    return [_gathered(table, ids, read_N) for table in tables]


def shown(
    batches: Iterable[LabelledBatch], steps: int, images: int, label: str, world: World
) -> Iterator[LabelledBatch]:
    """Batches as they are, with a progress line of the first rank; `images` is the size of a step over all ranks."""
    if not world.is_main:
        yield from batches
        return
    with Progress(steps, label) as progress:
        for batch in batches:
            yield batch
            progress.advance(images)


def _gathered(table: dict[Features, Tensor], ids: NDArray[np.int64], read_N: NDArray[np.int64]) -> Collected:
    """Every rank's rows; a row is zero on all ranks but the one that made it, so the sum is exact."""
    features = {kind: all_sum(rows_NF) for kind, rows_NF in table.items()}
    if len(read_N) < len(ids):
        features = {kind: rows_NF[torch.from_numpy(read_N).to(rows_NF.device)] for kind, rows_NF in features.items()}
    return Collected(ids[read_N], features, len(ids) - len(read_N))

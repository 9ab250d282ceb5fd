r"""Semantic segmentation: UPerNet on the whole encoder, by mmsegmentation's recipe (docs/protocols.md 5).

    dseq-jepa segment --config configs/demo.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/
    torchrun --nproc-per-node 8 -m dseq_jepa segment --config configs/paper.yaml --method dseq-jepa \
        --architecture vit-b16 --encoder out/encoder.safetensors --out out/           # 8 x H200

Writes examples.png beside metrics.json: pictures, truth and prediction. records.csv.gz has every picture's pixels in
the intersection and in the union of each class, so that the mean IoU of any sample of pictures can be had from it.
B images of this rank, N test images, K classes.
"""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dseq_jepa.data.ade20k import IGNORED
from dseq_jepa.data.decode import BadImage, read_picture
from dseq_jepa.data.loaders import Batch, steps_per_epoch, training_batches
from dseq_jepa.data.segmentation import SegmentationView, load_masked, shrunk
from dseq_jepa.data.staging import staged
from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import miou, report
from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.batch_norm import over_ranks
from dseq_jepa.evaluation.segmentation_page import Example, draw_page
from dseq_jepa.evaluation.settings import SegmentationSettings
from dseq_jepa.evaluation.tuning import run
from dseq_jepa.evaluation.upernet import Segmenter, slide
from dseq_jepa.jobs import SegmentJob
from dseq_jepa.models.dropping import hand_out
from dseq_jepa.models.weights import read_card
from dseq_jepa.progress import Progress
from dseq_jepa.training.distributed import World, all_sum

COLUMNS = ("evaluation", "image", "class", "intersection", "union")
EXAMPLES = "examples.png"


def segment(job: SegmentJob, encoder: Path, out: Path) -> Path:
    """Train UPerNet on an exported encoder and measure it; see `tuning.run`."""
    return run(job, encoder, out, SegmentationTask)


class SegmentationTask:
    """What `tuning` trains and measures."""

    def __init__(self, job: SegmentJob, encoder: Path, world: World) -> None:
        settings: SegmentationSettings
        ((self.name, settings),) = job.evaluations.items()
        self.settings = settings
        self.world, self.loading, self.seed = world, job.loading, job.model.seed
        data, card = staged(job.data[settings.data], job.loading), read_card(encoder)
        self.train, self.val = load_masked(data, "train"), load_masked(data, "val")
        if settings.crop_size % card.patch_size:
            raise UserError(
                f"evaluations.{self.name}.crop_size: {settings.crop_size} is not a multiple of the encoder's patches "
                f"of {card.patch_size} pixels"
            )
        world.share(settings.batch_size, f"evaluations.{self.name}.batch_size")
        self.mean, self.classes = card.mean, len(self.train.class_names)
        backbone = Backbone.load(encoder, settings, image_size=settings.crop_size)
        self.model = Segmenter(backbone, settings, self.classes).to(world.device)
        if world.size > 1:
            over_ranks(self.model, world.device)
        self.steps = settings.iterations
        self.epoch_steps = steps_per_epoch(len(self.train), settings.batch_size)

    def rate(self, step: int) -> float:
        """Linear from 0 over the warm-up, then linear to 0 (poly with power 1)."""
        settings = self.settings
        if step < settings.warmup_iterations:
            return settings.learning_rate * step / settings.warmup_iterations
        left = settings.iterations - step
        return settings.learning_rate * left / (settings.iterations - settings.warmup_iterations)

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Random crops of pictures and masks, the classes as a fourth channel."""
        return training_batches(
            self.train,
            view=SegmentationView(self.train, self.settings.crop_size, self.mean, self.seed),
            batch_size=self.settings.batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.steps,
            loading=self.loading,
        )

    def loss(self, run: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of both heads, mean over all pixels; those without a class count with 0, as in
        mmsegmentation.
        """
        hand_out(self.model, seed=self.seed, step=batch.step, ids_B=batch.ids_B.numpy(), device=self.world.device)
        truth_BHW = batch.images_BCHW[:, 3].to(self.world.device).long()
        both = run(self.model.backbone.normalise(batch.images_BCHW[:, :3]))
        main, auxiliary = (_cross_entropy(logits_BKhw, truth_BHW) for logits_BKhw in both)
        return main + self.settings.auxiliary_weight * auxiliary

    def measure(self) -> report.Measured:
        """Mean IoU over the validation set; every picture on one rank."""
        total_KK = np.zeros((self.classes, self.classes), np.int64)
        overlaps_N2K = np.zeros((len(self.val), 2, self.classes), np.int64)
        read, mine = 0, self.val.ids[self.world.rank :: self.world.size].tolist()
        progress = Progress(len(mine), f"{self.name}: testing") if self.world.is_main else None
        for image_id in mine:
            found = self._read(image_id)
            if found is not None:
                picture_HWC, truth_HW = found
                counts_KK = miou.confusion(truth_HW, self._predict(picture_HWC), self.classes)
                total_KK += counts_KK
                overlaps_N2K[image_id] = miou.overlaps(counts_KK)
                read += 1
            if progress:
                progress.advance(images=self.world.size)
        if progress:
            progress.close()
        total_KK, overlaps_N2K = (self._summed(counts) for counts in (total_KK, overlaps_N2K))
        read = int(self._summed(np.array(read)))
        if not total_KK.sum():
            raise UserError(f"evaluations.{self.name}: not one pixel of the {len(self.val)} test pictures has a class.")
        values = miou.scores(total_KK)
        return report.Measured(
            result={
                "value": values["miou"],
                "values": values,
                "metric": "miou",
                "n": read,
                "chance": miou.best_constant(total_KK),
                "iou": miou.per_class(total_KK, self.val.class_names),
            },
            records=self._records(overlaps_N2K),
            columns=COLUMNS,
            skipped=len(self.val) - read,
            pictures={EXAMPLES: partial(draw_page, self._examples(), self.val.class_names)},
        )

    def _summed(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """The sum over ranks, exact."""
        return all_sum(torch.from_numpy(np.asarray(counts)).to(self.world.device)).cpu().numpy()

    def _read(self, image_id: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
        """A test picture and its mask, or None for an unreadable one that may be skipped."""
        try:
            picture_HWC = read_picture(self.val.path(image_id))
            return picture_HWC, self.val.mask(image_id, picture_HWC)
        except BadImage as error:
            if self.loading.on_bad_image == "error":
                raise BadImage(f"{error}. Restore the file or set loading.on_bad_image: skip.") from None
            return None

    def _predict(self, picture_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) classes of a picture: seen with a short side of one crop, judged at its own size."""
        settings = self.settings
        seen_CHW = self.model.backbone.normalise(shrunk(picture_HWC, settings.crop_size)[None])[0]
        logits_KHW = slide(self.model, seen_CHW, settings.crop_size, settings.stride)
        whole_1KHW = F.interpolate(logits_KHW[None], picture_HWC.shape[:2], mode="bilinear")
        return whole_1KHW[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    def _examples(self) -> list[Example]:
        """The same pictures for every model, drawn by lot; computed by the first rank, which draws the page."""
        if not self.world.is_main:
            return []
        lots_N = uniforms(0, "examples", 0, self.val.ids, 1)[:, 0]
        chosen = np.sort(np.argsort(lots_N, kind="stable")[: self.settings.examples])
        found = ((image_id, self._read(image_id)) for image_id in chosen.tolist())
        return [
            Example(Path(self.val.paths[image_id]).stem, pair[0], pair[1], self._predict(pair[0]))
            for image_id, pair in found
            if pair is not None
        ]

    def _records(self, overlaps_N2K: NDArray[np.int64]) -> str:
        """CSV of the classes that are in a picture's truth or prediction."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for image_id, label in np.argwhere(overlaps_N2K[:, 1] > 0).tolist():
            counts = overlaps_N2K[image_id, :, label].tolist()
            writer.writerow((self.name, self.val.paths[image_id], self.val.class_names[label], *counts))
        return buffer.getvalue()


def _cross_entropy(logits_BKhw: Tensor, truth_BHW: Tensor) -> Tensor:
    """Mean over all pixels. The classes of a pixel lie side by side in memory: three times as fast on a CPU."""
    logits_BKhw = logits_BKhw.float().contiguous(memory_format=torch.channels_last)
    logits_BKHW = F.interpolate(logits_BKhw, truth_BHW.shape[1:], mode="bilinear")
    rows_NK = logits_BKHW.permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(rows_NK, truth_BHW.flatten(), ignore_index=IGNORED, reduction="none").mean()

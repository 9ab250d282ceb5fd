r"""Fine-tuning of the whole encoder for classification, by MAE's recipe (docs/protocols.md 3).

    dseq-jepa finetune --config configs/demo.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/
    torchrun --nproc-per-node 8 -m dseq_jepa finetune --config configs/paper.yaml --method dseq-jepa \
        --architecture vit-b16 --encoder out/encoder.safetensors --out out/           # 8 x H200

RandAugment, mixup, CutMix, random erasing, layer-wise rates and the loss are timm's own. What they draw is seeded per
(seed, epoch or step, image), so an image meets the same fate on any number of ranks and after any kill.
B images of this rank, N test images, K classes.
"""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from dseq_jepa.data.augment import FinetuneView
from dseq_jepa.data.catalog import load_split
from dseq_jepa.data.loaders import Batch, evaluation_batches, evaluation_steps, steps_per_epoch, training_batches
from dseq_jepa.data.staging import staged
from dseq_jepa.data.transforms import TestView
from dseq_jepa.draws import seeded, uniforms
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.backbone import Backbone
from dseq_jepa.evaluation.features import FORWARD_IMAGES, shown
from dseq_jepa.evaluation.settings import FinetuneSettings
from dseq_jepa.evaluation.tuning import run
from dseq_jepa.jobs import FinetuneJob
from dseq_jepa.models.dropping import hand_out
from dseq_jepa.models.packing import layer_norm
from dseq_jepa.models.weights import read_card
from dseq_jepa.training.distributed import World, all_sum

HEAD_STD = 2e-5
"""Of the classifier's first weights (MAE)."""


def finetune(job: FinetuneJob, encoder: Path, out: Path) -> Path:
    """Fine-tune an exported encoder and measure it; see `tuning.run`."""
    return run(job, encoder, out, FinetuneTask)


class Classifier(nn.Module):
    """The encoder, the mean of its last patch tokens, LayerNorm and a linear layer (MAE's global pool)."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc_norm = layer_norm(backbone.settings.width)
        self.head = nn.Linear(backbone.settings.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, K) logits of normalised images."""
        (patches_BTD,) = self.backbone(images_BCHW, [self.backbone.settings.depth])
        return self.head(self.fc_norm(patches_BTD.mean(dim=1)))  # type: ignore[no-any-return]


class FinetuneTask:
    """What `tuning` trains and measures."""

    def __init__(self, job: FinetuneJob, encoder: Path, world: World) -> None:
        settings: FinetuneSettings
        ((self.name, settings),) = job.evaluations.items()
        self.settings = settings
        self.world, self.loading, self.seed = world, job.loading, job.model.seed
        data = staged(job.data[self.settings.data], job.loading)
        self.train, self.val = load_split(data, "train"), load_split(data, "val")
        self.classes = len(self.train.class_names)
        self.mean = read_card(encoder).mean
        self.model = Classifier(Backbone.load(encoder, self.settings), self.classes).to(world.device)
        self.image_size = self.model.backbone.settings.image_size
        self.epoch_steps = steps_per_epoch(len(self.train), self.settings.batch_size)
        if not self.epoch_steps:
            raise UserError(
                f"{data.root}: {len(self.train):,} training images do not fill one batch of "
                f"{self.settings.batch_size:,}; set a smaller evaluations.{self.name}.batch_size"
            )
        self.steps = self.settings.epochs * self.epoch_steps
        self.share = world.share(self.settings.batch_size, f"evaluations.{self.name}.batch_size")
        if self.settings.mixes and self.share % self.settings.mixing_group:
            raise UserError(
                f"evaluations.{self.name}.mixing_group: {self.settings.mixing_group} does not divide a rank's "
                f"{self.share} images of a batch; choose a smaller one or fewer ranks"
            )
        self._mixup = Mixup(
            mixup_alpha=self.settings.mixup,
            cutmix_alpha=self.settings.cutmix,
            label_smoothing=self.settings.label_smoothing,
            num_classes=self.classes,
        )
        self._erasing = RandomErasing(self.settings.random_erasing, mode="pixel", device=world.device)
        self._loss = SoftTargetCrossEntropy()

    def rate(self, step: int) -> float:
        """Linear from 0 over the warm-up, then cosine to the smallest rate (MAE)."""
        settings, epoch = self.settings, step / self.epoch_steps
        scale = settings.batch_size / settings.scale_rate_per if settings.scale_rate_per else 1.0
        peak, low = scale * settings.learning_rate, settings.min_learning_rate
        if epoch < settings.warmup_epochs:
            return peak * epoch / settings.warmup_epochs
        progress = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
        return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * progress))

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Augmented pictures; mixing and erasing follow on the device."""
        return training_batches(
            self.train,
            view=FinetuneView(self.image_size, self.settings.rand_augment, self.mean, self.seed),
            batch_size=self.settings.batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            seed=self.seed,
            start_step=start_step,
            total_steps=self.steps,
            loading=self.loading,
        )

    def loss(self, run: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy against smoothed, mixed labels."""
        ids_B = batch.ids_B.numpy()
        images_BCHW = self.model.backbone.normalise(batch.images_BCHW)
        self._erase(images_BCHW, ids_B, batch.step)
        labels_B = torch.from_numpy(self.train.labels[ids_B]).to(self.world.device)
        targets_BK = self._mix(images_BCHW, labels_B, batch.step)
        hand_out(self.model, seed=self.seed, step=batch.step, ids_B=ids_B, device=self.world.device)
        return self._loss(run(images_BCHW), targets_BK)  # type: ignore[no-any-return]

    def _erase(self, images_BCHW: Tensor, ids_B: NDArray[np.int64], step: int) -> None:
        """A rectangle of some images becomes noise, in place."""
        if not self.settings.random_erasing:
            return
        numbers_B = (uniforms(self.seed, "erasing", step, ids_B, 1)[:, 0] * 2**32).astype(np.int64)
        generator = _generator(self.world.device)
        state = generator.get_state()
        with seeded(self.seed, "erasing", step, 0):  # timm draws from the global generators; both are put back
            for image_CHW, number in zip(images_BCHW, numbers_B.tolist(), strict=True):
                random.seed(number)
                generator.manual_seed(number)
                self._erasing(image_CHW)
        generator.set_state(state)

    def _mix(self, images_BCHW: Tensor, labels_B: Tensor, step: int) -> Tensor:
        """Mix every group of images in place; returns targets (B, K)."""
        if not self.settings.mixes:
            return mixup_target(labels_B, self.classes, 1.0, self.settings.label_smoothing)  # type: ignore[no-any-return]
        size, targets = self.settings.mixing_group, []
        for begin in range(0, self.share, size):
            group = (self.world.rank * self.share + begin) // size
            with seeded(self.seed, "mixing", step, group):
                _, target_GK = self._mixup(images_BCHW[begin : begin + size], labels_B[begin : begin + size])
            targets.append(target_GK)
        return torch.cat(targets)

    def measure(self) -> report.Measured:
        """Top-1 accuracy on the validation images, each counted once."""
        ids, predicted_N = self._predictions()
        if not len(ids):
            raise UserError(f"evaluations.{self.name}: not one of the {len(self.val)} test images can be decoded.")
        truth_N = self.val.labels[ids]
        (top1,) = report.top1(predicted_N[None], truth_N)
        return report.Measured(
            result={
                "value": top1,
                "values": {"top1": top1},
                "metric": "top1",
                "n": len(ids),
                "chance": report.best_constant(truth_N),
            },
            records=report.record_lines(self.name, self.val, ids, predicted_N),
            columns=report.COLUMNS,
            skipped=len(self.val) - len(ids),
        )

    def _predictions(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the test images that could be read, and their classes; the same on every rank."""
        ids, batch_size = self.val.ids, FORWARD_IMAGES[self.world.device.type] * self.world.size
        batches = evaluation_batches(
            self.val,
            ids,
            view=TestView(self.image_size, self.settings.resize_for(self.image_size)),
            batch_size=batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            loading=self.loading,
        )
        # One more than the class of every image that this rank reads, else 0: the sum over ranks is exact.
        answers_N = torch.zeros(len(ids), dtype=torch.int64, device=self.world.device)
        label = f"{self.name}: testing"
        for batch in shown(batches, evaluation_steps(len(ids), batch_size), batch_size, label, self.world):
            if len(batch.ids_B):
                logits_BK = self.model(self.model.backbone.normalise(batch.images_BCHW))
                answers_N[batch.ids_B.to(self.world.device)] = 1 + logits_BK.argmax(dim=1)
        found_N = all_sum(answers_N).cpu().numpy()
        return np.flatnonzero(found_N), found_N[found_N > 0] - 1


def _generator(device: torch.device) -> torch.Generator:
    """The global generator of a device. torch.manual_seed seeds those of all devices, at half a millisecond a call."""
    return torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator

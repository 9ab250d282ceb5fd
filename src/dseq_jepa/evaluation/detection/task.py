"""Detection by engine torchvision: what `tuning` trains and measures.

    dseq-jepa detect --config configs/demo.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/

What is drawn (order, jitter, stochastic depth, sampled anchors and regions) is a function of (seed, epoch or step,
image), so a killed run goes on to the same weights, bit for bit on a CPU. B images of this rank, S side of the square.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dseq_jepa.data.catalog import require_images
from dseq_jepa.data.coco import CocoPart, read_coco, require_same_categories
from dseq_jepa.data.loaders import Batch
from dseq_jepa.data.staging import staged
from dseq_jepa.draws import uniforms
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.detection.average_precision import Prediction, encode_masks
from dseq_jepa.evaluation.detection.batches import (
    TestImage,
    TrainingBatch,
    epoch_steps,
    test_images,
    training_batches,
)
from dseq_jepa.evaluation.detection.heads import paste_masks
from dseq_jepa.evaluation.detection.network import MaskRCNN
from dseq_jepa.evaluation.detection.results import Searched, gathered, measured
from dseq_jepa.evaluation.detection.views import JitteredView
from dseq_jepa.evaluation.settings import DetectionSettings
from dseq_jepa.jobs import DetectJob
from dseq_jepa.models.dropping import hand_out
from dseq_jepa.models.weights import load_encoder, read_card
from dseq_jepa.progress import Progress
from dseq_jepa.training.distributed import World


def read_parts(job: DetectJob, settings: DetectionSettings) -> tuple[CocoPart, CocoPart]:
    """Both splits of the job's data, checked as `dseq-jepa data check` does and for what the engine cannot take."""
    data = staged(job.data[settings.data], job.loading)
    train, val = read_coco(data.root, "train"), read_coco(data.root, "val")
    require_same_categories(train, val)
    require_images(data, "train", len(train.images))
    require_images(data, "val", len(val.images))
    if settings.engine == "detectron2":
        for part in (train, val):
            _require_polygons(part)
    return train, val


def _require_polygons(part: CocoPart) -> None:
    """Refuse run lengths of single objects, which detectron2's mapper does not move: before training, not at a use."""
    for objects in part.objects:
        for one in objects:
            if not one["iscrowd"] and isinstance(one["segmentation"], dict):
                raise UserError(
                    f"{part.annotations}: annotation {one['id']} has run lengths and is no crowd; engine detectron2 "
                    "takes polygons, use engine torchvision"
                )


def rate_at(settings: DetectionSettings, epoch: float) -> float:
    """Learning rate at a point of the training, in epochs: linear from 0 over the warm-up, then cosine to 0."""
    if epoch < settings.warmup_epochs:
        return settings.learning_rate * epoch / settings.warmup_epochs
    progress = (epoch - settings.warmup_epochs) / (settings.epochs - settings.warmup_epochs)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class DetectionTask:
    """Mask R-CNN on an exported encoder."""

    def __init__(self, job: DetectJob, encoder: Path, world: World) -> None:
        settings: DetectionSettings
        ((self.name, settings),) = job.evaluations.items()
        self.settings, self.world, self.loading, self.seed = settings, world, job.loading, job.model.seed
        self.train, self.val = read_parts(job, settings)
        world.share(settings.batch_size, f"evaluations.{self.name}.batch_size")
        self.epoch_steps = epoch_steps(self.train, settings.batch_size)
        self.steps = settings.epochs * self.epoch_steps
        card = read_card(encoder)
        weights = load_encoder(encoder, checkpointing=settings.activation_checkpointing, drop_path=settings.drop_path)
        network = MaskRCNN(weights, settings, len(self.train.categories), mean=card.mean, std=card.std)
        self.model = network.to(world.device)

    def rate(self, step: int) -> float:
        """Of the heads."""
        return rate_at(self.settings, step / self.epoch_steps)

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Jittered views."""
        settings = self.settings
        return training_batches(
            self.train,
            JitteredView(self.train.labels, settings.image_size, settings.scale_range, self.seed),
            batch_size=settings.batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            start_step=start_step,
            total_steps=self.steps,
            loading=self.loading,
        )

    def loss(self, run: nn.Module, batch: Batch) -> Tensor:
        """Sum of the five losses: objectness and boxes of proposals, classes, boxes and masks of regions."""
        assert isinstance(batch, TrainingBatch)
        device, ids_B = self.world.device, batch.ids_B.numpy()
        targets = [
            {"boxes": own.boxes_N4.to(device), "labels": own.labels_N.to(device), "masks": own.masks_NHW.to(device)}
            for own in batch.targets
        ]
        seeds_B = (uniforms(self.seed, "regions", batch.step, ids_B, 1)[:, 0] * 2**53).astype(int).tolist()
        hand_out(self.model, seed=self.seed, step=batch.step, ids_B=ids_B, device=device)
        losses: dict[str, Tensor] = run(batch.images_BCHW.to(device), batch.sizes_B, targets, seeds_B)
        return torch.stack(list(losses.values())).sum()

    def measure(self) -> report.Measured:
        """Average precision on the validation pictures, each searched by one rank."""
        images = test_images(
            self.val, self.settings.image_size, rank=self.world.rank, ranks=self.world.size, loading=self.loading
        )
        total = -(-len(self.val.images) // self.world.size)
        progress = Progress(total, f"{self.name}: testing") if self.world.is_main else None
        mine = []
        for image in images:
            mine.append(self._search(image))
            if progress:
                progress.advance(images=self.world.size)
        if progress:
            progress.close()
        return measured(self.name, self.val, gathered(mine, len(self.val.images), self.world), self.settings.examples)

    def _search(self, image: TestImage) -> Searched:
        """One picture, padded to the square and searched."""
        if image.image_CHW is None:
            return Searched(image.index, [], read=False)
        side, (height, width) = self.settings.image_size, image.image_CHW.shape[-2:]
        images_1CSS = torch.zeros(1, 3, side, side, dtype=torch.uint8)
        images_1CSS[0, :, :height, :width] = image.image_CHW
        # In fp32 whatever the training's precision is, as ViTDet's evaluation: bf16 would round coordinates and scores.
        (found,) = self.model.detect(images_1CSS.to(self.world.device), [(height, width)])
        return Searched(image.index, self._predictions(image, found, height, width))

    def _predictions(self, image: TestImage, found: dict[str, Tensor], height: int, width: int) -> list[Prediction]:
        """Detections in pixels of the picture itself, as COCO's result records."""
        scale_4 = found["boxes"].new_tensor([image.width / width, image.height / height] * 2)
        boxes_N4 = found["boxes"] * scale_4
        masks_NHW = paste_masks(found["masks"], boxes_N4, image.height, image.width).cpu().numpy()
        records = zip(
            boxes_N4.tolist(), found["labels"].tolist(), found["scores"].tolist(), encode_masks(masks_NHW), strict=True
        )
        return [
            {
                "image_id": self.val.images[image.index].id,
                "category_id": self.val.categories[label - 1].id,
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
                "segmentation": mask,
            }
            for (left, top, right, bottom), label, score, mask in records
        ]

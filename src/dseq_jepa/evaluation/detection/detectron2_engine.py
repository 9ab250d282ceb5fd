"""Detection by engine detectron2: its model, trainer, data mapper and evaluator, on our encoder, state and journal.

    conda env create --file workflow/envs/detectron2.yml       # conda-forge's detectron2 and the torch it is built for
    dseq-jepa detect --config configs/paper.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/

detectron2 draws from the global generators of Python, numpy and torch. They are seeded before every picture is mapped
(seed, epoch, image) and before every step (seed, step, rank), and its loader is given the order of our other trainings,
so a killed run goes on to the same weights here too.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from dseq_jepa.data.coco import CocoPart
from dseq_jepa.data.loaders import EpochOrder
from dseq_jepa.draws import seeded, uniforms
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.detection.average_precision import KINDS, Prediction
from dseq_jepa.evaluation.detection.batches import epoch_steps
from dseq_jepa.evaluation.detection.network import require_fitting
from dseq_jepa.evaluation.detection.results import COLUMNS, Searched, measured
from dseq_jepa.evaluation.detection.task import read_parts
from dseq_jepa.evaluation.settings import DetectionSettings
from dseq_jepa.evaluation.tuning import Tuning, run
from dseq_jepa.jobs import DetectJob
from dseq_jepa.models.weights import load_encoder, read_card
from dseq_jepa.training.distributed import World

try:
    import detectron2.data.transforms as augmentations
    from detectron2.config import instantiate
    from detectron2.data import (
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
    )
    from detectron2.engine import AMPTrainer, SimpleTrainer
    from detectron2.engine.hooks import LRScheduler
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset
    from detectron2.solver import WarmupParamScheduler
    from detectron2.structures import BoxMode
    from detectron2.utils.events import EventStorage
    from fvcore.common.param_scheduler import CosineParamScheduler

    from dseq_jepa.evaluation.detection.detectron2_config import load_backbone, model_config, optimizer_config
except ImportError as error:
    raise UserError(
        f"evaluations: engine detectron2 needs detectron2 with its ViT (June 2022 or later), which this environment "
        f"lacks ({error}); use one that has it (workflow/envs/detectron2.yml), or set engine: torchvision"
    ) from None

_WARMUP_FACTOR = 0.001
"""First rate as a fraction of the peak (ViTDet's configurations)."""


def detect(job: DetectJob, encoder: Path, out: Path) -> Path:
    """Train and measure; see `tuning.run`."""
    # What a task's `loss` would compute, detectron2's trainer does.
    return run(job, encoder, out, Detectron2Task, Detectron2Tuning)  # type: ignore[arg-type]


class Detectron2Task:
    """detectron2's model, loaders and evaluator."""

    def __init__(self, job: DetectJob, encoder: Path, world: World) -> None:
        settings: DetectionSettings
        ((self.name, settings),) = job.evaluations.items()
        self.settings, self.world, self.loading, self.seed = settings, world, job.loading, job.model.seed
        self._require_possible()
        card = read_card(encoder)
        require_fitting(card.patch_size, settings.image_size)
        self.train, self.val = read_parts(job, settings)
        world.share(settings.batch_size, f"evaluations.{self.name}.batch_size")
        self.epoch_steps = epoch_steps(self.train, settings.batch_size)
        self.steps = settings.epochs * self.epoch_steps
        self.depth = card.architecture.depth
        model = instantiate(model_config(card, settings, len(self.train.categories)))
        load_backbone(model.backbone.net, load_encoder(encoder))
        self.model: nn.Module = model.to(world.device)
        self.schedule = WarmupParamScheduler(
            CosineParamScheduler(1.0, 0.0),
            warmup_factor=_WARMUP_FACTOR,
            warmup_length=settings.warmup_epochs / settings.epochs,
            rescale_interval=True,
        )

    def _require_possible(self) -> None:
        where = f"evaluations.{self.name}"
        if self.settings.precision == "bf16" and self.world.device.type == "cpu":
            raise UserError(f"{where}.precision: detectron2's mixed precision needs a GPU; set precision: fp32")
        if self.loading.on_bad_image == "skip":
            raise UserError(f"{where}.engine: detectron2's mapper cannot skip unreadable pictures; use torchvision")

    def rate(self, step: int) -> float:
        """Of the heads."""
        return float(self.settings.learning_rate * self.schedule(step / self.steps))

    def batches(self, start_step: int) -> Iterator[Any]:
        """This rank's batches as detectron2's mapper makes them: lists of dictionaries."""
        settings, size = self.settings, self.settings.image_size
        low, high = settings.scale_range
        mapper = DatasetMapper(
            is_train=True,
            augmentations=[
                augmentations.RandomFlip(horizontal=True),
                augmentations.ResizeScale(min_scale=low, max_scale=high, target_height=size, target_width=size),
                augmentations.FixedSizeCrop(crop_size=(size, size), pad=False),
            ],
            image_format="RGB",
            use_instance_mask=True,
            recompute_boxes=True,
        )
        order = EpochOrder(self.train.trainable, self.seed)
        loader = build_detection_train_loader(
            _Endless(self.train, settings.epochs),
            mapper=_SeededMapper(mapper, self.seed),
            sampler=_Order(
                order, settings.batch_size, self.world, range(start_step, self.steps), len(self.train.images)
            ),
            total_batch_size=settings.batch_size,
            aspect_ratio_grouping=False,  # all views fit one square; grouping would make a resume see other batches
            num_workers=self.loading.workers,
        )
        return iter(loader)

    def measure(self) -> report.Measured:
        """Average precision of what detectron2's evaluator writes down, and beside it the one that it computes."""
        with tempfile.TemporaryDirectory() as folder:
            judged = self._evaluate(Path(folder))
            if not self.world.is_main:
                return report.Measured(result={}, records="", columns=COLUMNS, skipped=0)
            predictions = json.loads((Path(folder) / "coco_instances_results.json").read_text())
        found: dict[int, list[Prediction]] = {image.id: [] for image in self.val.images}
        for prediction in predictions:
            found[prediction["image_id"]].append(prediction)
        searched = [Searched(index, found[image.id]) for index, image in enumerate(self.val.images)]
        result = measured(self.name, self.val, searched, self.settings.examples)
        for ours, theirs in KINDS.items():
            value = float(judged[theirs]["AP"])
            if math.isfinite(value):  # detectron2 has no number for no predictions at all
                result.result["values"][f"detectron2_{ours}_ap"] = value
        return result

    def _evaluate(self, folder: Path) -> Mapping[str, Any]:
        """detectron2's evaluation of the whole split; its findings are on the first rank only."""
        size, name = self.settings.image_size, _register(self.val)
        fit = augmentations.ResizeShortestEdge(short_edge_length=size, max_size=size)
        loader = build_detection_test_loader(
            dataset_dicts(self.val, range(len(self.val.images))),
            mapper=DatasetMapper(is_train=False, augmentations=[fit], image_format="RGB"),
            num_workers=self.loading.workers,
        )
        evaluator = COCOEvaluator(name, tasks=tuple(KINDS.values()), output_dir=str(folder))
        # In fp32, as ViTDet's evaluation: bf16 would round coordinates and scores.
        judged: Mapping[str, Any] = inference_on_dataset(self.model, loader, evaluator)
        return judged


class Detectron2Tuning(Tuning):
    """Our state, journal and artefacts around detectron2's trainer."""

    task: Detectron2Task  # type: ignore[assignment]  # a task without a loss of its own

    def build_optimizer(self) -> torch.optim.Optimizer:
        """As ViTDet's configurations have it."""
        optimizer: torch.optim.Optimizer = instantiate(
            optimizer_config(self.task.settings, self.task.depth, self.task.model)
        )
        for group in optimizer.param_groups:  # the schedule would add it later, and a state must fit a new optimizer
            group["initial_lr"] = group["lr"]
        return optimizer

    def train(self) -> None:
        """All remaining steps, each one of detectron2's trainer with its hooks."""
        trainer = self.trainer = self._build_trainer()
        trainer.iter = trainer.start_iter = self.step
        trainer.max_iter = self.task.steps
        with EventStorage(self.step) as trainer.storage:
            trainer.before_train()
            try:
                super().train()
            finally:
                trainer.after_train()

    def _build_trainer(self) -> Any:
        self.handed = _Handed()
        if self.task.settings.precision == "bf16":
            scaler = torch.amp.grad_scaler.GradScaler("cuda", enabled=False)  # bf16 has the range of fp32
            trainer = AMPTrainer(self.run, self.handed, self.optimizer, grad_scaler=scaler, precision=torch.bfloat16)
        else:
            trainer = SimpleTrainer(self.run, self.handed, self.optimizer)
        trainer.register_hooks([LRScheduler(scheduler=self.task.schedule)])
        return trainer

    def _optimise(self, batch: Any) -> None:
        began, trainer = time.perf_counter(), self.trainer
        draw = uniforms(self.task.seed, "regions", self.step, [self.world.rank], 1)[0, 0]
        torch.manual_seed(int(draw * 2**53))
        self.handed.batch, trainer.iter = batch, self.step
        trainer.before_step()
        try:
            trainer.run_step()
        except FloatingPointError as error:
            raise UserError(
                f"evaluations.{self.task.name}: {error}; lower learning_rate {self.task.settings.learning_rate:g}. "
                "Nothing was saved since the last state."
            ) from None
        trainer.after_step()
        if self.world.is_main:  # detectron2's storage has the mean over ranks, on the first one
            self.loss_sum += self.world.size * trainer.storage.latest()["total_loss"][0]
        self.step += 1
        self.seconds += time.perf_counter() - began


class _Handed:
    """A loader for detectron2's trainer that gives what it was handed: the loop around it waits for the data."""

    batch: Any = None

    def __iter__(self) -> "_Handed":
        return self

    def __next__(self) -> Any:
        return self.batch


@dataclass(frozen=True, eq=False)
class _Endless(Dataset[dict[str, Any]]):
    """The pictures of all epochs, numbered on."""

    part: CocoPart
    epochs: int

    def __len__(self) -> int:
        return self.epochs * len(self.part.images)

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, index = divmod(number, len(self.part.images))
        (record,) = dataset_dicts(self.part, [index])
        return {**record, "epoch": epoch}


@dataclass(frozen=True, eq=False)
class _SeededMapper:
    """detectron2's mapper, its draws a function of (seed, epoch, image)."""

    mapper: Any
    seed: int

    def __call__(self, record: dict[str, Any]) -> Any:
        with seeded(self.seed, "jitter", record["epoch"], record["image_id"]):
            return self.mapper(record)


class _Order(Sampler[int]):
    """This rank's pictures of every step, in the order of our other trainings."""

    def __init__(self, order: EpochOrder, batch_size: int, world: World, steps: range, images: int) -> None:
        self.order, self.batch_size, self.world, self.steps, self.images = order, batch_size, world, steps, images

    def __iter__(self) -> Iterator[int]:
        per_epoch = len(self.order.indices) // self.batch_size
        share = self.batch_size // self.world.size
        for step in self.steps:
            epoch, within = divmod(step, per_epoch)
            start = within * self.batch_size + self.world.rank * share
            for index in self.order(epoch)[start : start + share].tolist():
                yield epoch * self.images + index


def dataset_dicts(part: CocoPart, indices: Iterable[int]) -> list[dict[str, Any]]:
    """Pictures as detectron2 describes them; `read_parts` has seen that it can take their masks."""
    labels, records = part.labels, []
    for index in indices:
        image, objects = part.images[index], part.objects[index]
        annotations = [
            {
                "bbox": one["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": labels[one["category_id"]] - 1,
                "segmentation": one["segmentation"],
                "iscrowd": one["iscrowd"],
            }
            for one in objects
        ]
        records.append(
            {
                "file_name": str(part.root / image.file),
                "image_id": image.id,
                "height": image.height,
                "width": image.width,
                "annotations": annotations,
            }
        )
    return records


def _register(part: CocoPart) -> str:
    """Tell detectron2's catalogue where the truth is and how categories are numbered; returns the split's name."""
    name = f"dseq-jepa {part.annotations.resolve()}"
    MetadataCatalog.get(name).set(
        json_file=str(part.annotations),
        thing_classes=[category.name for category in part.categories],
        thing_dataset_id_to_contiguous_id={key: label - 1 for key, label in part.labels.items()},
    )
    return name

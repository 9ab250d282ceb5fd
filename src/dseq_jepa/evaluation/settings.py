"""How an exported encoder is judged: one entry per evaluation (docs/protocols.md 3)."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dseq_jepa.closed import NAME, Closed, DecayRate
from dseq_jepa.cost.settings import CostSettings

REFERENCE_SIZE = 224
"""Pixels of the square input that `test_resize` is written for."""

BLOCKS_OF_LAST4 = 4
"""Blocks that an encoder needs for the features last4."""

Features = Literal["last4", "last", "cls", "mean"]


class ProbeSettings(Closed):
    """A linear probe of a frozen encoder.

    Every pair of `epochs` and `learning_rates` is a candidate, and each candidate on each kind of `features` is a head;
    all are trained in the same pass. With several candidates, those that did best on a held-out slice of train are
    trained again, on all of train, and reported.
    """

    kind: Literal["probe"]
    """A linear probe of a frozen encoder."""
    group: str = Field("classify", pattern=NAME)
    """One job runs a group's probes on a model, so that start-up is paid once; written to evaluate/<group>."""
    data: str
    """Which entry of `data`."""
    target: Literal["class", "count", "distance"] = "class"
    """What is predicted; count and distance are CLEVR's."""
    features: list[Features] = Field(min_length=1)
    """The first is the reported one. last4: patch means of the last four blocks, concatenated; last and mean: patch
    mean of the last block; cls: final class token (the patch mean for an encoder without one)."""
    batch_norm: bool = True
    """BatchNorm without affine parameters before the linear layer, over the global batch."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd: momentum 0.9, Nesterov."""
    learning_rates: list[float] = Field(min_length=1)
    """A sweep; more than one chooses on a held-out slice of train."""
    epochs: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Passes over the training images; a sweep like learning_rates. Shorter ones stop earlier in the same pass."""
    scale_rate_per: int | None = Field(256, ge=1)
    """The rate is multiplied by batch_size / this; null: absolute."""
    weight_decay: float = Field(ge=0)
    """On all parameters of the heads."""
    batch_size: int = Field(ge=1)
    """Images per step over all ranks."""
    schedule: Literal["step", "cosine"] = "step"
    """step: divided by ten after each milestone; cosine: to 0 over all steps."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the rate is divided by ten (schedule: step), of the most `epochs`; fewer have them at the same
    fractions."""
    augment: bool = True
    """RandomResizedCrop(0.08-1) and flip for training; false: the test view, features computed once."""
    test_resize: int | None = Field(256, ge=REFERENCE_SIZE)
    """Short side before the centre crop, for an encoder of 224 px; other sizes scale it (448 px: 512, 64 px: 73).
    null: the whole image resized to a square."""
    holdout_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of train that a sweep chooses on."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in ("features", "learning_rates", "epochs"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                raise ValueError(f"{key} {values} name one twice")
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates {self.learning_rates} must be positive")
        if self.schedule == "cosine" and self.milestones:
            raise ValueError("milestones belong to schedule: step")
        rising = self.milestones == tuple(sorted(set(self.milestones)))
        if not rising or any(not 0 < m < max(self.epochs) for m in self.milestones):
            raise ValueError(
                f"milestones {self.milestones} must rise within 1..{max(self.epochs) - 1} (epochs is {self.epochs})"
            )
        return self

    @property
    def sweeps(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.epochs) * len(self.learning_rates) > 1

    @property
    def most_passes(self) -> int:
        """Over the training images: the longest schedule, after a sweep perhaps twice."""
        return max(self.epochs) * (2 if self.sweeps else 1)

    def resize_for(self, image_size: int) -> int | None:
        """Short side in pixels before a centre crop of image_size, or None: squeeze the whole image."""
        return None if self.test_resize is None else round(self.test_resize * image_size / REFERENCE_SIZE)


class TunedSettings(Closed):
    """Training of a whole encoder with AdamW; the head learns fastest, earlier blocks slower and slower."""

    data: str
    """Which entry of `data`."""
    batch_size: int = Field(ge=1)
    """Images per step over all ranks."""
    learning_rate: float = Field(gt=0)
    """Peak rate of the head; earlier layers have less."""
    layer_decay: float = Field(gt=0, le=1)
    """Factor of the rate from one block to the block before it."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's, none on biases, one-dimensional weights, positions and the class token."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Stochastic depth of the last block; it rises linearly from 0 in the first."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast; weights and optimizer state stay in fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, equal results."""


class FinetuneChanges(Closed):
    """What differs on one architecture; a key that is not given stays as it is."""

    batch_size: int | None = Field(None, ge=1)
    """Images per step over all ranks."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak rate of the head."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Factor of the rate from one block to the block before it."""
    weight_decay: float | None = Field(None, ge=0)
    """AdamW's."""
    drop_path: float | None = Field(None, ge=0, lt=1)
    """Stochastic depth of the last block."""
    mixing_group: int | None = Field(None, ge=2, multiple_of=2)
    """Images that are mixed with one another."""
    test_resize: int | None = Field(None, ge=REFERENCE_SIZE)
    """Short side before the centre crop."""
    activation_checkpointing: bool | None = None
    """Recompute activations in the backward pass."""


class FinetuneSettings(TunedSettings):
    """Fine-tuning of the whole encoder for classification, by MAE's recipe (docs/protocols.md 3)."""

    kind: Literal["finetune"]
    """Fine-tuning of the whole encoder."""
    group: str = Field("finetune", pattern=NAME)
    """Its job's name; written to evaluate/<group>."""
    epochs: int = Field(ge=1)
    """Passes over the training images."""
    warmup_epochs: float = Field(ge=0)
    """Linear warm-up from 0, then cosine to min_learning_rate."""
    scale_rate_per: int | None = Field(256, ge=1)
    """The rate is multiplied by batch_size / this; null: absolute."""
    min_learning_rate: float = Field(1e-6, ge=0)
    """Rate at the end, before layer decay."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's name of the policy; null: none."""
    mixup: float = Field(0.8, ge=0)
    """Alpha of mixup; 0: none."""
    cutmix: float = Field(1.0, ge=0)
    """Alpha of CutMix; 0: none. Where both are on, each group has one of them by the toss of a coin."""
    mixing_group: int = Field(64, ge=2, multiple_of=2)
    """Consecutive images of a batch that are mixed with one another, by one draw; MAE mixes what lies on one GPU. Must
    divide a rank's share of the batch, so that the result is the same on any number of ranks."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Of the training labels."""
    random_erasing: float = Field(0.25, ge=0, le=1)
    """Probability that a rectangle of a training image is replaced by noise."""
    test_resize: int = Field(256, ge=REFERENCE_SIZE)
    """Short side before the centre crop, for an encoder of 224 px; other sizes scale it. 224: crop_pct 1.0."""
    architectures: dict[str, FinetuneChanges] = Field({})
    """What differs on some architectures, by their name."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is not less than epochs {self.epochs}")
        for name, changes in {"": FinetuneChanges(), **self.architectures}.items():
            batch, group = changes.batch_size or self.batch_size, changes.mixing_group or self.mixing_group
            if self.mixes and batch % group:
                where = f"architectures.{name}: " if name else ""
                raise ValueError(f"{where}mixing_group {group} does not divide batch_size {batch}")
        return self

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def on(self, architecture: str) -> Self:
        """The settings as they are on one architecture."""
        changes = self.architectures.get(architecture, FinetuneChanges()).model_dump(exclude_none=True)
        return type(self).model_validate(self.model_dump() | changes | {"architectures": {}})

    def resize_for(self, image_size: int) -> int:
        """Short side in pixels before a centre crop of image_size."""
        return round(self.test_resize * image_size / REFERENCE_SIZE)


class SegmentationSettings(TunedSettings):
    """UPerNet on the whole encoder for semantic segmentation, by mmsegmentation's recipe (docs/protocols.md 5)."""

    kind: Literal["segment"]
    """Semantic segmentation."""
    group: str = Field("segment", pattern=NAME)
    """Its job's name; written to evaluate/<group>."""
    iterations: int = Field(ge=1)
    """Optimisation steps."""
    warmup_iterations: int = Field(ge=0)
    """Linear warm-up from 0, then linearly to 0 (poly, power 1)."""
    crop_size: int = Field(ge=1)
    """Side in pixels of training crops and test windows, a multiple of the patch; test pictures are resized to it along
    their short side."""
    stride: int = Field(ge=1)
    """Pixels between neighbouring test windows."""
    width: int = Field(768, ge=1)
    """Channels of UPerNet's decoder."""
    auxiliary_width: int = Field(256, ge=1)
    """Channels of the auxiliary head on the third level."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary head's loss."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of channels before each head's last convolution."""
    examples: int = Field(6, ge=1)
    """Validation pictures shown in examples.png."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_iterations >= self.iterations:
            raise ValueError(
                f"warmup_iterations {self.warmup_iterations} is not less than iterations {self.iterations}"
            )
        if self.stride > self.crop_size:
            raise ValueError(f"stride {self.stride} leaves gaps between windows of crop_size {self.crop_size}")
        if self.batch_size < 2:
            raise ValueError("batch_size 1 is too small: the decoder's BatchNorm of one value per crop needs two crops")
        return self


class DetectorSettings(Closed):
    """Mask R-CNN with a simple feature pyramid; the defaults are detectron2's of ViTDet (docs/protocols.md 4)."""

    width: int = Field(256, ge=1)
    """Channels of the pyramid and of the convolutions of all heads."""
    hidden: int = Field(1024, ge=1)
    """Width of the fully connected layer of the box head."""
    window: int | None = Field(None, ge=1)
    """Side of the attention windows in patches (ViTDet: 14); the last block of every quarter sees the whole image.
    null: all blocks do."""
    relative_position: bool = False
    """ViTDet's relative positions, learned from zero; engine detectron2 only."""
    anchors_per_image: int = Field(256, ge=1)
    """Anchors that the proposal loss samples, at most half of them positive."""
    proposals_before: tuple[int, int] = (2000, 1000)
    """Best anchors of each level before non-maximum suppression, in training and in testing."""
    proposals_after: int = Field(1000, ge=1)
    """Proposals of an image after it."""
    regions_per_image: int = Field(512, ge=1)
    """Proposals that the box and mask losses sample, at most a quarter of them positive."""
    score_threshold: float = Field(0.05, ge=0, lt=1)
    """Detections below it are dropped."""
    detections_per_image: int = Field(100, ge=1)
    """The best ones are kept; COCO counts 100."""


class DetectionSettings(TunedSettings):
    """Mask R-CNN on the whole encoder for detection and instance segmentation (docs/protocols.md 4)."""

    kind: Literal["detect"]
    """Object detection and instance segmentation."""
    group: str = Field("detect", pattern=NAME)
    """Its job's name; written to evaluate/<group>."""
    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """torchvision: our loop on torchvision's parts; detectron2: its own model, trainer, mapper and evaluator, in an
    environment that has it (workflow/envs/detectron2.yml)."""
    image_size: int = Field(ge=16)
    """Side in pixels of the square that pictures are fitted into, a multiple of two patches."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: a training picture is fitted into image_size times a factor of this range, then cropped."""
    epochs: int = Field(ge=1)
    """Passes over the training images that have objects."""
    warmup_epochs: float = Field(ge=0)
    """Linear warm-up from 0, then cosine to 0."""
    detector: DetectorSettings = DetectorSettings()
    """Sizes of the heads and numbers of regions."""
    examples: int = Field(6, ge=1)
    """Validation pictures shown in examples.png."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range [{low:g}, {high:g}] must be positive and rise")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} is not less than epochs {self.epochs}")
        if self.engine == "torchvision" and self.detector.relative_position:
            raise ValueError("detector.relative_position belongs to engine: detectron2")
        if self.engine == "detectron2" and self.activation_checkpointing:
            raise ValueError("activation_checkpointing belongs to engine: torchvision")
        return self


EvaluationSettings = Annotated[
    ProbeSettings | FinetuneSettings | SegmentationSettings | DetectionSettings | CostSettings,
    Field(discriminator="kind"),
]

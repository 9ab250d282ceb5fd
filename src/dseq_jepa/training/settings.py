"""How a run is pre-trained: the recipe of an architecture (docs/protocols.md 1)."""

from typing import Literal, Self

from pydantic import Field, model_validator

from dseq_jepa.closed import Closed, DecayRate


class LearningRate(Closed):
    """Linear warm-up from `start` to `peak`, then cosine to `end`."""

    start: float = Field(ge=0)
    """Rate of the first step."""
    peak: float = Field(gt=0)
    """Rate at the end of the warm-up."""
    end: float = Field(ge=0)
    """Rate of the last step."""


class Ramp(Closed):
    """A quantity that moves from `start` (first step) to `end` (last step)."""

    start: float = Field(ge=0)
    """Value at the first step."""
    end: float = Field(ge=0)
    """Value at the last step."""


class CollapseGuard(Closed):
    """A run whose target embeddings stop differing is stopped with an explanation."""

    min_effective_rank: float = Field(1.5, ge=1)
    """RankMe of pooled targets over the batch; a constant embedding has 1."""
    min_target_std: float = Field(1e-4, ge=0)
    """Standard deviation over the batch of the pooled target embedding, mean over the width."""
    patience: int = Field(5, ge=1)
    """Consecutive log intervals below either bound before the run stops."""


class Recipe(Closed):
    """Optimisation of one pre-training run."""

    epochs: int = Field(ge=1)
    """Passes over the training images."""
    batch_size: int = Field(ge=2)
    """Images per optimisation step over all ranks and accumulated parts."""
    accumulation: int = Field(1, ge=1)
    """Parts that a rank's share of the batch is cut into; contrastive methods refuse more than one."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Area of the RandomResizedCrop as a fraction of the image (the authors' configs)."""
    learning_rate: LearningRate
    """AdamW's rate; absolute, not scaled with the batch."""
    warmup_epochs: float = Field(ge=0)
    """Length of the linear warm-up."""
    weight_decay: Ramp
    """Cosine from start to end; none on biases, 1-d weights, class and mask tokens."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates."""
    ema: Ramp = Ramp(start=0.996, end=1.0)
    """Momentum of the target encoder: linear, m_t = start + (end - start) t / (T - 1)."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: autocast; EMA weights and optimizer state stay fp32."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, equal results."""
    sharding: Literal["none", "fsdp"] = "none"
    """none: DistributedDataParallel; fsdp: fully_shard (ViT-H)."""
    save_every_minutes: float = Field(10.0, gt=0)
    """Longest work that a kill without warning can cost."""
    log_every: int = Field(10, ge=1)
    """Steps between journal points; the device's NaN flag is read here."""
    collapse: CollapseGuard = CollapseGuard()
    """When a run counts as collapsed."""

    @model_validator(mode="after")
    def _sane(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is [{low}, {high}], expected 0 < low <= high <= 1")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} is longer than the {self.epochs} epochs")
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        if max(self.ema.start, self.ema.end) > 1:
            raise ValueError("ema is a momentum: at most 1")
        return self


class SelectionSettings(Closed):
    """Which checkpoints are kept and how the best is chosen (docs/protocols.md 2)."""

    keep_percent: tuple[int, ...] = (25, 50, 75, 100)
    """Checkpoints kept, in percent of the epochs."""
    neighbours: int = Field(20, ge=1)
    """k of the weighted kNN score."""
    temperature: float = Field(0.07, gt=0)
    """Of the neighbours' weights, exp(similarity / temperature)."""
    bank_fraction: float = Field(0.1, gt=0, lt=1)
    """Part of the training set that the neighbours come from."""
    query_fraction: float = Field(0.02, gt=0, lt=1)
    """Held-out part of the training set that is classified; never validation images."""

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if self.bank_fraction + self.query_fraction > 1:
            raise ValueError(
                f"bank_fraction {self.bank_fraction} and query_fraction {self.query_fraction} are disjoint parts of "
                "the training set: together at most 1"
            )
        return self

    @model_validator(mode="after")
    def _percent(self) -> Self:
        if tuple(sorted(set(self.keep_percent))) != self.keep_percent or not self.keep_percent:
            raise ValueError(f"keep_percent {self.keep_percent} must rise without repeats")
        if self.keep_percent[0] < 1 or self.keep_percent[-1] != 100:
            raise ValueError(f"keep_percent {self.keep_percent} must lie in 1..100 and end with 100")
        return self

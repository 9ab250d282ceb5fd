"""What a method is: the settings of one JEPA step. A new variant is a new entry, not new code.

| row            | generation     | prediction | class_token | curriculum | contrastive |
| -------------- | -------------- | ---------- | ----------- | ---------- | ----------- |
| I-JEPA         | uniform        | flat       | off         | off        | none        |
| C-JEPA         | uniform        | flat       | off         | off        | {}          |
| DSeq-JEPA      | discriminative | sequential | on          | on         | none        |
| DSeq-C-JEPA    | discriminative | sequential | on          | on         | {}          |
"""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from dseq_jepa.closed import Closed

Interval = tuple[float, float]


class BlockSettings(Closed):
    """I-JEPA's random blocks (docs/protocols.md 1.1; I-JEPA paper, section 4)."""

    targets: int = Field(4, ge=1)
    """Target blocks per image."""
    target_scale: Interval = (0.15, 0.2)
    """Area of a target block as a fraction of the image."""
    target_aspect: Interval = (0.75, 1.5)
    """Height over width of a target block."""
    context_scale: Interval = (0.85, 1.0)
    """Area of the context block as a fraction of the image, before the targets are cut out."""
    min_context: int = Field(11, ge=1)
    """Patches that must stay visible (the public code: more than 10)."""

    @model_validator(mode="after")
    def _intervals(self) -> Self:
        for name in ("target_scale", "target_aspect", "context_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high or (name.endswith("scale") and high > 1):
                raise ValueError(
                    f"{name} is [{low}, {high}], expected 0 < low <= high" + (" <= 1" if "scale" in name else "")
                )
        return self


class RegionSettings(Closed):
    """Saliency -> Otsu -> components -> ranked regions (paper 3.2, A.1; docs/protocols.md 1.2)."""

    count: int = Field(5, ge=2)
    """N: regions per image at most, the remainder included (paper A.1)."""
    min_patches: int = Field(10, ge=1)
    """Smaller components are dropped (paper A.1)."""
    min_region_scale: float = Field(0.0, ge=0, le=1)
    """Components below this fraction of the image are dropped. Unbounded [?]: the paper's value is lost."""
    max_region_scale: float = Field(1.0, gt=0, le=1)
    """Components above this fraction of the image are dropped. Unbounded [?]: the paper's value is lost."""
    saliency: Literal["cls", "gradcam"] = "cls"
    """Where the map comes from. cls: the class token's similarity to the patches; gradcam: label-free Grad-CAM (paper
    A.1, Table 7), for another pass of context encoder and predictor."""
    backend: Literal["batched", "skimage"] = "batched"
    """`skimage` is the slow reference that `batched` equals on every map."""

    def allows(self, area: float, patches: int) -> bool:
        """Whether a component of `area` of an image's `patches` is neither too small nor too large."""
        scale = area / patches
        return area >= self.min_patches and self.min_region_scale <= scale <= self.max_region_scale

    def most_components(self, grid: int) -> int:
        """At most so many components can be found at once on a grid x grid map; 0: none can ever.

        Components do not touch, not even at corners. So each of the ceil(grid / 2)^2 squares of 2 x 2 patches has
        patches of one component only, and components stay disjoint when each is widened by a row and a column: of a
        patches at least a + ceil(2 sqrt(a)) + 1 places of (grid + 1)^2 (the Brunn-Minkowski inequality on a lattice).
        """
        patches = grid * grid  # a component of all of them has no background to stand out from
        smallest = next((area for area in range(1, patches) if self.allows(area, patches)), None)
        if smallest is None:
            return 0
        widened = smallest + math.isqrt(4 * smallest - 1) + 2
        squares = -(-smallest // 4)
        return min((grid + 1) ** 2 // widened, (-(-grid // 2)) ** 2 // squares)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_region_scale > self.max_region_scale:
            raise ValueError(
                f"min_region_scale {self.min_region_scale} is above max_region_scale {self.max_region_scale}"
            )
        return self


class ContrastiveSettings(Closed):
    """VICReg on pooled predictions (docs/protocols.md 1.4; the C-JEPA paper, section 3)."""

    weight: float = Field(0.001, gt=0)
    """Factor of the whole regulariser in the loss."""
    invariance: float = Field(25.0, ge=0)
    """Weight of the mean squared error between prediction and target."""
    variance: float = Field(25.0, ge=0)
    """Weight of the hinge that keeps the standard deviation of every dimension at 1 or more."""
    covariance: float = Field(1.0, ge=0)
    """Weight of the squared covariances between dimensions."""
    projector_width: int = Field(3072, ge=1)
    """Width of all three layers of the projector."""


class JepaSettings(Closed):
    """One row of a table: which regions, in which order, predicted how."""

    kind: Literal["jepa"] = "jepa"
    """Family of the method; all rows of the paper's own are one family."""
    label: str
    """The name in tables."""
    class_token: bool
    """An auxiliary class token in both encoders (on for every DSeq row)."""
    generation: Literal["uniform", "discriminative"]
    """Where: random blocks, or salient regions."""
    prediction: Literal["flat", "sequential"]
    """All targets at once, or region i+1 from regions 1..i."""
    order: Literal["saliency", "random", "spatial"] = "saliency"
    """Order of R_1..R_{M-1}; the remainder stays last (docs/protocols.md 1.5)."""
    truncate: int | None = Field(None, ge=2)
    """Only the steps that predict regions up to this rank (Table 5, "truncating": 3)."""
    realisation: Literal["causal", "prefix"] = "causal"
    """One rank-causal pass, or every prefix encoded on its own (docs/protocols.md 1.3)."""
    curriculum: bool = False
    """Use salient regions with probability t/(T-1), else random blocks (paper 3.2, Algorithm 1)."""
    blocks: BlockSettings = BlockSettings()
    """The random blocks, also of images that have no salient region."""
    regions: RegionSettings = RegionSettings()
    """The salient regions (generation: discriminative)."""
    contrastive: ContrastiveSettings | None = None
    """VICReg beside the prediction loss (the C-JEPA rows); null: none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.generation == "discriminative" and self.regions.saliency == "cls" and not self.class_token:
            raise ValueError(
                "generation: discriminative reads the class token's saliency; set class_token: true, or "
                "regions.saliency: gradcam"
            )
        if self.generation == "uniform" and self.curriculum:
            raise ValueError("curriculum: true chooses between regions and blocks; it needs generation: discriminative")
        if self.generation == "uniform" and self.order != "saliency":
            raise ValueError(
                f"order: {self.order} is of salient regions; random blocks are in random order as they are"
            )
        if self.prediction == "flat":
            for key, default in (("order", "saliency"), ("truncate", None), ("realisation", "causal")):
                if getattr(self, key) != default:
                    raise ValueError(f"{key} belongs to prediction: sequential; flat prediction has no order")
        if self.truncate is not None and self.truncate >= self._ranks:
            raise ValueError(
                f"truncate {self.truncate} leaves nothing out: an image has at most {self._ranks} ranks, the remainder "
                "included; give less or leave it out"
            )
        return self

    @property
    def _ranks(self) -> int:
        """N: ranks of an image at most, the remainder included, when they are predicted one after another."""
        return self.regions.count if self.generation == "discriminative" else self.blocks.targets + 1


MethodSettings = JepaSettings

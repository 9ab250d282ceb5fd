"""What an architecture is: the encoder's grid, width and depth, and its predictor."""

from typing import Self

from pydantic import Field, model_validator

from dseq_jepa.closed import Closed


class PredictorSettings(Closed):
    """The narrow ViT that predicts target embeddings (docs/protocols.md 1; I-JEPA paper, appendix A)."""

    width: int = Field(384, ge=1)
    """Width of a token inside the predictor; a multiple of 4 and of its heads."""
    depth: int = Field(6, ge=1)
    """Transformer blocks."""
    heads: int | None = Field(None, ge=1)
    """Attention heads; as many as the encoder has unless given."""


class ArchitectureSettings(Closed):
    """A plain ViT: square images, square patches, pre-norm blocks with MLP ratio 4."""

    label: str
    """The name in tables, such as ViT-B/16."""
    image_size: int = Field(ge=1)
    """Side of the square input in pixels."""
    patch_size: int = Field(ge=1)
    """Side of a patch in pixels; must divide image_size."""
    width: int = Field(ge=1)
    """D: width of a token; a multiple of 4 and of heads."""
    depth: int = Field(ge=1)
    """Transformer blocks."""
    heads: int = Field(ge=1)
    """Attention heads; must divide width."""
    saliency_block: int = Field(ge=1)
    """K, 1-based: the block whose class token and patches give the saliency (paper A.1: 10 of 12)."""
    predictor: PredictorSettings
    """The predictor that is pre-trained with this encoder."""
    recipe: str
    """Which entry of `recipes` pre-trains this architecture."""
    timm: str | None = None
    """timm's name of the same encoder, written into exports so that timm.create_model can be called."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size {self.image_size}; "
                f"the nearest sizes that work are {self._nearest_sizes()}"
            )
        for name, width, heads in (
            ("heads", self.width, self.heads),
            ("predictor heads", self.predictor.width, self.predictor_heads),
        ):
            if width % heads:
                raise ValueError(f"{heads} {name} do not divide the width {width}")
        for name, width in (("width", self.width), ("predictor.width", self.predictor.width)):
            if width % 4:
                raise ValueError(f"{name} {width} is not a multiple of 4, as 2-D sin-cos positions need")
        if self.saliency_block > self.depth:
            raise ValueError(f"saliency_block {self.saliency_block} is beyond the {self.depth} blocks")
        return self

    def _nearest_sizes(self) -> str:
        below = self.image_size // self.patch_size * self.patch_size
        return f"{below} and {below + self.patch_size}" if below else str(self.patch_size)

    @property
    def predictor_heads(self) -> int:
        """Heads of the predictor: the encoder's unless set."""
        return self.predictor.heads or self.heads

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """T: patches per image."""
        return self.grid**2

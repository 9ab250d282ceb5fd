"""What a figure shows: one entry of `figures`, by kind (docs/protocols.md 8)."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import Field

from dseq_jepa.closed import Closed
from dseq_jepa.methods.settings import MethodSettings

MAX_CLUSTERS = 5
"""As many as there are lightnesses to tell clusters apart in grey."""


class _OfModel(Closed):
    """A figure of one pre-trained model, the first seed of it."""

    method: str
    """Which entry of `methods`."""
    architecture: str
    """Which entry of `architectures`."""
    split: Literal["train", "val"] = "train"
    """Where the pictures come from, in the data set that is pre-trained on."""


class PanelsSettings(_OfModel):
    """Image, saliency, Otsu mask, ranked regions, beside the random blocks of another method (Figures 2, 3)."""

    kind: Literal["panels"]
    """Kind of figure."""
    beside: str
    """Method whose random blocks are shown for the same pictures, such as i-jepa; it is not trained for this."""
    percent: int = 100
    """Which kept checkpoint."""
    images: int = Field(4, ge=1, le=12)
    """Pictures, one line each."""


class StepLossSettings(_OfModel):
    """Mean loss of each prediction step, Top-2 to Top-N (Figure 4)."""

    kind: Literal["step-loss"]
    """Kind of figure."""
    percent: int = 75
    """Which kept checkpoint (the paper: epoch 450 of 600)."""
    images: int = Field(10_000, ge=2)
    """Pictures that the mean is over (the paper: 10,000)."""


class ClustersSettings(_OfModel):
    """Similarity maps and patch clusters at every kept checkpoint (Figures 6, 7)."""

    kind: Literal["clusters"]
    """Kind of figure."""
    clusters: int = Field(4, ge=2, le=MAX_CLUSTERS)
    """Clusters of an image's patches (the paper: 4 on training images, 5 on held-out ones)."""
    images: int = Field(4, ge=1, le=12)
    """Pictures, one line each."""


class CourseSettings(Closed):
    """Regions over pre-training: how many, how large, how often none, and how often they are used."""

    kind: Literal["course"]
    """Kind of figure."""
    methods: list[str] = Field(min_length=1, max_length=6)
    """Entries of `methods` that find salient regions; all seeds of each."""
    architecture: str
    """Which entry of `architectures`."""


FigureSettings = Annotated[
    PanelsSettings | StepLossSettings | ClustersSettings | CourseSettings, Field(discriminator="kind")
]


def methods_of(figure: FigureSettings) -> list[str]:
    """The methods that a figure names."""
    if isinstance(figure, CourseSettings):
        return figure.methods
    return [figure.method, figure.beside] if isinstance(figure, PanelsSettings) else [figure.method]


def misfits(
    figure: FigureSettings, methods: Mapping[str, MethodSettings], keep_percent: tuple[int, ...]
) -> Iterable[tuple[str, str]]:
    """Keys of a figure whose values cannot be drawn, each with why; names that are not defined are left out."""
    if isinstance(figure, PanelsSettings | StepLossSettings) and figure.percent not in keep_percent:
        yield "percent", f"no checkpoint is kept at {figure.percent}%; selection.keep_percent has {[*keep_percent]}"
    regional = figure.methods if isinstance(figure, CourseSettings) else [figure.method]
    for name in regional if not isinstance(figure, ClustersSettings) else []:
        method = methods.get(name)
        if method and method.generation != "discriminative":
            yield "method", f"{name} finds no salient regions, which the figure shows; name one that does"
        elif method and isinstance(figure, StepLossSettings) and method.prediction != "sequential":
            yield "method", f"{name} predicts all regions at once and has no steps; name a sequential one"

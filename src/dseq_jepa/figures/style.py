"""How figures look: colours, numbers and outlines that survive grey print and colour blindness; PNG, PDF and caption.

    with style.applied():
        figure = style.new_figure(6.0, 2.5)
        ...
        style.save(figure, out, "figure4", caption)

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/). Nothing is told by colour alone: regions and
clusters carry numbers and outlines, lines have their own dashes and markers, maps rise in lightness. H W pixels, G
patches per side.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

from dseq_jepa.files import atomically, write_atomically

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
RANKS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY, YELLOW)
"""Outlines of ranked regions and of blocks, first to last."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (3, 1)))
"""Outlines that may cross one another."""
CLUSTERS = (YELLOW, SKY, VERMILLION, "#004C7A", BLACK)
"""Fills of clusters; their lightness falls in even steps, for which the blue is a darker one."""
HEAT = "cividis"
"""Colour map of similarities: its lightness rises evenly, for colour-blind readers too."""
DPI = 200
CIRCLE = 0.17
"""Diameter of a number's circle as a part of a panel's side, about."""

Mask = NDArray[np.bool_]

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,  # text stays text
    "svg.hashsalt": "dseq-jepa",
}


@dataclass(frozen=True)
class Stroke:
    """A line that is told from others without its colour."""

    colour: str
    dashes: str
    marker: str


STROKES = (
    Stroke(BLUE, "-", "o"),
    Stroke(VERMILLION, "--", "s"),
    Stroke(GREEN, "-.", "^"),
    Stroke(ORANGE, ":", "D"),
    Stroke(PURPLE, (0, (5, 1, 1, 1, 1, 1)), "v"),  # type: ignore[arg-type]  # an offset and on-off lengths
    Stroke(BLACK, (0, (1, 1)), "x"),  # type: ignore[arg-type]
)


@contextmanager
def applied() -> Iterator[None]:
    """Our settings of matplotlib, and nobody's own, while a figure is made."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches; without pyplot, so that nothing global is left behind."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Figure, out: Path, name: str, caption: Sequence[str]) -> list[Path]:
    """Write <name>.png, <name>.pdf and <name>.caption.md; the same figure gives the same bytes.

    Args:
        figure: what to write.
        out: folder to write to.
        name: stem of the files.
        caption: sentences without any markup, so that Markdown and reStructuredText show them alike.

    """
    paths = [out / f"{name}.png", out / f"{name}.pdf", out / f"{name}.caption.md"]
    for path, kind, metadata in zip(paths, ("png", "pdf"), ({"Software": None}, {"CreationDate": None}), strict=False):
        with atomically(path) as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    write_atomically(paths[2], " ".join(caption) + "\n")
    return paths


def panel(axes: Axes, image_HWC: NDArray[Any], title: str | None = None, **shown: Any) -> None:
    """A picture or a map without ticks; `shown` goes to imshow."""
    axes.imshow(image_HWC, interpolation="nearest", **shown)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("0.6")
    if title is not None:
        axes.set_title(title)


def heat(axes: Axes, map_GG: NDArray[Any], side: int, title: str | None = None) -> None:
    """A similarity map over the area of a picture of `side` pixels, from its own least to its own greatest value."""
    panel(axes, map_GG, title, cmap=HEAT, extent=(-0.5, side - 0.5, side - 0.5, -0.5))


def pale(image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as a light grey ground for outlines."""
    grey_HW = image_HWC @ np.array([0.299, 0.587, 0.114])
    return np.repeat((115 + 0.55 * grey_HW)[..., None], 3, axis=2).round().astype(np.uint8)


def enlarged(grid_GG: NDArray[Any], patch: int) -> NDArray[Any]:
    """Values of patches as values of pixels, (G * patch, G * patch)."""
    return np.repeat(np.repeat(grid_GG, patch, axis=0), patch, axis=1)


def outline(axes: Axes, mask_GG: Mask, patch: int, colour: str, dashes: Any = "-") -> None:
    """The border of a set of patches, along their edges, over a picture in pixels."""
    ringed = np.pad(enlarged(mask_GG, patch), 1)
    for line_N2 in find_contours(ringed.astype(float), 0.5):
        axes.plot(
            line_N2[:, 1] - 1, line_N2[:, 0] - 1, color=colour, linestyle=dashes, linewidth=1.3,
            path_effects=[withStroke(linewidth=2.4, foreground="white")], clip_on=False,
        )  # fmt: skip


def fill(axes: Axes, mask_GG: Mask, patch: int, colour: str, alpha: float) -> None:
    """Tint a set of patches."""
    tint_HWC = np.zeros((*enlarged(mask_GG, patch).shape, 4))
    tint_HWC[enlarged(mask_GG, patch)] = (*_rgb(colour), alpha)
    axes.imshow(tint_HWC, interpolation="nearest")


def rank_colours(count: int) -> list[str]:
    """Of ranked regions or blocks, however many there are; those that share a colour differ in their number."""
    return [RANKS[k % len(RANKS)] for k in range(count)]


def numbers(axes: Axes, masks_KGG: Sequence[Mask], patch: int, colours: Sequence[str]) -> None:
    """1, 2, ... inside sets of patches, where borders are far and no other number stands; none in an empty set."""
    taken: list[tuple[float, float]] = []
    for k, mask_GG in enumerate(masks_KGG):
        if mask_GG.any():
            taken.append(_place(mask_GG, taken))
            y, x = ((place + 0.5) * patch - 0.5 for place in taken[-1])
            axes.text(
                x, y, str(k + 1), ha="center", va="center", fontsize=6.5, fontweight="bold", color="black",
                bbox={"boxstyle": "circle,pad=0.18", "facecolor": "white", "edgecolor": colours[k], "linewidth": 1.0},
            )  # fmt: skip


def _place(mask_GG: Mask, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Row and column for a number: deep inside, then near the middle, and not on another number if there is room."""
    depth_GG = ndimage.distance_transform_edt(np.pad(mask_GG, 1))[1:-1, 1:-1]
    places_N2 = np.argwhere(mask_GG)
    from_middle_N = np.hypot(*(places_N2 - places_N2.mean(0)).T)
    on_another_N = np.zeros(len(places_N2), np.bool_)
    for place in taken:
        on_another_N |= np.hypot(*(places_N2 - place).T) < CIRCLE * len(mask_GG)
    row, column = places_N2[np.lexsort((from_middle_N, -depth_GG[mask_GG], on_another_N))[0]]
    return float(row), float(column)


def clusters(axes: Axes, labels_GG: NDArray[np.int64], patch: int, title: str | None = None) -> None:
    """Clusters in their colours, each with its number in its largest connected part."""
    colours = np.array([_rgb(colour) for colour in CLUSTERS])
    panel(axes, enlarged(colours[labels_GG], patch), title)
    largest = []
    for label in range(labels_GG.max() + 1):
        parts_GG, count = ndimage.label(labels_GG == label)
        sizes = np.bincount(parts_GG.ravel(), minlength=count + 1)[1:]
        largest.append(parts_GG == 1 + sizes.argmax() if count else np.zeros_like(labels_GG, np.bool_))
    numbers(axes, largest, patch, [BLACK] * len(largest))


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return red, green, blue

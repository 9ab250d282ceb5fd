"""A page of pictures with the true objects on the left and the predicted ones on the right.

    draw_examples(Path("examples.png"), part, {0: predictions_of_picture_0, 3: ...})

Boxes, masks and names share a colour per category. Of the predictions as many are drawn as there are true objects, the
best ones with their scores: a short training is seldom sure, and a threshold would leave its pictures empty.
"""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.coco import CocoPart
from dseq_jepa.evaluation.detection.average_precision import Prediction
from dseq_jepa.evaluation.detection.batches import read_matching
from dseq_jepa.evaluation.detection.views import place_mask, whole
from dseq_jepa.files import atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 15
_GOLDEN = 0.618033988749895
_PAIRS_PER_ROW = 2
_ALPHA = 0.45


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One object as it is drawn."""

    label: int
    box: Sequence[float]
    """Left, top, width and height."""
    mask_HW: NDArray[np.uint8]
    text: str


def draw_examples(path: Path, part: CocoPart, predictions: Mapping[int, Sequence[Prediction]]) -> None:
    """Write the page as PNG.

    Args:
        path: where.
        part: pictures and true objects.
        predictions: by position of the picture in the split; these pictures are shown, in this order.

    """
    from matplotlib.figure import Figure

    columns = 2 * min(_PAIRS_PER_ROW, len(predictions))
    rows = -(-len(predictions) // _PAIRS_PER_ROW)
    figure = Figure(figsize=(3.2 * columns, 3.0 * rows + 0.3), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for pair, (index, found) in enumerate(predictions.items()):
        pixels_HWC = read_matching(part, index)
        truth = _truth(part, index)
        best = _best(part, index, found, min(MOST_DRAWN, max(1, len(truth))))
        _draw(axes[2 * pair], pixels_HWC, truth, "truth")
        _draw(
            axes[2 * pair + 1], pixels_HWC, best, f"predicted: the {len(best)} best" if best else "predicted: nothing"
        )
    for empty in axes[2 * len(predictions) :]:
        empty.set_axis_off()
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})  # equal pages give equal bytes


def _truth(part: CocoPart, index: int) -> list[_Drawn]:
    image, names = part.images[index], _names(part)
    return [
        _Drawn(
            part.labels[record["category_id"]],
            record["bbox"],
            place_mask(record["segmentation"], image.height, image.width, whole_of(part, index)),
            names[record["category_id"]] + (" (crowd)" if record["iscrowd"] else ""),
        )
        for record in part.objects[index]
    ]


def _best(part: CocoPart, index: int, predictions: Sequence[Prediction], count: int) -> list[_Drawn]:
    image, names = part.images[index], _names(part)
    best = sorted(predictions, key=lambda one: -one["score"])[:count]
    return [
        _Drawn(
            part.labels[one["category_id"]],
            one["bbox"],
            place_mask(one["segmentation"], image.height, image.width, whole_of(part, index)),
            f"{names[one['category_id']]} {100 * one['score']:.0f}%",
        )
        for one in best
    ]


def whole_of(part: CocoPart, index: int) -> Any:
    """The placement that leaves a picture as it is."""
    image = part.images[index]
    return whole(image.height, image.width, max(image.height, image.width))


def _names(part: CocoPart) -> dict[int, str]:
    return {category.id: category.name for category in part.categories}


def _colour(label: int) -> tuple[float, float, float]:
    """Far apart for neighbouring labels."""
    return colorsys.hsv_to_rgb(label * _GOLDEN % 1.0, 0.75, 0.95)


def _draw(axes: "Axes", pixels_HWC: NDArray[np.uint8], objects: Sequence[_Drawn], title: str) -> None:
    from matplotlib.patches import Rectangle

    shown_HWC = pixels_HWC / 255.0
    for one in objects:
        inside_HW = one.mask_HW.astype(bool)
        shown_HWC[inside_HW] = (1 - _ALPHA) * shown_HWC[inside_HW] + _ALPHA * np.asarray(_colour(one.label))
    height, width = pixels_HWC.shape[:2]
    axes.imshow(shown_HWC, interpolation="antialiased", extent=(0, width, height, 0))
    for one in objects:
        left, top, box_width, box_height = one.box
        colour = _colour(one.label)
        axes.add_patch(Rectangle((left, top), box_width, box_height, fill=False, edgecolor=colour, linewidth=1.4))
        axes.text(
            max(left, 0),
            max(top, 0),
            one.text,
            fontsize=6.5,
            color="black",
            verticalalignment="bottom" if top > 0.06 * height else "top",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
            clip_on=True,
        )
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(title, fontsize=9)

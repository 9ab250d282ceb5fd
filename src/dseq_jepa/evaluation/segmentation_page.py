"""The page that people look at: test pictures, their true and their predicted label maps, and a legend.

draw_page(examples, class_names, Path("examples.png"))
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.ade20k import IGNORED
from dseq_jepa.files import write_atomically

GREY = (0.78, 0.78, 0.78)
"""Of pixels without a class in the truth."""
MOST_NAMED = 24
"""Classes in the legend, by their area."""
_COLUMNS = ("picture", "truth", "prediction")
_LEGEND_COLUMNS = 6
_DPI = 130
_GREYS = (14, 15, 56, 57, 58, 59)
"""Of the three colour maps one after the other: left to GREY."""


@dataclass(frozen=True, eq=False)
class Example:
    """One test picture."""

    name: str
    picture_HWC: NDArray[np.uint8]
    truth_HW: NDArray[np.uint8]
    predicted_HW: NDArray[np.uint8]


def draw_page(examples: Sequence[Example], class_names: Sequence[str], path: Path) -> None:
    """Write a PNG: one row per example, and below them the colours of the classes that are seen most.

    Args:
        examples: at least one.
        class_names: by class.
        path: of the file.

    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    seen, colours_K3 = coloured(examples, len(class_names))
    named = seen[:MOST_NAMED]
    legend_rows = -(-(len(named) + 1) // _LEGEND_COLUMNS)
    aspect = max(example.picture_HWC.shape[0] / example.picture_HWC.shape[1] for example in examples)
    cell = 3.0
    foot = 0.3 + 0.24 * legend_rows
    height = 0.35 + len(examples) * (cell * aspect + 0.08) + foot
    figure = Figure(figsize=(3 * cell + 0.2, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(examples), 3, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.3 / height, bottom=foot / height, wspace=0.02, hspace=0.03)
    for row, example in zip(axes, examples, strict=True):
        maps = (_painted(labels, colours_K3) for labels in (example.truth_HW, example.predicted_HW))
        for axis, pixels, title in zip(row, (example.picture_HWC, *maps), _COLUMNS, strict=True):
            axis.imshow(pixels, interpolation="nearest" if title != "picture" else None)
            axis.set_axis_off()
            if example is examples[0]:
                axis.set_title(title, fontsize=11)
    handles = [Patch(color=tuple(colours_K3[k]), label=class_names[k]) for k in named]
    handles.append(Patch(color=GREY, label="no class"))
    figure.legend(
        handles=handles, loc="lower center", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=9, handlelength=1.2
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # equal pictures give equal bytes
    write_atomically(path, buffer.getvalue())


def coloured(examples: Sequence[Example], classes: int) -> tuple[list[int], NDArray[np.float64]]:
    """The classes that are seen, by area, those of the truth first; and a colour for each of all K, (K, 3).

    The truth decides, so that pages of different models about the same pictures agree.
    """
    from matplotlib import colormaps

    true_K = _areas([example.truth_HW for example in examples], classes)
    predicted_K = _areas([example.predicted_HW for example in examples], classes)
    order = np.lexsort((-predicted_K, -true_K))
    maps = [colormaps[name] for name in ("tab20", "tab20b", "tab20c")]
    wheel = np.concatenate([colours(np.arange(20))[:, :3] for colours in maps])
    wheel = wheel[[k for k in range(len(wheel)) if k not in _GREYS]]
    table_K3 = np.empty((classes, 3))
    table_K3[order] = wheel[np.arange(classes) % len(wheel)]
    return [k for k in order.tolist() if true_K[k] or predicted_K[k]], table_K3


def _areas(maps: Sequence[NDArray[np.uint8]], classes: int) -> NDArray[np.int64]:
    """(K,) pixels of each class."""
    return np.bincount(np.concatenate([label_HW.ravel() for label_HW in maps]), minlength=IGNORED + 1)[:classes]


def _painted(label_HW: NDArray[np.uint8], colours_K3: NDArray[np.float64]) -> NDArray[np.float64]:
    table = np.empty((IGNORED + 1, 3))
    table[:] = GREY
    table[: len(colours_K3)] = colours_K3
    return table[label_HW]

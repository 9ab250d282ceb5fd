"""Where and in what order: image, saliency, Otsu's mask and ranked regions, beside I-JEPA's blocks (Figures 2 and 3).

dseq-jepa figures --config configs/demo.yaml --figure figure2

B images, G patches per side, R groups.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dseq_jepa.figures import style
from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.kept import Kept, Pictures, as_input, open_kept, part_in_words, reading, some_pictures
from dseq_jepa.figures.settings import PanelsSettings
from dseq_jepa.methods.blocks import draw_blocks
from dseq_jepa.methods.regions import foreground_by_scikit_image

INCHES = 1.3
"""Side of a panel."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the method finds in some pictures, and what the other one would show and predict of them."""

    saliency_BGG: NDArray[np.float32]
    mask_BGG: NDArray[np.bool_]
    """Above Otsu's threshold; small components included, which are no regions."""
    ranks_BGG: NDArray[np.int64]
    """1: most salient; the greatest: the remainder; 0: no region."""
    context_BGG: NDArray[np.bool_]
    """What the other method shows."""
    targets_BRGG: NDArray[np.bool_]
    """What it predicts."""


def draw_panels(job: FigureJob, figure: PanelsSettings, results: Path, out: Path) -> list[Path]:
    """Write the figure; see `write_figure`."""
    with reading(job) as device:
        kept = open_kept(job, job.models[0], figure.percent, results, device)
        pictures = some_pictures(job, figure.split, figure.images)
        found = find(job, figure, kept, pictures, device)
    titles = (
        "image",
        "saliency",
        "Otsu's mask",
        f"{job.methods[figure.method].label}:\nranked regions",
        f"{job.methods[figure.beside].label}:\nrandom blocks",
    )
    with style.applied():
        lines = len(pictures.names)
        drawn = style.new_figure(INCHES * len(titles), INCHES * lines + 0.4)
        grid = drawn.subplots(lines, len(titles), squeeze=False)
        for i, image_HWC in enumerate(pictures.drawable()):
            _draw_line(list(grid[i]), image_HWC, found, i, job.architecture.patch_size)
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title)
        return style.save(drawn, out, job.name, list(_caption(job, figure, kept, pictures, found)))


def find(job: FigureJob, figure: PanelsSettings, kept: Kept, pictures: Pictures, device: torch.device) -> Found:
    """Maps and regions of the method's own step, the mask by scikit-image, and the other method's blocks."""
    side = job.architecture.grid
    step = kept.method(as_input(pictures.images_BCHW, device), pictures.ids_B, kept.moment)
    saliency_BGG = step.saliency_BT.float().cpu().numpy().reshape(-1, side, side)
    blocks = job.methods[figure.beside].blocks
    context_BT, targets_BRT = draw_blocks(side, blocks, kept.moment.seed, kept.moment.step, pictures.ids_B)
    return Found(
        saliency_BGG=saliency_BGG,
        mask_BGG=np.stack([foreground_by_scikit_image(map_GG)[1] for map_GG in saliency_BGG]),
        ranks_BGG=step.ranks_BT.cpu().numpy().reshape(-1, side, side),
        context_BGG=context_BT.reshape(-1, side, side),
        targets_BRGG=targets_BRT.reshape(len(targets_BRT), -1, side, side),
    )


def _draw_line(line: list[Axes], image_HWC: NDArray[np.uint8], found: Found, i: int, patch: int) -> None:
    """The panels of one picture."""
    style.panel(line[0], image_HWC)
    style.heat(line[1], found.saliency_BGG[i], len(image_HWC))
    style.panel(line[2], style.enlarged(found.mask_BGG[i], patch), cmap="gray", vmin=0, vmax=1)
    _draw_regions(line[3], image_HWC, found.ranks_BGG[i], patch)
    _draw_blocks(line[4], image_HWC, found.context_BGG[i], found.targets_BRGG[i], patch)


def _draw_regions(axes: Axes, image_HWC: NDArray[np.uint8], ranks_GG: NDArray[np.int64], patch: int) -> None:
    """R_1..R_M in their order; the remainder R_M is neither tinted nor outlined."""
    style.panel(axes, style.pale(image_HWC))
    last = int(ranks_GG.max())
    if last == 0:
        axes.set_xlabel("no region", labelpad=1)
    colours = style.rank_colours(last - 1)
    for rank, colour in enumerate(colours, start=1):
        style.fill(axes, ranks_GG == rank, patch, colour, 0.35)
        style.outline(axes, ranks_GG == rank, patch, colour)
    style.numbers(axes, [ranks_GG == rank for rank in range(1, last + 1)], patch, [*colours, style.BLACK])


def _draw_blocks(
    axes: Axes,
    image_HWC: NDArray[np.uint8],
    context_GG: NDArray[np.bool_],
    targets_RGG: NDArray[np.bool_],
    patch: int,
) -> None:
    """The context as it is, what nobody sees in white, and the target blocks outlined, which may overlap."""
    shown_HW1 = style.enlarged(context_GG, patch)[..., None]
    style.panel(axes, np.where(shown_HW1, image_HWC, 255).astype(np.uint8))
    colours = style.rank_colours(len(targets_RGG))
    for target_GG, colour, dashes in zip(targets_RGG, colours, itertools.cycle(style.DASHES), strict=False):
        style.outline(axes, target_GG, patch, colour, dashes)
    style.numbers(axes, list(targets_RGG), patch, colours)


def _caption(job: FigureJob, figure: PanelsSettings, kept: Kept, pictures: Pictures, found: Found) -> Iterable[str]:
    label, beside = job.methods[figure.method].label, job.methods[figure.beside].label
    yield (
        f"Where to predict and in what order: {label} ({job.architecture.label}, {kept.label}) beside the random "
        f"blocks of {beside}, for the same {part_in_words(figure.split)}."
    )
    if job.miniature:
        yield "The pictures are generated and the encoder is small and briefly trained."
    yield (
        "Saliency: similarity of the class token to every patch at the block that the method reads, from low (dark) to "
        "high (light), each map on its own scale."
        if job.methods[figure.method].regions.saliency == "cls"
        else "Saliency: Grad-CAM of the prediction loss, from low (dark) to high (light), each map on its own scale."
    )
    yield (
        "Otsu's mask: white patches lie above the threshold; connected parts of fewer than "
        f"{job.methods[figure.method].regions.min_patches} patches are dropped."
    )
    yield "Ranked regions: 1 is the most salient and the first context, the last is the remainder of the image."
    yield (
        "Random blocks: the context is shown, hidden patches are white, dashed numbers are the target blocks, which "
        "are predicted all at once and without an order."
    )
    counts = ", ".join(str(int(ranks_GG.max())) for ranks_GG in found.ranks_BGG)
    yield f"Regions found, the remainder included, top to bottom: {counts}."
    yield f"Pictures: {', '.join(pictures.names)}."

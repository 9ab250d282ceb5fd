"""How hard each step of the sequence is: mean loss of Top-2 to Top-N over many images (Figure 4).

dseq-jepa figures --config configs/demo.yaml --figure figure4

The loss is the method's own, at a kept checkpoint, over whole images instead of training crops. N images, S steps: step
i predicts region i + 1 from regions 1..i; an image with M regions has M - 1 of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dseq_jepa.data.loaders import evaluation_steps
from dseq_jepa.errors import UserError
from dseq_jepa.figures import style
from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.kept import BATCH, Kept, as_input, batches, chosen, open_kept, part_in_words, reading
from dseq_jepa.figures.settings import StepLossSettings
from dseq_jepa.progress import Progress

NORMAL_95 = 1.959964
FEWEST = 10
"""A mean over fewer images is not drawn: it says nothing."""


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Every image's loss per step."""

    loss_NS: NDArray[np.float64]
    """NaN for a step that the image lacks; only images that have a region."""
    regions_N: NDArray[np.int64]
    """M: regions of each image, the remainder included."""
    without_region: int
    """Images that were looked at and have none."""

    def summary(self, rows_N: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Of some images: mean, half-width of its 95% interval (normal), and number of images, (S,) each."""
        chosen_NS = self.loss_NS[rows_N]
        count_S = np.isfinite(chosen_NS).sum(0)
        filled = np.maximum(count_S, 1)
        mean_S = np.where(count_S > 0, np.nansum(chosen_NS, axis=0) / filled, np.nan)
        square_S = np.nansum((chosen_NS - mean_S) ** 2, axis=0) / np.maximum(count_S - 1, 1)
        half_S = np.where(count_S > 1, NORMAL_95 * np.sqrt(square_S / filled), np.nan)
        return mean_S, half_S, count_S


def draw_step_losses(job: FigureJob, figure: StepLossSettings, results: Path, out: Path) -> list[Path]:
    """Write the figure; see `write_figure`."""
    with reading(job) as device:
        kept = open_kept(job, job.models[0], figure.percent, results, device)
        losses = measure(job, figure, kept, device)
    if not len(losses.loss_NS):
        raise UserError(
            f"{job.name}: none of {losses.without_region:,} images has a salient region at {figure.percent}% of the "
            f"epochs, so there is no step to show; lower methods.{figure.method}.regions.min_patches."
        )
    with style.applied():
        drawn = style.new_figure(3.6, 2.7)
        _draw(drawn.subplots(), losses)
        return style.save(drawn, out, job.name, list(_caption(job, figure, kept, losses)))


def measure(job: FigureJob, figure: StepLossSettings, kept: Kept, device: torch.device) -> StepLosses:
    """Every image's loss per step, in the order of the images."""
    split, ids_N = chosen(job, figure.split, figure.images)
    losses, regions, without = [], [], 0
    with Progress(evaluation_steps(len(ids_N), BATCH), f"{job.name}: losses of {len(ids_N):,} images") as progress:
        for batch in batches(job, split, ids_N):
            step = kept.method(as_input(batch.images_BCHW, device), batch.ids_B.numpy(), kept.moment)
            used_B = step.discriminative_B.cpu().numpy()
            losses.append(step.group_loss_BG.double().cpu().numpy()[used_B])
            regions.append(step.ranks_BT.amax(1).cpu().numpy()[used_B])
            without += int((~used_B).sum())
            progress.advance(len(batch.ids_B))
    steps = job.methods[figure.method].regions.count - 1  # batches of short sequences have empty groups beyond
    return StepLosses(np.concatenate(losses)[:, :steps], np.concatenate(regions), without)


def _draw(axes: Axes, losses: StepLosses) -> None:
    steps = losses.loss_NS.shape[1]
    place_S = np.arange(steps)
    everything = np.ones(len(losses.loss_NS), np.bool_)
    mean_S, half_S, count_S = losses.summary(everything)
    shown_S = count_S >= FEWEST
    x, mean, half = place_S[shown_S], mean_S[shown_S], half_S[shown_S]
    axes.fill_between(x, mean - half, mean + half, color="0.78", linewidth=0, label="95% interval")
    axes.plot(x, mean, color=style.BLACK, linewidth=2, marker="o", markersize=4, label="all images")
    for regions, stroke in zip(range(2, steps + 2), style.STROKES, strict=False):
        alike_S, _, alike = losses.summary(losses.regions_N == regions)
        if alike[0] >= FEWEST:
            axes.plot(
                place_S[: regions - 1] + 0.05 * (regions - 1), alike_S[: regions - 1], color=stroke.colour,
                linestyle=stroke.dashes, linewidth=0.9, marker=stroke.marker, markersize=3.5,
                label=f"{regions} regions ({alike[0]:,})",
            )  # fmt: skip
    axes.set_xticks(place_S, [f"Top-{i + 2}\n{count:,}" for i, count in enumerate(count_S)])
    axes.set_xlim(-0.3, steps - 0.7)
    axes.set_xlabel("predicted region, and images that have it")
    axes.set_ylabel("prediction loss (smooth L1)")
    axes.legend(frameon=False)


def _caption(job: FigureJob, figure: StepLossSettings, kept: Kept, losses: StepLosses) -> Iterable[str]:
    label = job.methods[figure.method].label
    mean_S, half_S, count_S = losses.summary(np.ones(len(losses.loss_NS), np.bool_))
    looked_at = len(losses.loss_NS) + losses.without_region
    yield (
        f"How hard each step is: mean prediction loss of {label} ({job.architecture.label}, {kept.label}) for each "
        f"region of the sequence, over {looked_at:,} {part_in_words(figure.split)}."
    )
    if job.miniature:
        yield "The pictures are generated and the encoder is small and briefly trained."
    yield (
        "Black: all images that have the region, with a 95% interval of the mean over images (grey); it leaves out the "
        "variance of pre-training."
    )
    yield (
        "An image with fewer regions has fewer steps, and its last step predicts the remainder of the image, so the "
        "black points are means over different images; the thin lines, set off to the right, hold the number of "
        f"regions fixed. Means over fewer than {FEWEST} images are not drawn."
    )
    values = ", ".join(
        f"Top-{i + 2} {mean:.4f} ± {half:.4f} ({count:,} images)" if count > 1 else f"Top-{i + 2} in {count} images"
        for i, (mean, half, count) in enumerate(zip(mean_S, half_S, count_S, strict=True))
    )
    yield f"Values: {values}."
    if losses.without_region:
        yield f"{losses.without_region:,} images have no salient region and are left out."

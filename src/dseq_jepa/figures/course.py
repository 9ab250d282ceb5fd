"""Regions over pre-training, from the journals: how many, how large, how often none, how often they are used.

dseq-jepa figures --config configs/demo.yaml --figure regions
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dseq_jepa.errors import UserError
from dseq_jepa.figures import style
from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.settings import CourseSettings
from dseq_jepa.jobs import Model, model_directory
from dseq_jepa.journal import read

POINTS = 200
"""A longer journal is drawn as the means of so many equal stretches."""
PANELS = {
    "regions_per_image": "regions per image,\nremainder included",
    "patches_per_region": "region size\n(% of the image)",
    "images_without_region": "images without a region (%)",
    "images_with_regions_used": "images that use\ntheir regions (%)",
}
"""Journal metrics, top left to bottom right."""
LEAST_TOP = 5.0
"""Percent that an axis shows at least: a share of nearly nothing should look like it."""
CURRICULUM = "curriculum_p"


@dataclass(frozen=True, eq=False)
class Course:
    """One run's journal points; values as journaled. P points."""

    model: Model
    epoch_P: NDArray[np.float64]
    values: dict[str, NDArray[np.float64]]
    """Per metric (P,); NaN where a point has none."""

    def stretches(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Epochs and values, at most POINTS of each: means over equal stretches of the points that have a value."""
        there_P = np.isfinite(self.values[metric])
        pairs = (self.epoch_P[there_P], self.values[metric][there_P])
        parts = min(POINTS, int(there_P.sum()))
        epochs, values = (np.array([part.mean() for part in np.array_split(x, parts)]) for x in pairs)
        return epochs, values


def draw_course(job: FigureJob, figure: CourseSettings, results: Path, out: Path) -> list[Path]:
    """Write the figure; see `write_figure`."""
    courses = [read_course(job, model, results) for model in job.models]
    with style.applied():
        drawn = style.new_figure(6.4, 3.8)
        grid = drawn.subplots(2, 2, sharex=True)
        for axes, (metric, title) in zip(grid.flat, PANELS.items(), strict=True):
            _draw(axes, job, courses, metric)
            axes.set_ylabel(title)
        for axes in grid[1]:
            axes.set_xlabel("epoch")
        _draw_curriculum(grid[1, 1], courses)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        handles_p, labels_p = grid[1, 1].get_legend_handles_labels()
        more = [(h, name) for h, name in zip(handles_p, labels_p, strict=True) if name not in labels]
        drawn.legend(
            [*handles, *(h for h, _ in more)], [*labels, *(name for _, name in more)], loc="outside upper center",
            ncols=len(labels) + len(more), frameon=False,
        )  # fmt: skip
        return style.save(drawn, out, job.name, list(_caption(job, figure)))


def read_course(job: FigureJob, model: Model, results: Path) -> Course:
    """A run's journal.

    Raises:
        UserError: there is none, or it has no point with regions.

    """
    path = model_directory(results.parent, "pretrain", model) / "journal.jsonl"
    points = [record for record in read(path) if record["kind"] == "metrics" and "epoch" in record["values"]]
    values = {
        metric: np.array([float(point["values"].get(metric, np.nan)) for point in points])
        for metric in (*PANELS, CURRICULUM)
    }
    if not points or not np.isfinite(values["regions_per_image"]).any():
        raise UserError(
            f"{path}: has no point with regions_per_image, which {job.name} shows; name methods that find salient "
            "regions, and run their pre-training."
        )
    return Course(model, np.array([float(point["values"]["epoch"]) for point in points]), values)


def _scale(job: FigureJob, metric: str) -> float:
    """From the journal's unit to the figure's."""
    match metric:
        case "regions_per_image":
            return 1.0
        case "patches_per_region":
            return 100.0 / job.architecture.patches
        case _:
            return 100.0


def _draw(axes: Axes, job: FigureJob, courses: list[Course], metric: str) -> None:
    """One line per run; the runs of a method share their line style."""
    strokes = dict(zip(job.methods, style.STROKES, strict=False))
    for course in courses:
        stroke, first = strokes[course.model.method], course.model.seed == job.seeds[0]
        epochs, values = course.stretches(metric)
        axes.plot(
            epochs, _scale(job, metric) * values, color=stroke.colour, linestyle=stroke.dashes, marker=stroke.marker,
            markersize=3.5, markevery=max(1, len(epochs) // 8), label=job.methods[course.model.method].label if first
            else None,
        )  # fmt: skip
    highest = max(np.nanmax(course.values[metric]) for course in courses)
    if metric == "regions_per_image":
        limit = max(job.methods[name].regions.count for name in job.methods)
        axes.axhline(limit, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_ylim(0, 1.06 * limit)
    else:
        axes.set_ylim(0, max(LEAST_TOP, 1.06 * _scale(job, metric) * highest))
    axes.grid(axis="y", color="0.88", linewidth=0.5)


def _draw_curriculum(axes: Axes, courses: list[Course]) -> None:
    """The probability that the curriculum asks for, where there is one: the same for every run of a length."""
    for course in courses:
        if np.isfinite(course.values[CURRICULUM]).any():
            epochs, values = course.stretches(CURRICULUM)
            axes.plot(epochs, 100 * values, color="0.6", linewidth=3, zorder=0, label="curriculum p")
            return


def _caption(job: FigureJob, figure: CourseSettings) -> Iterable[str]:
    labels = " and ".join(job.methods[method].label for method in figure.methods)
    yield f"Salient regions over the pre-training of {labels} ({job.architecture.label}), as their journals tell."
    if job.miniature:
        yield "The pictures are generated and the encoder is small and briefly trained."
    count = {job.methods[method].regions.count for method in figure.methods}
    yield (
        f"Regions per image: over images that have one, at most {max(count)} with the remainder (dotted line); "
        "region size: mean over regions, the remainder left out, in percent of the image."
    )
    yield (
        "Images that use their regions follow the curriculum's p, less those without a region; the others use random "
        "blocks."
    )
    if len(job.seeds) > 1:
        yield f"One line per seed ({', '.join(map(str, job.seeds))})."
    yield f"Journals of more than {POINTS} points are drawn as means of {POINTS} equal stretches."

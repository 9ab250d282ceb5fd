"""A tiny finished pre-training in a results folder, and the jobs of figures of it."""

import shutil
from pathlib import Path
from typing import Any

from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.settings import ClustersSettings, CourseSettings, PanelsSettings, StepLossSettings
from tests.methods.small import ARCHITECTURE
from tests.training.runs import METHODS, job, write_pictures

OF_MODEL = {"method": "dseq-jepa", "architecture": "small"}
FIGURES = {
    "panels": PanelsSettings(kind="panels", beside="i-jepa", images=3, **OF_MODEL),
    "step-loss": StepLossSettings(kind="step-loss", images=30, **OF_MODEL),
    "clusters": ClustersSettings(kind="clusters", clusters=4, images=2, **OF_MODEL),
    "held-out": ClustersSettings(kind="clusters", clusters=5, images=2, split="val", **OF_MODEL),
    "course": CourseSettings(kind="course", methods=["dseq-jepa"], architecture="small"),
}
KEPT = {"panels": (100,), "step-loss": (75,), "clusters": (25, 50, 75, 100), "held-out": (25, 100), "course": ()}


def train(folder: Path) -> tuple[Path, Path]:
    """Folder of pictures, and results/test with a finished run."""
    from dseq_jepa.training.loop import pretrain

    root = write_pictures(folder / "data")
    shutil.copytree(root / "train", root / "val")
    results = folder / "results" / "test"
    pretrain(job(root), results / "pretrain" / "dseq-jepa" / "small" / "seed5")
    return root, results


def figure_job(root: Path, kind: str, **changes: Any) -> FigureJob:
    """The job of a figure of the tiny run."""
    run = job(root)
    values: dict[str, Any] = {
        "name": kind,
        "figure": FIGURES[kind],
        "experiment": "test",
        "seeds": [5],
        "miniature": True,
        "compute": run.compute,
        "loading": run.loading,
        "data": run.data,
        "methods": {name: METHODS[name] for name in ("dseq-jepa", "i-jepa")},
        "architecture": ARCHITECTURE,
        "kept": KEPT[kind],
    }
    return FigureJob(**(values | changes))

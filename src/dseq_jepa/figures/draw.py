"""Draw one figure from artefacts: kept checkpoints, pictures and journals; the same inputs give the same files.

dseq-jepa figures --config configs/demo.yaml --figure figure4        # seconds on one core
"""

from pathlib import Path

from dseq_jepa.figures.job import FigureJob
from dseq_jepa.figures.settings import ClustersSettings, CourseSettings, PanelsSettings, StepLossSettings


def write_figure(job: FigureJob, results: Path, out: Path) -> list[Path]:
    """Write <name>.png, <name>.pdf and <name>.caption.md into `out`, each whole or not at all.

    Args:
        job: what the figure shows.
        results: folder of the experiment, results/<experiment>.
        out: folder to write to, such as results/<experiment>/figures.

    Returns:
        The three files.

    Raises:
        UserError: when a checkpoint or journal is missing, damaged or of another architecture, or pictures are.

    """
    match job.figure:  # a figure of journals needs no torch
        case PanelsSettings():
            from dseq_jepa.figures.panels import draw_panels

            return draw_panels(job, job.figure, results, out)
        case StepLossSettings():
            from dseq_jepa.figures.steps import draw_step_losses

            return draw_step_losses(job, job.figure, results, out)
        case ClustersSettings():
            from dseq_jepa.figures.clusters import draw_clusters

            return draw_clusters(job, job.figure, results, out)
        case CourseSettings():
            from dseq_jepa.figures.course import draw_course

            return draw_course(job, job.figure, results, out)

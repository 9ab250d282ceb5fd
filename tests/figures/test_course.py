"""The regions over training are the journal's, and nothing is smoothed away.

pytest tests/figures/test_course.py
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.figures.course import POINTS, Course, draw_course, read_course
from dseq_jepa.journal import Journal
from tests.figures.runs import figure_job

Trained = tuple[Path, Path]


def test_points_are_the_journals(trained: Trained):
    root, results = trained
    job = figure_job(root, "course")
    course = read_course(job, job.models[0], results)
    assert course.epoch_P.tolist() == pytest.approx([4 / 6, 8 / 6, 2.0, 16 / 6, 20 / 6, 4.0])
    assert course.values["curriculum_p"].tolist() == pytest.approx([3 / 23, 7 / 23, 11 / 23, 15 / 23, 19 / 23, 1.0])
    assert np.isfinite(course.values["images_with_regions_used"]).all()
    epochs, values = course.stretches("curriculum_p")
    assert epochs.tolist() == course.epoch_P.tolist()
    assert values.tolist() == course.values["curriculum_p"].tolist()


def test_a_long_journal_is_drawn_as_means_of_stretches_and_gaps_are_left_out():
    values = np.arange(800.0)
    values[::2] = np.nan
    course = Course(None, np.arange(800.0) / 10, {"x": values})
    epochs, means = course.stretches("x")
    assert len(epochs) == len(means) == POINTS
    assert means.mean() == pytest.approx(np.nanmean(values))
    assert means[0] == pytest.approx(np.mean([1, 3]))
    assert epochs[0] == pytest.approx(np.mean([0.1, 0.3]))


def test_a_run_without_regions_has_no_course(trained: Trained, tmp_path: Path):
    root = trained[0]
    folder = tmp_path / "results/test/pretrain/dseq-jepa/small/seed5"
    folder.mkdir(parents=True)
    with Journal(folder / "journal.jsonl") as journal:
        journal.metrics(4, {"epoch": 1.0, "loss": 0.5})
    job = figure_job(root, "course")
    with pytest.raises(UserError, match=r"journal\.jsonl: has no point with regions_per_image"):
        draw_course(job, job.figure, tmp_path / "results/test", tmp_path / "out")
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"journal\.jsonl: the journal cannot be read: no such file"):
        draw_course(job, job.figure, tmp_path / "results/test", tmp_path / "out")
    assert not (tmp_path / "out").exists()

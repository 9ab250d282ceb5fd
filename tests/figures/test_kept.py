"""What figures refuse to read, with the sentence that says why.

pytest tests/figures/test_kept.py
"""

import shutil
from pathlib import Path

import pytest

from dseq_jepa.errors import UserError
from dseq_jepa.figures.draw import write_figure
from dseq_jepa.figures.kept import open_kept, reading, some_pictures
from dseq_jepa.models.settings import PredictorSettings
from dseq_jepa.training.loop import pretrain
from tests.figures.runs import FIGURES, figure_job
from tests.methods.small import ARCHITECTURE
from tests.training.runs import METHODS, job

Trained = tuple[Path, Path]


def open_it(root: Path, results: Path, percent: int = 75, **changes: object):
    job = figure_job(root, "step-loss", **changes)
    with reading(job) as device:
        return open_kept(job, job.models[0], percent, results, device)


def test_the_checkpoint_is_the_one_that_is_asked_for(trained: Trained):
    root, results = trained
    epochs = [open_it(root, results, percent).epoch for percent in (25, 50, 75, 100)]
    assert epochs == [1.0, 2.0, 3.0, 4.0]


def test_a_checkpoint_that_is_not_there(trained: Trained):
    root, results = trained
    with pytest.raises(UserError, match=r"checkpoint-060\.safetensors: is missing.*dseq-jepa on small keeps at 60%"):
        open_it(root, results, 60)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"width": 40, "heads": 4}, "width 32, not 40"),
        ({"depth": 3}, "depth 2, not 3"),
        ({"predictor": PredictorSettings(width=16, depth=3, heads=2)}, r"predictor\.blocks\.2\.\S+ \(16,\) is missing"),
    ],
)
def test_a_checkpoint_of_another_architecture(trained: Trained, changes: dict[str, object], part: str):
    root, results = trained
    architecture = ARCHITECTURE.model_copy(update=changes)
    with pytest.raises(UserError, match=rf"checkpoint-075\.safetensors.*{part}.*Name the architecture"):
        open_it(root, results, architecture=architecture)


def test_a_checkpoint_cut_short(trained: Trained, tmp_path: Path):
    root, results = trained
    copy = tmp_path / "results" / "test"
    shutil.copytree(results, copy)
    path = copy / "pretrain/dseq-jepa/small/seed5/checkpoint-075.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:5000])
    with pytest.raises(UserError, match=r"checkpoint-075\.safetensors: cannot be read as weights"):
        open_it(root, copy)


def test_more_pictures_than_there_are(trained: Trained):
    root, _ = trained
    with pytest.raises(UserError, match=r"figures\.panels\.images: 49 of the 48 train images"):
        some_pictures(figure_job(root, "panels"), "train", 49)


def test_pictures_come_from_as_many_classes_as_possible(trained: Trained):
    root, _ = trained
    pictures = some_pictures(figure_job(root, "panels"), "val", 2)
    assert {name.split("/")[1] for name in pictures.names} == {"n00000000", "n00000001"}
    assert all((root / name).exists() and name.startswith("val/") for name in pictures.names)


def test_nothing_is_written_when_something_is_missing(trained: Trained, tmp_path: Path):
    root, results = trained
    job = figure_job(root, "clusters", kept=(25, 60, 100))
    with pytest.raises(UserError, match="checkpoint-060"):
        write_figure(job, results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_method(trained: Trained):
    """The same architecture, but the settings ask for parts that this method has not."""
    root, results = trained
    with pytest.raises(UserError, match=r"does not hold this architecture: contrastive\.projector\.\S+ .* is missing"):
        open_it(root, results, methods={"dseq-jepa": METHODS["dseq-c-jepa"]})


def test_a_contrastive_methods_single_picture_can_be_drawn(trained: Trained, tmp_path: Path):
    """One block of one image is a single row, of which the contrastive term has no statistics."""
    root, _ = trained
    pretrain(job(root, "dseq-c-jepa", epochs=1), tmp_path / "test/pretrain/dseq-jepa/small/seed5")
    method = METHODS["dseq-c-jepa"]
    one_block = method.model_copy(update={"blocks": method.blocks.model_copy(update={"targets": 1})})
    small = one_block.model_copy(update={"regions": method.regions.model_copy(update={"count": 2})})
    figure = FIGURES["panels"].model_copy(update={"images": 1})
    methods = {"dseq-jepa": small, "i-jepa": METHODS["i-jepa"]}
    write_figure(figure_job(root, "panels", methods=methods, figure=figure), tmp_path / "test", tmp_path)
    assert (tmp_path / "panels.png").exists()

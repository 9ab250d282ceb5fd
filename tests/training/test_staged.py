"""A pre-training from a copy on the node's own disk is the pre-training from the root, on one rank and on two.

pytest tests/training/test_staged.py
"""

import os
import shutil
from pathlib import Path

import pytest

from dseq_jepa.data import staging
from dseq_jepa.data.settings import LoadingSettings, StageSettings
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.training.loop import pretrain
from tests.training.runs import job, write_pictures
from tests.training.test_loop import assert_same_run
from tests.training.test_ranks import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with both splits: a copy is of everything that the fingerprint is of."""
    root = write_pictures(tmp_path_factory.mktemp("whole"))
    shutil.copytree(root / "train", root / "val")
    return root


def from_copy(settings: PretrainJob, folder: Path) -> PretrainJob:
    stage = StageSettings(folder=str(folder))
    return settings.model_copy(update={"loading": LoadingSettings(workers=0, stage=stage)})


def test_a_run_from_a_copy_has_the_same_bits_and_identity(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_held", {})
    plain = job(whole)
    settings = from_copy(plain, tmp_path / "scratch")
    assert settings.digest == plain.digest
    pretrain(plain, tmp_path / "root")
    pretrain(settings, tmp_path / "copy")
    assert_same_run(tmp_path / "copy", tmp_path / "root")
    for _, descriptor in staging._held.values():
        os.close(descriptor)


def test_ranks_wait_for_the_one_that_copies(whole: Path, tmp_path: Path) -> None:
    plain = job(whole, epochs=1)
    for name, order in (("root", plain), ("copy", from_copy(plain, tmp_path / "scratch"))):
        torchrun(2, "tests.training.runs", str(whole), str(tmp_path / name), order.to_json())
    assert_same_run(tmp_path / "copy", tmp_path / "root")
    assert len(list((tmp_path / "scratch").glob("imagenet-*.json"))) == 1

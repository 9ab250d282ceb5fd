"""With accounting the end of old jobs is known too, and the launcher says whom it asks.

pytest tests/slurm/test_accounting.py
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dseq_jepa.cluster.scheduler import Life, Slurm
from tests.slurm import cluster
from tests.slurm.cluster import Launched, slurm


@pytest.fixture(scope="module")
def accounted(state: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Another Slurm in the place of the first one."""
    folder = tmp_path_factory.mktemp("accounted")
    subprocess.run([str(cluster.SCRIPTS / "stop-slurm"), str(state)], check=True, capture_output=True)
    try:
        cluster.start(folder)
        yield
        cluster.stop(folder)
    finally:
        cluster.start(state, "--no-accounting")


@pytest.mark.usefixtures("state")
def test_without_accounting_squeue_alone_is_asked(tmp_path: Path) -> None:
    assert not Slurm().accounting
    assert Slurm().state("4000000").life is Life.OVER
    status, said = Launched(tmp_path / "out", ["select", "--scores", "x", "--out", str(tmp_path / "out")]).run()
    assert status == 1
    assert "states from squeue (this cluster keeps no accounting)" in said


@pytest.mark.usefixtures("accounted")
def test_with_accounting_a_job_that_squeue_forgot_is_still_known(tmp_path: Path) -> None:
    assert Slurm().accounting
    job = slurm("sbatch", "--parsable", "--wait", "-o", "/dev/null", "--wrap", "true")
    assert Slurm().state(job).name == "COMPLETED"
    assert Slurm()._accounted(job).name == "COMPLETED"
    status, said = Launched(tmp_path / "out", ["select", "--scores", "x", "--out", str(tmp_path / "out")]).run()
    assert status == 1
    assert "states from squeue and sacct" in said
    assert "x: " in said or "No such file" in said

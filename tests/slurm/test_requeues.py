"""A command starts again as often as --max-requeues says, whoever puts its job back into the queue.

pytest tests/slurm/test_requeues.py
"""

from pathlib import Path

import pytest

from dseq_jepa.jobs import PretrainJob
from tests.slurm.cluster import pretraining, slurm, until

pytestmark = pytest.mark.usefixtures("state")


def test_starts_by_slurm_itself_count_too(settings: PretrainJob, tmp_path: Path) -> None:
    launched = pretraining(settings, tmp_path / "run", "--max-requeues", "1").start()
    for number in (1, 2):
        launched.trained(30 * number)
        until(lambda n=number: len(launched.starts()) == n, f"start {number}")
        slurm("scontrol", "requeue", launched.job())
    status, said = launched.end()
    assert status != 0
    assert "started again 1 times, which is all that --max-requeues allows" in said
    assert len(launched.starts()) == 2
    status, said = launched.run()
    assert status == 0, said
    assert len(launched.starts()) == 3, "the same command, given by a person, has its starts anew"

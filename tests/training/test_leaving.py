"""No rank leaves the group while a model still holds on to it: its end would hang the process now and then.

pytest tests/training/test_leaving.py
"""

import gc
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dseq_jepa.errors import StoppedError, UserError
from dseq_jepa.training import loop
from dseq_jepa.training.loop import Run, pretrain
from tests.training.runs import job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def rank(number: int, pictures: str, out: str, port: int, ends: str) -> None:
    """Run, and note at the moment of leaving how many models are alive."""
    os.environ |= {
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    leave, train = dist.destroy_process_group, Run.train

    def leaving() -> None:
        alive = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
        Path(out, f"alive-{number}").write_text(str(alive))
        leave()

    def stopped(run: Run) -> None:
        train(run)
        raise StoppedError("as by a signal")

    dist.destroy_process_group = leaving
    if ends == "stopped":
        loop.Run.train = stopped
    try:
        pretrain(job(Path(pictures), epochs=1), Path(out, "run"))
    except UserError:
        assert ends == "stopped"


@pytest.mark.parametrize("ends", ["finished", "stopped"])
def test_no_model_outlives_the_group(ends: str, pictures: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank, (str(pictures), str(tmp_path), port, ends), nprocs=2)
    assert [(tmp_path / f"alive-{number}").read_text() for number in range(2)] == ["0", "0"]

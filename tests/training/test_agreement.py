"""A signal is heard within about a second on all ranks, however long a step takes; fast steps are rarely asked about.

pytest tests/training/test_agreement.py
"""

import json
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dseq_jepa.training.agreement import Agreement
from dseq_jepa.training.distributed import World

CPU = torch.device("cpu")


def heard(world: World, step_seconds: float, told_after: int, save_seconds: float = 1e9) -> tuple[int, list[int]]:
    """The step at which a rank stops, told on rank 1 alone (or the only one), and those at which it saves."""
    now = [0.0]
    agreement = Agreement(world, step=0, save_seconds=save_seconds, clock=lambda: now[0])
    saves = []
    for step in range(1, 10_000):
        now[0] += step_seconds
        if step == told_after and world.rank == world.size - 1:
            agreement.note(signal.SIGTERM, None)
        answer = agreement.ask(step)
        if answer.save:
            saves.append(step)
            agreement.saved()
        if answer.stop:
            return step, saves
    raise AssertionError("never heard")


def rank(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    world = World(rank=number, size=2, device=CPU)
    found = {
        "slow on one rank": heard(world, 3.0 if number == 0 else 1 / 64, 7),
        "fast": heard(world, 1 / 64, 150),
        "saves": heard(world, 0.5, 40, save_seconds=5.0 if number == 0 else 6.0),
    }
    Path(folder, f"{number}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_one_rank_hears_at_once() -> None:
    assert heard(World(0, 1, CPU), 0.01, 7) == (7, [])


@pytest.mark.slow
def test_two_ranks_hear_together_within_about_a_second(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rank, (str(tmp_path),), nprocs=2)
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert one == two
    assert one["slow on one rank"][0] == 7
    assert one["fast"][0] == 193  # asked after steps 1, 65, 129 and 193
    assert one["saves"] == [41, [11, 23, 35]]  # the more impatient rank's 5 s, asked every second

"""A run on the ranks that torchrun starts whose gradients become NaN under a finite loss: what each rank says of it.

torchrun --nproc-per-node 2 -m tests.training.poisoned OUT STEP SETTINGS
"""

import sys
from pathlib import Path

import torch

from dseq_jepa.errors import UserError
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.methods.jepa import StepOutput
from dseq_jepa.training import distributed
from dseq_jepa.training.loop import Run


def poison_gradients(run: Run, step: int, rank: int = 0) -> None:
    """Let one rank's gradients of one step be NaN; its loss stays what it is."""

    def poison(_module: object, _inputs: object, output: StepOutput) -> None:
        if run.step == step and run.world.rank == rank:
            output.loss.register_hook(lambda gradient: gradient * torch.nan)

    run.model.register_forward_hook(poison)


if __name__ == "__main__":
    out, number, settings = Path(sys.argv[1]), int(sys.argv[2]), PretrainJob.parse(sys.argv[3])
    world = distributed.start(settings.compute)
    run = Run(settings, out, world)
    poison_gradients(run, number, rank=1)
    try:
        run.train()
    except UserError as error:
        (out / f"said-by-{world.rank}.txt").write_text(str(error))
    distributed.stop()

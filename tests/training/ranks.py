"""One step of a global batch on the ranks that torchrun starts: its losses and gradients, for comparison.

torchrun --nproc-per-node 2 -m tests.training.ranks OUT NAME=SETTINGS ...
"""

import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from dseq_jepa.data.transforms import normalise
from dseq_jepa.jobs import PretrainJob
from dseq_jepa.methods.jepa import Moment
from dseq_jepa.training import distributed
from dseq_jepa.training.loop import Run


def step(job: PretrainJob, out: Path) -> None:
    """Write `step.pt` with the mean losses and the whole gradients."""
    world = distributed.start(job.compute)
    run = Run(job, out / "run", world)
    run.model.train()
    batch = next(run.batches())
    output = run.model(normalise(batch.images_BCHW), batch.ids_B.numpy(), Moment(job.model.seed, 7, 0.5))
    output.loss.backward()
    gradients = {
        name: (p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad)
        for name, p in run.method.named_parameters()
        if p.requires_grad
    }
    losses = distributed.all_sum(torch.stack([output.loss.detach(), output.prediction_loss])) / world.size
    if world.is_main:
        torch.save({"losses": losses, "gradients": gradients}, out / "step.pt")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for argument in sys.argv[2:]:
        name, settings = argument.split("=", 1)
        step(PretrainJob.parse(settings), folder / name)
    distributed.stop()

r"""Measure what a pre-training costs: the real step on real batches, timed, weighed and counted (paper 4.4, Table 8).

    dseq-jepa cost --config configs/demo.yaml --method dseq-jepa --out out/       # ten seconds on one core
    torchrun --nproc-per-node 1 -m dseq_jepa cost --config configs/paper.yaml \
        --method dseq-jepa --architecture vit-b16 --out out/                      # one GPU with its share of the batch

What a DSeq step costs depends on the regions and on the curriculum, so the steps are spread evenly over the run: p is
1/2 on average. The weights stay those of the beginning, and so do the regions that their saliency gives. Steps of fewer
processes than `compute.ranks` take their share of the batch; the time that the missing ones' exchange would take is not
in them.
"""

import dataclasses
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dseq_jepa.cost.count import inference_multiply_adds, multiply_adds, parameters
from dseq_jepa.cost.settings import CostSettings
from dseq_jepa.data.catalog import Split
from dseq_jepa.data.decode import DECODER
from dseq_jepa.data.loaders import steps_per_epoch
from dseq_jepa.data.staging import stage
from dseq_jepa.data.transforms import normalise
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.report import write_metrics
from dseq_jepa.fence import Fence
from dseq_jepa.jobs import CostJob, PretrainJob
from dseq_jepa.models.vit import patch_pixels
from dseq_jepa.provenance import Provenance
from dseq_jepa.training import distributed
from dseq_jepa.training.distributed import World
from dseq_jepa.training.loop import Run

GB = 1e9
"""Bytes."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """What was measured of the steps, over all processes."""

    seconds: list[float]
    """Of every timed step, the wait for its batch included."""
    peak_bytes: int
    """Of the process that needs most, during the timed steps."""
    multiply_adds: float
    """Of a step per image; mean over the counted steps and processes."""
    target_multiply_adds: float
    """Of these, the target encoder's forward pass."""


def measure(job: CostJob, out: Path) -> None:
    """Measure a pre-training's cost and write out/metrics.json.

    Args:
        job: the resolved settings; one evaluation.
        out: folder to write to; nothing else is left there.

    Raises:
        UserError: a run with fewer steps than are to be measured; a batch that the processes cannot share.

    """
    ((name, settings),) = job.evaluations.items()
    with distributed.joined(job.compute, partial(stage, job.data.values(), job.loading)) as world:
        provenance = Provenance.begin(job.to_json(), job.digest)
        began = time.perf_counter()
        steps, split = _measured(job, settings, world)
        if world.is_main:
            result = _result(job, steps, images=len(split), classes=len(split.class_names), ranks=world.size)
            result["seconds"] = round(time.perf_counter() - began, 1)
            provenance.finish(out, data={settings.data: job.data[settings.data].fingerprint}, decoder=DECODER)
            Fence.from_environment().check()
            write_metrics(out, job, {name: result})


def _measured(job: CostJob, settings: CostSettings, world: World) -> tuple[Steps, Split]:
    """Measure; a function of its own, so that nothing of the run outlives it (see `distributed.stop`)."""
    with TemporaryDirectory() as scratch:
        run = Run(_share(job, settings, world), Path(scratch), world)
        steps = _measure_steps(run, settings)
        if run.journal:
            run.journal.close()
        return steps, run.split


def _share(job: CostJob, settings: CostSettings, world: World) -> PretrainJob:
    """The pre-training whose global batch is that of the processes which are here."""
    whole, ranks = job.recipe.batch_size, job.compute.ranks
    if whole * world.size % ranks:
        raise UserError(f"recipes.*.batch_size {whole} cannot be shared equally by {ranks} ranks; change either")
    return PretrainJob(
        model=job.model,
        compute=job.compute,
        loading=job.loading,
        method=job.method,
        architecture=job.architecture,
        recipe=job.recipe.model_copy(update={"batch_size": whole * world.size // ranks}),
        data=job.data[settings.data],
        keep_percent=(100,),
    )


def _measure_steps(run: Run, settings: CostSettings) -> Steps:
    """Warm up, time, and only then count: counting needs more time and memory than the step does."""
    wanted = settings.warmup_steps + settings.steps + settings.counted_steps
    if run.schedule.steps < wanted:
        raise UserError(
            f"cost: {wanted} steps are to be measured, but this pre-training has {run.schedule.steps}; lower steps, "
            "warmup_steps or counted_steps of the evaluation."
        )
    run.model.train()
    batches, device = run.batches(), run.world.device

    def step(place: float) -> float:
        """One step as it would be at a place between 0 and 1 of the run; its seconds."""
        run.step = round(place * (run.schedule.steps - 1))
        began = time.perf_counter()
        run.optimise(next(batches))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    for place in _spread(settings.warmup_steps):
        step(place)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [step(place) for place in _spread(settings.steps)]
    peak = _peak_bytes(device)
    total = multiply_adds(lambda: [step(place) for place in _spread(settings.counted_steps)])
    images = settings.counted_steps * run.local_batch
    return Steps(
        seconds=seconds,
        peak_bytes=int(distributed.gather_rows(torch.tensor([[float(peak)]], device=device)).max()),
        multiply_adds=_mean(total / images, run.world),
        target_multiply_adds=_target_multiply_adds(run, next(run.batches()).images_BCHW),
    )


def _spread(count: int) -> list[float]:
    """The middles of `count` equal parts of [0, 1]."""
    return [(i + 0.5) / count for i in range(count)]


def _mean(value: float, world: World) -> float:
    total = distributed.all_sum(torch.tensor(value, dtype=torch.float64, device=world.device))
    return float(total) / world.size


def _target_multiply_adds(run: Run, images_BCHW: Tensor) -> float:
    """Of the target encoder's forward pass per image."""
    encoder = run.method.target_encoder
    pixels_BTK = patch_pixels(normalise(images_BCHW.to(run.world.device)), run.job.architecture.patch_size)
    with torch.no_grad():
        count = multiply_adds(lambda: encoder.read_pixels(pixels_BTK, [run.job.architecture.depth]))
    return count / len(images_BCHW)


def _peak_bytes(device: torch.device) -> int:
    """Peak memory: what torch's allocator gave out on a GPU, this process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage it does not count the process that this one was forked from
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line[:6] == "VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _result(job: CostJob, steps: Steps, *, images: int, classes: int, ranks: int) -> dict[str, Any]:
    """The entry in metrics.json."""
    step_seconds = statistics.median(steps.seconds)
    total_steps = job.recipe.epochs * steps_per_epoch(images, job.recipe.batch_size)
    hours = step_seconds * total_steps / 3600
    encoder = {"class_token": job.method.class_token}
    configured, epochs = job.compute.ranks, job.recipe.epochs
    missing = "" if ranks == configured else f", of which {ranks} measured, without the exchange between the others"
    place = "a process" if job.compute.device == "cpu" else "a GPU"
    memory = "resident set of the whole process (CPU)" if job.compute.device == "cpu" else "CUDA allocator, per GPU"
    return {
        "value": hours,
        "metric": "pretrain_hours",
        "values": {
            "pretrain_hours": hours,
            "pretrain_memory_gb": steps.peak_bytes / GB,
            "pretrain_gflops": steps.multiply_adds / 1e9,
            "target_gflops": steps.target_multiply_adds / 1e9,
            "inference_gflops": inference_multiply_adds(job.architecture, **encoder) / 1e9,
            "parameters_m": parameters(job.architecture, **encoder, classes=classes) / 1e6,
            "step_seconds": step_seconds,
            "images_per_second": job.recipe.batch_size / step_seconds,
        },
        "notes": {
            "pretrain_hours": f"extrapolated from the median of {len(steps.seconds)} steps to {epochs} epochs on "
            f"{configured} {'processes' if configured > 1 else 'process'}{missing}",
            "pretrain_memory_gb": f"peak of {place}, 10^9 bytes: {memory}",
            "pretrain_gflops": "10^9 multiply-adds of matrix products of a step per image: target encoder forward, "
            "context encoder and predictor forward and backward; mean over steps spread evenly over the curriculum, "
            "with the regions of an untrained encoder",
            "inference_gflops": "10^9 multiply-adds of matrix products of the encoder per image, without a head",
            "parameters_m": f"encoder with its positions and a linear classifier of {classes} classes",
        },
        "step_seconds": steps.seconds,
    }

r"""Pre-train an encoder and keep resumable state.

    dseq-jepa pretrain --config configs/demo.yaml --method dseq-jepa --out out/       # a minute on two cores
    torchrun --nproc-per-node 8 -m dseq_jepa pretrain --config configs/paper.yaml \
        --method dseq-jepa --architecture vit-b16 --out out/                          # 8 x H200

Killed at any moment, the same command goes on from the last state; on a CPU the result is the same to the bit.
"""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from dseq_jepa.data.catalog import load_split
from dseq_jepa.data.decode import DECODER
from dseq_jepa.data.loaders import Batch, pretraining_batches, steps_per_epoch
from dseq_jepa.data.staging import stage, staged
from dseq_jepa.data.transforms import normalise
from dseq_jepa.errors import StoppedError, UserError
from dseq_jepa.fence import Fence
from dseq_jepa.files import atomically, leave_behind, show, write_atomically
from dseq_jepa.jobs import PretrainJob, canonical
from dseq_jepa.journal import Journal
from dseq_jepa.methods.jepa import Jepa, Moment, StepOutput
from dseq_jepa.progress import Progress
from dseq_jepa.provenance import Provenance, run_tags
from dseq_jepa.training import distributed
from dseq_jepa.training.agreement import Agreement
from dseq_jepa.training.checkpoint import State, StateStore, random_state, restore, training_state, whole_weights
from dseq_jepa.training.determinism import same_bits
from dseq_jepa.training.distributed import World
from dseq_jepa.training.finite import finite_gradients
from dseq_jepa.training.machine import Machine
from dseq_jepa.training.optimizer import build_optimizer, set_rates
from dseq_jepa.training.schedules import Schedule
from dseq_jepa.training.watch import CollapseWatch, Interval


def checkpoint_name(percent: int) -> str:
    """File of the weights kept at a percentage of the epochs."""
    return f"checkpoint-{percent:03d}.safetensors"


def pretrain(job: PretrainJob, out: Path) -> None:
    """Run a pre-training to its end, from its last state if there is one.

    Args:
        job: the resolved settings.
        out: receives checkpoint-<percent>.safetensors, run.json, provenance.json and journal.jsonl; `out/state` holds
            what a resume needs, by the digest of the settings, and is safe to delete when the run is finished.

    Raises:
        UserError: bad data, a loss or gradient that is no number, a collapsed representation, a full disk.
        StoppedError: a signal came; the state is saved.

    """
    with distributed.joined(job.compute, partial(stage, [job.data], job.loading)) as world:
        _run(job, out, world)


def _run(job: PretrainJob, out: Path, world: World) -> None:
    """Train and publish; a function of its own, so that nothing of the run outlives it (see `distributed.stop`)."""
    run = Run(job, out, world)
    try:
        run.train()
    except UserError as error:
        run.note(error)
        raise
    run.publish()


@dataclass
class _Clock:
    """Where the time goes between two log points."""

    images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def rates(self) -> dict[str, float]:
        """Images per second on all ranks, and the share of time spent waiting for pictures."""
        elapsed = time.perf_counter() - self.began
        return {"images_per_second": self.images / elapsed, "data_wait": self.waited / elapsed}


class Run:
    """One pre-training on this rank."""

    def __init__(self, job: PretrainJob, out: Path, world: World) -> None:
        self.job, self.out, self.world = job, out, world
        self.recipe = job.recipe
        self.provenance = Provenance.begin(job.to_json(), job.digest)
        self.split = load_split(staged(job.data, job.loading), "train")
        self.epoch_steps = steps_per_epoch(len(self.split), self.recipe.batch_size)
        if not self.epoch_steps:
            raise UserError(
                f"{job.data.root}: {len(self.split)} training images are fewer than one batch of "
                f"{self.recipe.batch_size}; lower recipes.*.batch_size"
            )
        self.schedule = Schedule(self.recipe, self.epoch_steps)
        self.keep: dict[int, list[int]] = {}
        for percent in job.keep_percent:  # in a run of few steps several come at the same one
            self.keep.setdefault(max(1, round(self.schedule.steps * percent / 100)), []).append(percent)
        self.local_batch = world.share(self.recipe.batch_size, "recipes.*.batch_size")
        if job.method.contrastive and self.recipe.accumulation > 1:
            raise UserError(
                f"recipes.*.accumulation: {job.model.method} is contrastive, its statistics are over the whole batch; "
                "set accumulation: 1 or use more ranks"
            )
        if self.local_batch % self.recipe.accumulation:
            raise UserError(
                f"recipes.*.accumulation {self.recipe.accumulation} does not divide a rank's {self.local_batch} images"
            )
        self.method, self.model = _build(job, world)
        self.optimizer = build_optimizer(self.model, self.recipe)
        self.fence = Fence.from_environment()
        self.store = StateStore(out / "state" / job.digest, self.fence)
        self.interval = Interval(world)
        self.machine = Machine(world.device)
        self.collapse = CollapseWatch(self.recipe.collapse)
        self.step, self.skipped, self.seconds = 0, 0, 0.0
        self.parts = self.recipe.accumulation
        self.journal = self._resume()

    def _resume(self) -> Journal | None:
        """Load the newest good state on every rank; open the journal where that state left it, on rank 0."""
        # One rank reads all files and checks them; the others take its word.
        path, warnings = distributed.from_main(self.store.find() if self.world.is_main else (None, []))
        state = self.store.load(path) if path else None
        if state is not None:
            self.parts = self._parts_on(state["part_images"])
            restore(state, self.model, self.optimizer)
            self.step, self.skipped, self.seconds = state["step"], state["skipped"], state["seconds"]
            self.interval.restore(state["interval"])
            self.collapse.strikes = state["strikes"]
        if not self.world.is_main:
            return None
        # The journal lies with its state: a changed configuration starts another one and leaves this one whole.
        place, position = self.store.directory / "journal.jsonl", state["journal"] if state is not None else 0
        self.fence.check()
        leave_behind(place)
        journal = Journal.resume(place, position)
        show(place, self.out / "journal.jsonl")
        journal.start(run_tags("pretrain", self.job), steps=self.schedule.steps)
        if state is None:
            journal.params(json.loads(self.job.to_json()))
        for warning in warnings:
            journal.event("warning", text=warning)
        if self.parts != self.recipe.accumulation:
            journal.event("accumulation", parts=self.parts, ranks=self.world.size)
        return journal

    def _parts_on(self, part_images: int) -> int:
        """Parts of this rank's share that keep a part as large as it was where the state was saved.

        Raises:
            UserError: for a contrastive method, whose loss is not a sum over parts.

        """
        parts = max(1, self.local_batch // part_images)
        if parts > self.recipe.accumulation and self.job.method.contrastive:
            raise UserError(
                f"{self.store.directory}: the state was saved on {self.recipe.batch_size // part_images} ranks and "
                f"this run has {self.world.size}. {self.job.model.method} is contrastive: its variance and covariance "
                "are over the whole batch, which cannot be cut into parts that are computed one after another. Use as "
                "many ranks as before."
            )
        if self.local_batch % parts:
            raise UserError(
                f"{self.store.directory}: {self.local_batch} images of a rank cannot be cut into parts of "
                f"{part_images}, as large as where the state was saved; use another number of ranks"
            )
        return parts

    def train(self) -> None:
        """All remaining steps."""
        if self.step == self.schedule.steps:
            return
        self.model.train()
        progress = (
            Progress(self.schedule.steps, f"{self.job.method.label} pre-training", start=self.step)
            if self.journal
            else None
        )
        agreement = Agreement(self.world, self.step, 60 * self.recipe.save_every_minutes)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, agreement.note)
        clock = _Clock()
        for batch, waited in _timed(self.batches()):
            output = self.optimise(batch)
            self.step += 1
            clock.images += self.recipe.batch_size
            clock.waited += waited
            if progress:
                progress.advance(images=self.recipe.batch_size)
            keep = self.keep.get(self.step)
            log_point = self.step % self.recipe.log_every == 0 or self.step == self.schedule.steps
            if log_point:
                self.interval.check()
                self._log(output, clock, progress)
                clock = _Clock()
            answer = agreement.ask(self.step)
            if keep or answer.stop or answer.save or self.step == self.schedule.steps:
                self.interval.check()
                if keep:
                    self._keep(keep)
                self._save()
                agreement.saved()
            if answer.stop:
                raise StoppedError(
                    f"stopped by signal {agreement.signal} after step {self.step} of {self.schedule.steps}; the state "
                    "is saved, the same command goes on from here."
                )
        if progress:
            progress.close()

    def note(self, error: UserError) -> None:
        """The last line of a run that does not end well, unless the journal belongs to another process by now."""
        if self.journal and self.fence.holds:
            self.journal.event("stopped" if isinstance(error, StoppedError) else "failed", text=str(error))

    def publish(self) -> None:
        """Put the finished run's artefacts in their place."""
        if not self.world.is_main or self.journal is None:
            return
        self.fence.check()
        for percent in self.job.keep_percent:
            show(self.store.directory / checkpoint_name(percent), self.out / checkpoint_name(percent))
        self.provenance.finish(self.out, data={"pretraining": self.job.data.fingerprint}, decoder=DECODER)
        summary = {
            "schema": 1,
            "model": self.job.model.model_dump(),
            "config_digest": self.job.digest,
            "steps": self.schedule.steps,
            "images": len(self.split),
            "skipped_images": self.skipped,
            "seconds": round(self.seconds, 1),
            "ranks": self.world.size,
        }
        self.journal.event("finished", steps=self.schedule.steps)
        self.journal.sync()
        self.journal.close()
        write_atomically(self.out / "run.json", json.dumps(summary, indent=2))

    def batches(self) -> Iterator[Batch]:
        """This rank's share of all remaining batches."""
        return pretraining_batches(
            self.split,
            image_size=self.job.architecture.image_size,
            crop_scale=self.recipe.crop_scale,
            batch_size=self.recipe.batch_size,
            rank=self.world.rank,
            ranks=self.world.size,
            seed=self.job.model.seed,
            start_step=self.step,
            total_steps=self.schedule.steps,
            loading=self.job.loading,
        )

    def optimise(self, batch: Batch) -> StepOutput:
        """One optimizer step; gradients of several parts are summed when accumulating."""
        began = time.perf_counter()
        t, parts = self.step, self.parts
        rate = self.schedule.learning_rate(t)
        set_rates(self.optimizer, rate, self.schedule.weight_decay(t))
        moment = Moment(self.job.model.seed, t, self.schedule.progress(t))
        images = normalise(batch.images_BCHW.to(self.world.device, non_blocking=True))
        ids_B = batch.ids_B.numpy()
        size = self.local_batch // parts
        bf16 = self.recipe.precision == "bf16"
        outputs: list[StepOutput] = []
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            self._synchronise_gradients(part == parts - 1)
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
                outputs.append(self.model(images[rows], ids_B[rows], moment))
            torch.autograd.backward(outputs[-1].loss / parts)
        trained = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        self.interval.add(outputs, finite_gradients(trained), t, rate, ids_B.tolist())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.update_target(self.schedule.momentum(t))
        self.skipped += batch.skipped
        self.seconds += time.perf_counter() - began
        return outputs[-1]

    def _synchronise_gradients(self, last_part: bool) -> None:
        """Ranks exchange gradients once per step, with the last part."""
        if isinstance(self.model, DistributedDataParallel):
            self.model.require_backward_grad_sync = last_part
        elif isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last_part)

    def _log(self, output: StepOutput, clock: _Clock, progress: Progress | None) -> None:
        step = self.step
        means = self.interval.means()
        spread = self.collapse.look(distributed.gather_rows(output.pooled_targets_BD), step)
        if self.journal is None or progress is None:
            return
        t = step - 1
        values = means | spread | clock.rates() | self.machine.sample()
        values |= {
            "learning_rate": self.schedule.learning_rate(t),
            "weight_decay": self.schedule.weight_decay(t),
            "ema_momentum": self.schedule.momentum(t),
            "epoch": step / self.epoch_steps,
            "skipped_images": float(self.skipped),
        }
        if self.job.method.curriculum:
            values["curriculum_p"] = self.schedule.progress(t)
        self.fence.check()
        self.journal.metrics(step, values)
        progress.show(loss=means["loss"])

    def _save(self) -> None:
        """State after `self.step` steps; collective. Rank 0 writes, and each rank its part of a sharded run."""
        if isinstance(self.model, FSDPModule):
            self.store.save_shards(self.step, self.model, self.optimizer)
            state: State = {"random": random_state()}
        else:
            state = training_state(self.model, self.optimizer)
        interval = self.interval.state()
        if self.journal is None:
            return
        state |= {
            "part_images": self.local_batch // self.parts,
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "interval": interval,
            "strikes": self.collapse.strikes,
            "journal": self.journal.sync(),
        }
        self.store.save(self.step, state)

    def _keep(self, percents: list[int]) -> None:
        """Weights that selection chooses from, before the state that says they exist."""
        weights = whole_weights(self.model)
        if self.journal is None:
            return
        self.fence.check()
        for percent in percents:
            about = {
                "percent": percent,
                "step": self.step,
                "epoch": self.step / self.epoch_steps,
                "job": json.loads(self.job.to_json()),
            }
            metadata = {"run": canonical(about)}  # one entry: safetensors writes several in random order
            with atomically(self.store.directory / checkpoint_name(percent)) as temporary:
                save_file(weights, temporary, metadata)


def _build(job: PretrainJob, world: World) -> tuple[Jepa, nn.Module]:
    """The method, and the module that runs it on all ranks."""
    same_bits(world.device)
    torch.manual_seed(job.model.seed)
    method = Jepa(
        job.method,
        job.architecture,
        gather=distributed.gather_rows,
        checkpointing=job.recipe.activation_checkpointing,
    ).to(world.device)
    if world.size == 1:
        return method, method
    if job.recipe.sharding == "fsdp":
        for network in (method.context_encoder, method.target_encoder, method.predictor):
            for block in network.blocks:
                fully_shard(block)
        fully_shard(method)
        return method, method
    # DDP regroups gradients after a process's first step, which changes the order of sums over more than two ranks: a
    # resume would differ in the last bits. Looking for unused parameters keeps the groups; on a CPU bits come first.
    keep_groups = world.device.type == "cpu"
    return method, DistributedDataParallel(
        method, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=keep_groups
    )


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch and the seconds that it was waited for."""
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began

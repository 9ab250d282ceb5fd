"""Training a whole network on labels, for minutes or days: the loop, its state and its journal.

    run(job, Path("out/encoder.safetensors"), Path("out"), FinetuneTask)

What is trained is a `Task` (finetune.py, segmentation.py). Killed at any moment, the same command goes on from the last
state; on a CPU the result is the same to the bit. State lies in out/state/<digest of settings and encoder>, is checked
when read, and is deleted once the result is there, or when other settings or another encoder start over.
"""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dseq_jepa.data.decode import DECODER
from dseq_jepa.data.loaders import Batch
from dseq_jepa.data.staging import stage
from dseq_jepa.errors import StoppedError, UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.backbone import layer_groups
from dseq_jepa.evaluation.finished import Finished
from dseq_jepa.evaluation.resume import digest as digest_with_source
from dseq_jepa.evaluation.saving import TUNING_SECONDS as SAVE_SECONDS
from dseq_jepa.evaluation.settings import TunedSettings
from dseq_jepa.fence import Fence
from dseq_jepa.files import file_sha256, leave_behind, show
from dseq_jepa.jobs import EvaluateJob, canonical
from dseq_jepa.journal import Journal
from dseq_jepa.progress import Progress
from dseq_jepa.provenance import Provenance, run_tags
from dseq_jepa.training import distributed
from dseq_jepa.training.agreement import Agreement
from dseq_jepa.training.checkpoint import StateStore, restore, training_state
from dseq_jepa.training.determinism import same_bits
from dseq_jepa.training.distributed import World
from dseq_jepa.training.finite import finite

_LOG_POINTS, _MOST_STEPS = 20, 50
"""At least so many journal points, at most so many steps between two."""


class Task(Protocol):
    """What is trained and how it is judged."""

    name: str
    """Of the evaluation."""
    steps: int
    """Of the whole training."""
    epoch_steps: int
    """Steps of one pass over the training images."""

    @property
    def settings(self) -> TunedSettings:
        """Of the evaluation."""

    @property
    def model(self) -> nn.Module:
        """On the world's device; its encoder is `backbone`."""

    def rate(self, step: int) -> float:
        """The head's learning rate."""

    def batches(self, start_step: int) -> Iterator[Batch]:
        """This rank's part of every batch from a step on."""

    def loss(self, run: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over this rank's images; `run` is the model on all ranks."""

    def measure(self) -> report.Measured:
        """How good the trained model is; every rank calls this."""


MakeTask = Callable[[EvaluateJob[Any], Path, World], Task]


def run(job: EvaluateJob[Any], encoder: Path, out: Path, make: MakeTask, kind: "type[Tuning] | None" = None) -> Path:
    """Train and measure the one evaluation of a job, from its last state if there is one.

    Args:
        job: the resolved settings.
        encoder: encoder.safetensors; its card lies beside it.
        out: receives metrics.json, records.csv.gz, provenance.json and journal.jsonl.
        make: builds the task on this rank.
        kind: the loop; Tuning unless given.

    Returns:
        metrics.json.

    Raises:
        UserError: bad data, a loss that is no number, a full disk.
        StoppedError: a signal asked to stop; the state is saved.

    """
    with distributed.joined(job.compute, partial(stage, job.data.values(), job.loading)) as world:
        same_bits(world.device)
        torch.manual_seed(job.model.seed)
        store = StateStore(out / "state" / identity(job, encoder), Fence.from_environment())
        finished = Finished(out, digest_with_source(job, encoder))
        if distributed.from_main(world.is_main and _shown_again(finished, store)):
            return out / report.METRICS
        return _tuned((kind or Tuning)(job, make(job, encoder, world), store, out, world), finished)


def _tuned(tuning: "Tuning", finished: Finished) -> Path:
    """Train and publish; a function of its own, so that nothing outlives it (see `distributed.stop`)."""
    try:
        with tuning.signals_noted():
            tuning.train()
            return tuning.publish(finished)
    except UserError as error:
        tuning.note(error)
        raise


def identity(job: EvaluateJob[Any], encoder: Path) -> str:
    """What a state belongs to: settings, weights and card."""
    files = (file_sha256(path) for path in (encoder, encoder.with_suffix(".json")))
    return hashlib.sha256(canonical([job.digest, *files]).encode()).hexdigest()[:16]


def _shown_again(finished: Finished, store: StateStore) -> bool:
    """Whether an earlier process had got to the end; then its result is in its place again."""
    store.fence.check()
    shown = finished.show()
    if shown:
        store.drop()  # a kill may have come between
    return shown


class Tuning:
    """One training on this rank."""

    def __init__(self, job: EvaluateJob[Any], task: Task, store: StateStore, out: Path, world: World) -> None:
        self.job, self.task, self.out, self.world = job, task, out, world
        self.provenance = Provenance.begin(job.to_json(), job.digest)
        self.optimizer = self.build_optimizer()
        self.run: nn.Module = task.model
        if world.size > 1:
            self.run = DistributedDataParallel(task.model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.log_every = max(1, min(_MOST_STEPS, task.steps // _LOG_POINTS))
        self.store, self.fence = store, store.fence
        self.step, self.seconds = 0, 0.0
        # Since the last log point: sum of losses. In the first epoch: pictures that could not be read.
        self.loss_sum, self.skipped = torch.zeros((), device=world.device), 0
        self._measuring = False
        self.journal = self._resume()
        self.agreement = Agreement(world, self.step, SAVE_SECONDS)

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW with layer-wise rates."""
        groups = layer_groups(self.task.model, self.task.settings)
        return torch.optim.AdamW(groups, lr=self.task.rate(0), betas=self.task.settings.betas, fused=True)

    def _resume(self) -> Journal | None:
        """Load the newest good state on every rank; open the journal where that state left it, on rank 0."""
        # One rank reads all files and checks them; the others take its word.
        found, warnings = distributed.from_main(self.store.find() if self.world.is_main else (None, []))
        state = self.store.load(found) if found else None
        if state is not None:
            restore(state, self.run, self.optimizer)
            self.step, self.seconds = state["step"], state["seconds"]
            if self.world.is_main:  # what the ranks had counted together goes on in one of them
                self.loss_sum += self.world.size * state["loss_sum"].to(self.world.device)
                self.skipped = state["skipped"]
        if not self.world.is_main:
            return None
        # The journal lies with its state: a changed configuration starts another one and leaves this one whole.
        path = self.store.directory / "journal.jsonl"
        self.fence.check()
        leave_behind(path)
        journal = Journal.resume(path, state["journal"] if state is not None else 0)
        show(path, self.out / "journal.jsonl")
        journal.start(run_tags("evaluate", self.job), steps=self.task.steps)
        if state is None:
            self._drop_others()
            journal.params(json.loads(self.job.to_json()))
        for warning in warnings:
            journal.event("warning", text=warning)
        return journal

    def _drop_others(self) -> None:
        """Delete the states of other settings or encoders, which nothing would delete later."""
        for folder in self.store.directory.parent.iterdir():
            if folder != self.store.directory:
                StateStore(folder, self.fence).drop()

    def train(self) -> None:
        """All remaining steps."""
        task = self.task
        if self.step == task.steps:
            return
        self.run.train()
        label = f"{task.name}: training"
        progress = Progress(task.steps, label, start=self.step) if self.journal else None
        for batch in task.batches(self.step):
            self._optimise(batch)
            if progress:
                progress.advance(images=task.settings.batch_size)
            log_point = self.step % self.log_every == 0 or self.step == task.steps
            if log_point:
                self._log(progress)
            answer = self.agreement.ask(self.step)
            if answer.stop or answer.save or self.step == task.steps:
                self._save()
                self.agreement.saved()
            if answer.stop and self.step < task.steps:
                raise StoppedError(
                    f"stopped by signal {self.agreement.signal} after step {self.step} of {task.steps}; the state is "
                    "saved, the same command goes on from here."
                )
        if progress:
            progress.close()

    def _optimise(self, batch: Batch) -> None:
        began = time.perf_counter()
        rate = self.task.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        bf16 = self.task.settings.precision == "bf16"
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16):
            loss = self.task.loss(self.run, batch)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_sum += loss.detach()
        self.skipped += batch.skipped if self.step < self.task.epoch_steps else 0
        self.step += 1
        self.seconds += time.perf_counter() - began

    def _log(self, progress: Progress | None) -> None:
        """The mean loss since the last log point; a NaN is noticed here.

        Raises:
            UserError: the loss is NaN or infinite.

        """
        name, since = self.task.name, (self.step - 1) % self.log_every + 1
        loss = float(distributed.all_sum(self.loss_sum)) / (since * self.world.size)
        if not torch.isfinite(torch.tensor(loss)):
            self._refuse(f"the loss is {loss}")
        self.loss_sum.zero_()
        if self.journal is None or progress is None:
            return
        rate = self.task.rate(self.step - 1)
        self.fence.check()
        self.journal.metrics(self.step, {f"{name}/loss": loss, f"{name}/learning_rate": rate})
        progress.show(loss=loss)

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(
            f"evaluations.{self.task.name}: {problem} at step {self.step} of {self.task.steps}; lower learning_rate "
            f"{self.task.settings.learning_rate:g}. Nothing was saved since the last state."
        )

    def _save(self) -> None:
        """State after `self.step` steps. Gathering is collective; rank 0 writes.

        Raises:
            UserError: a weight is NaN or infinite, after a gradient was; no later start could learn from it.

        """
        if not finite(self.task.model.parameters()):
            self._refuse("a weight is NaN or infinite")
        state = training_state(self.run, self.optimizer)
        loss_sum = distributed.all_sum(self.loss_sum).cpu() / self.world.size
        skipped = self._all_skipped()
        if self.journal is None:
            return
        state |= {"step": self.step, "seconds": self.seconds, "loss_sum": loss_sum, "skipped": skipped}
        self.store.save(self.step, state | {"journal": self.journal.sync()})

    def note(self, error: UserError) -> None:
        """The last line of a job that does not end well, unless the journal belongs to another process by now."""
        if self.journal and self.fence.holds:
            self.journal.event("stopped" if isinstance(error, StoppedError) else "failed", text=str(error))

    def publish(self, finished: Finished) -> Path:
        """Measure the trained model, write the artefacts and delete the states."""
        task, began = self.task, time.perf_counter()
        task.model.eval()
        self._measuring = True
        with torch.no_grad():
            measured = task.measure()
        self._measuring = False
        skipped = measured.skipped + self._all_skipped()
        if self.journal is not None:
            self.fence.check()
            folder = finished.folder
            folder.mkdir(parents=True, exist_ok=True)
            seconds = round(self.seconds + time.perf_counter() - began, 3)
            result = {**measured.result, "steps": self.step, "skipped_images": skipped, "seconds": seconds}
            for artefact, draw in measured.pictures.items():
                draw(folder / artefact)
            report.write_records(folder, [measured.records], measured.columns)
            fingerprints = {name: settings.fingerprint for name, settings in self.job.data.items()}
            self.provenance.finish(folder, data=fingerprints, decoder=DECODER)
            values = {f"{task.name}/{key}": float(value) for key, value in measured.result["values"].items()}
            self.journal.metrics(self.step, values)
            self.journal.event("finished", evaluations=[task.name])
            self.journal.sync()
            self.journal.close()
            show(self.journal.path, folder / self.journal.path.name)
            report.write_metrics(folder, self.job, {task.name: result})
            _shown_again(finished, self.store)
        return self.out / report.METRICS

    def _all_skipped(self) -> int:
        return int(distributed.all_sum(torch.tensor(self.skipped, device=self.world.device)))

    @contextmanager
    def signals_noted(self) -> Iterator[None]:
        """While the block runs, a signal to stop waits for a whole step and its state; while measuring, it stops at
        once: the training is saved.
        """

        def note(number: int, frame: FrameType | None) -> None:
            self.agreement.note(number, frame)
            if self._measuring:
                raise StoppedError(
                    f"stopped by signal {number} while measuring; the training is saved, the same command goes on."
                )

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

r"""Linear probes of a frozen encoder, a group of them in one process (docs/protocols.md 3).

    dseq-jepa probe --config configs/demo.yaml --method dseq-jepa --encoder out/encoder.safetensors --out out/
    torchrun --nproc-per-node 8 -m dseq_jepa probe --config configs/paper.yaml --method dseq-jepa \
        --architecture vit-b16 --encoder out/encoder.safetensors --out out/           # 8 x H200

Writes metrics.json, records.csv.gz and provenance.json. Killed at any moment, the same command goes on: finished
evaluations are kept, long ones resume at an epoch. H heads, N images.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dseq_jepa.data.decode import DECODER
from dseq_jepa.data.staging import stage
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.epochs import AugmentedPictures, Epochs, KeptFeatures
from dseq_jepa.evaluation.features import Collected, FrozenEncoder
from dseq_jepa.evaluation.heads import Heads, HeadSettings, candidates
from dseq_jepa.evaluation.resume import Kept, Outcome, digest
from dseq_jepa.evaluation.sharing import SharedFeatures
from dseq_jepa.evaluation.slices import stratified_holdout
from dseq_jepa.fence import Fence
from dseq_jepa.files import leave_behind
from dseq_jepa.jobs import ProbeJob
from dseq_jepa.journal import Journal
from dseq_jepa.progress import Progress
from dseq_jepa.provenance import Provenance, run_tags
from dseq_jepa.training import distributed
from dseq_jepa.training.distributed import World

SAVE_SECONDS = 180.0
"""The heads are saved after an epoch when the last save is older."""


def evaluate(job: ProbeJob, encoder: Path, out: Path) -> Path:
    """Run every evaluation of a group on one encoder.

    Args:
        job: the resolved settings.
        encoder: encoder.safetensors; its card lies beside it.
        out: folder to write to.

    Returns:
        metrics.json.

    Raises:
        UserError: bad data, an encoder that does not fit its card, or features that no head could use.

    """
    world = distributed.start(job.compute, partial(stage, job.data.values(), job.loading))
    try:
        return Group(job, encoder, out, world).run()
    finally:
        distributed.stop()


@dataclass(frozen=True, eq=False)
class Training:
    """Heads that learn together from some of the training pictures: candidates of a sweep, or what is reported."""

    name: str
    """Of the evaluation."""
    members: list[HeadSettings]
    ids: NDArray[np.int64]
    began: float
    """When the evaluation did, on the monotonic clock, as if no process of it had been killed."""
    held_top1: list[float] | None = None
    """What the sweep before it found on held-out pictures; None: no sweep, or this is it."""


@dataclass(frozen=True)
class EpochSummary:
    """How every head that is still running did on the training batches of an epoch."""

    done: int
    """Epochs since the start."""
    members: list[HeadSettings]
    losses: list[float]
    top1: list[float]


class Group:
    """The evaluations of one job on this rank."""

    def __init__(self, job: ProbeJob, encoder: Path, out: Path, world: World) -> None:
        self.job, self.out, self.world = job, out, world
        self.provenance = Provenance.begin(job.to_json(), job.digest)
        self.encoder = FrozenEncoder.load(encoder, world.device)
        self.fence = Fence.from_environment()
        self.kept = Kept(out / "state", digest(job, encoder), self.fence)
        self.names = sorted(job.evaluations)  # a job that came as JSON has its keys sorted: the same order for all
        self.outcomes = {name: kept for name in self.names if (kept := self.kept.outcome(name)) is not None}
        waiting = {name: job.evaluations[name] for name in self.names if name not in self.outcomes}
        self.begun = {name: state for name in waiting if (state := self.kept.epochs(name)) is not None}
        self.shared = SharedFeatures(self.encoder, waiting, job.data, world, job.loading)
        distributed.barrier()  # every rank has read what is kept before the first one writes
        self.journal = self._open_journal() if world.is_main else None

    def _open_journal(self) -> Journal:
        self.kept.drop_others()
        positions = [outcome.journal for outcome in self.outcomes.values()]
        positions += [state["journal"] for state in self.begun.values()]
        leave_behind(self.out / "journal.jsonl")
        journal = Journal.resume(self.out / "journal.jsonl", max(positions, default=0))
        steps = max(settings.most_passes for settings in self.job.evaluations.values())
        journal.start(run_tags("evaluate", self.job) | {"group": self.job.group}, steps=steps)
        if not positions:
            journal.params(json.loads(self.job.to_json()))
        return journal

    def run(self) -> Path:
        """Measure what is not finished, then write the artefacts."""
        for name in self.names:
            if name not in self.outcomes:
                self.outcomes[name] = self._measure(name)
                self.shared.release(name)
        if self.journal is not None:
            self.fence.check()
            ordered = {name: self.outcomes[name] for name in self.names}
            report.write_records(self.out, [outcome.records for outcome in ordered.values()])
            fingerprints = {name: settings.fingerprint for name, settings in self.job.data.items()}
            self.provenance.finish(self.out, data=fingerprints, decoder=DECODER)
            self.journal.event("finished", evaluations=list(ordered))
            self.journal.sync()
            self.journal.close()
            report.write_metrics(self.out, self.job, {name: outcome.result for name, outcome in ordered.items()})
        return self.out / report.METRICS

    def _measure(self, name: str) -> Outcome:
        settings, state = self.job.evaluations[name], self.begun.get(name)
        began = time.monotonic() - (state["seconds"] if state else 0.0)
        val, test = self.shared.split(name, "val"), self._test(name)
        members, held_top1, sweep = candidates(settings), None, []
        if settings.sweeps:
            held_top1 = state["held_top1"] if state and state["held_top1"] else self._sweep(name, members, began)
            sweep = report.sweep_rows(members, held_top1)
            members = [members[index] for index in report.winners(members, held_top1)]
        everything = Training(name, members, self.shared.split(name, "train").ids, began, held_top1)
        heads, skipped = self._trained(everything)
        predicted_HN, truth_N = _predictions(heads, test), val.labels[test.ids]
        test_top1 = report.top1(predicted_HN, truth_N)
        result = {
            "value": test_top1[0],
            "metric": "top1",
            "n": len(truth_N),
            "chance": report.best_constant(truth_N),
            **asdict(members[0]),
            "heads": report.head_rows(members, test_top1),
            "sweep": sweep,
            "skipped_images": test.skipped + skipped,
            "seconds": round(time.monotonic() - began, 3),
        }
        records = report.record_lines(name, val, test.ids, predicted_HN[0])
        return self._keep(name, Outcome(result, records, 0), self._passes_before(everything) + heads.epochs)

    def _keep(self, name: str, outcome: Outcome, step: int) -> Outcome:
        """Journal an outcome and store it for a process that comes after a kill."""
        if self.journal is None:
            return outcome
        values = {f"{name}/top1": outcome.result["value"], f"{name}/chance": outcome.result["chance"]}
        self.journal.metrics(step, values)
        outcome = Outcome(outcome.result, outcome.records, self.journal.sync())
        self.kept.keep(name, outcome)
        return outcome

    def _test(self, name: str) -> Collected:
        """Features of the test images come first, so that a broken encoder shows before any training."""
        test = self.shared.whole(name, "val")
        if not len(test.ids):
            raise UserError(f"evaluations.{name}: not one of the {test.skipped} test images can be decoded.")
        return test

    def _sweep(self, name: str, members: list[HeadSettings], began: float) -> list[float]:
        """Held-out accuracy of every candidate, the same on every rank: ranks that choose differently would part."""
        settings, train = self.job.evaluations[name], self.shared.split(name, "train")
        kept_ids, held_ids = stratified_holdout(train.labels, settings.holdout_fraction, self.job.model.seed)
        if settings.augment:
            held = self.shared.some(name, "train", held_ids)
        else:
            held = self.shared.whole(name, "train").only(held_ids)
        heads, _ = self._trained(Training(name, members, kept_ids, began))
        return distributed.from_main(report.top1(_predictions(heads, held), train.labels[held.ids]))

    def _trained(self, training: Training) -> tuple[Heads, int]:
        """The heads after their epochs, and how many of the pictures could not be read."""
        name, settings, seed = training.name, self.job.evaluations[training.name], self.job.model.seed
        train, unreadable = self.shared.split(name, "train"), 0
        epochs: Epochs
        if settings.augment:
            epochs = AugmentedPictures(
                self.encoder, train, training.ids, settings, seed=seed, world=self.world, loading=self.job.loading
            )
        else:
            kept = self.shared.whole(name, "train").only(training.ids)
            epochs, unreadable = KeptFeatures(kept, train.labels[kept.ids], settings.batch_size, seed), kept.skipped
        heads = Heads(
            settings,
            training.members,
            {kind: self.encoder.width(kind) for kind in settings.features},
            len(train.class_names),
            device=self.world.device,
            seed=seed,
            reduce=epochs.reduce,
        )
        self._train(training, heads, epochs)
        return heads, unreadable + self._all_skipped(epochs)

    def _train(self, training: Training, heads: Heads, epochs: Epochs) -> None:
        """All remaining epochs."""
        name, before = training.name, self._passes_before(training)
        start, saved = self._resume(training, heads, epochs), time.monotonic()
        if training.held_top1 is not None and start == 0:
            self._save(training, heads, done=0, skipped=0)  # a kill does not cost the sweep

        def after_epoch(summary: EpochSummary) -> None:
            nonlocal saved
            _require_a_finite_head(name, heads, summary)
            skipped = self._all_skipped(epochs)
            if self.journal is None:
                return
            self.journal.metrics(before + summary.done, _journal_values(training, summary))
            if time.monotonic() - saved > SAVE_SECONDS and summary.done < heads.epochs:
                saved = time.monotonic()
                self._save(training, heads, summary.done, skipped)

        run_epochs(heads, epochs, start, label=f"{name}: probe", world=self.world, after_epoch=after_epoch)

    def _resume(self, training: Training, heads: Heads, epochs: Epochs) -> int:
        """Take over what an earlier process saved of this training; returns its finished epochs."""
        state = self.begun.get(training.name)
        if state is None or state["held_top1"] != training.held_top1:
            return 0
        heads.load_state_dict(state["heads"])
        heads.optimizer.load_state_dict(state["optimizer"])
        epochs.skipped = state["skipped"] if self.world.is_main else 0
        return int(state["epoch"])

    def _save(self, training: Training, heads: Heads, done: int, skipped: int) -> None:
        if self.journal is None:
            return
        state: dict[str, Any] = {"epoch": done, "skipped": skipped, "held_top1": training.held_top1}
        state |= {"heads": heads.state_dict(), "optimizer": heads.optimizer.state_dict()}
        state |= {"seconds": time.monotonic() - training.began, "journal": self.journal.sync()}
        self.kept.save_epochs(training.name, state)

    def _all_skipped(self, epochs: Epochs) -> int:
        return int(distributed.all_sum(torch.tensor(epochs.skipped, device=self.world.device)))

    def _passes_before(self, training: Training) -> int:
        """Epochs that a sweep had before this training: the journal's steps go on counting."""
        return 0 if training.held_top1 is None else max(self.job.evaluations[training.name].epochs)


def run_epochs(
    heads: Heads,
    epochs: Epochs,
    start: int,
    *,
    label: str,
    world: World,
    after_epoch: Callable[[EpochSummary], None],
) -> None:
    """Train all heads in one pass per epoch; the host waits for the device once an epoch."""
    total = heads.epochs * epochs.steps
    progress = Progress(total, label, start=start * epochs.steps) if world.is_main else None
    for epoch in range(start, heads.epochs):
        running = heads.running(epoch)
        sums = torch.zeros(2 * len(running) + 1, device=world.device)
        for step, (features, labels_B) in enumerate(epochs(epoch), start=epoch * epochs.steps):
            loss_R, correct_R = heads.step(features, labels_B, step=step, epoch_steps=epochs.steps)
            sums += torch.cat([loss_R, correct_R, labels_B.new_tensor([len(labels_B)])])
            if progress:
                progress.advance(images=heads.protocol.batch_size)
        *both, images = epochs.reduce(sums).tolist()
        loss, correct = both[: len(running)], both[len(running) :]
        if progress:
            progress.show(loss=loss[0] / images)
        after_epoch(EpochSummary(epoch + 1, running, [x / images for x in loss], [100 * x / images for x in correct]))
    if progress:
        progress.close()


def _predictions(heads: Heads, collected: Collected) -> NDArray[np.int64]:
    predicted_HN: NDArray[np.int64] = heads.predict(collected.features).cpu().numpy()
    return predicted_HN


def _journal_values(training: Training, summary: EpochSummary) -> dict[str, float]:
    values: dict[str, float] = {}
    several = len({member.epochs for member in training.members}) > 1
    for member, loss, top1 in zip(summary.members, summary.losses, summary.top1, strict=True):
        candidate = f"epochs{member.epochs}/" * several + f"lr{member.learning_rate:g}"
        head = f"{training.name}/{member.features}/{candidate if training.held_top1 is None else 'chosen'}"
        values |= {f"{head}/loss": loss, f"{head}/train_top1": top1}
    return values


def _require_a_finite_head(name: str, heads: Heads, summary: EpochSummary) -> None:
    """One rate of a sweep may be too high; when all are, nothing is left to choose.

    Raises:
        UserError: no head on the reported features has a finite loss.

    """
    reported = heads.protocol.features[0]
    losses = dict(zip(summary.members, summary.losses, strict=True))
    of_kind = [member for member in heads.members if member.features == reported]
    if not any(member not in losses or math.isfinite(losses[member]) for member in of_kind):
        raise UserError(
            f"evaluations.{name}: the loss of every head on {reported} features is NaN or infinite "
            f"after epoch {summary.done}; lower learning_rates {heads.protocol.learning_rates}."
        )

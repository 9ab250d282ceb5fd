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
from dataclasses import dataclass
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
from dseq_jepa.evaluation.heads import Heads
from dseq_jepa.evaluation.resume import Kept, Outcome, digest
from dseq_jepa.evaluation.settings import ProbeSettings
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
class Material:
    """What a probe learns from and is judged on."""

    epochs: Epochs
    test: Collected
    held: Collected | None
    """The slice of train that a sweep chooses on; None: one candidate, which learns from all of train."""
    skipped: int
    """Unreadable pictures, those of augmented training apart."""


@dataclass(frozen=True)
class EpochSummary:
    """How every head did on the training batches of an epoch."""

    done: int
    """Epochs since the start."""
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
        steps = max(settings.epochs for settings in self.job.evaluations.values())
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
        began, settings = time.perf_counter(), self.job.evaluations[name]
        material = self._material(name, settings)
        train, val = self.shared.split(name, "train"), self.shared.split(name, "val")
        heads = Heads(
            settings,
            {kind: self.encoder.width(kind) for kind in settings.features},
            len(train.class_names),
            device=self.world.device,
            seed=self.job.model.seed,
            reduce=material.epochs.reduce,
        )
        seconds_before = self._train(name, heads, material.epochs)
        held_top1 = None
        if material.held is not None:
            held_top1 = report.top1(_predictions(heads, material.held), train.labels[material.held.ids])
        predicted_HN = _predictions(heads, material.test)
        truth_N = val.labels[material.test.ids]
        test_top1 = report.top1(predicted_HN, truth_N)
        chosen = report.choose(heads.members, held_top1)
        unreadable = torch.tensor(material.epochs.skipped, device=self.world.device)
        result = {
            "value": test_top1[chosen],
            "metric": "top1",
            "n": len(truth_N),
            "chance": report.best_constant(truth_N),
            "features": heads.members[chosen].features,
            "learning_rate": heads.members[chosen].learning_rate,
            "heads": report.head_rows(heads.members, held_top1, test_top1),
            "skipped_images": material.skipped + int(distributed.all_sum(unreadable)),
            "seconds": round(seconds_before + time.perf_counter() - began, 3),
        }
        records = report.record_lines(name, val, material.test.ids, predicted_HN[chosen])
        return self._keep(name, Outcome(result, records, 0))

    def _keep(self, name: str, outcome: Outcome) -> Outcome:
        """Journal an outcome and store it for a process that comes after a kill."""
        if self.journal is None:
            return outcome
        values = {f"{name}/top1": outcome.result["value"], f"{name}/chance": outcome.result["chance"]}
        self.journal.metrics(self.job.evaluations[name].epochs, values)
        outcome = Outcome(outcome.result, outcome.records, self.journal.sync())
        self.kept.keep(name, outcome)
        return outcome

    def _material(self, name: str, settings: ProbeSettings) -> Material:
        """Features of the test images come first, so that a broken encoder shows before any training."""
        test = self.shared.whole(name, "val")
        if not len(test.ids):
            raise UserError(f"evaluations.{name}: not one of the {test.skipped} test images can be decoded.")
        train, seed = self.shared.split(name, "train"), self.job.model.seed
        kept_ids, held_ids = train.ids, None
        if len(settings.learning_rates) > 1:
            kept_ids, held_ids = stratified_holdout(train.labels, settings.holdout_fraction, seed)
        epochs: Epochs
        if settings.augment:
            held = None if held_ids is None else self.shared.some(name, "train", held_ids)
            epochs = AugmentedPictures(
                self.encoder, train, kept_ids, settings, seed=seed, world=self.world, loading=self.job.loading
            )
            return Material(epochs, test, held, test.skipped + (held.skipped if held else 0))
        everything = self.shared.whole(name, "train")
        kept = everything.only(kept_ids)
        held = None if held_ids is None else everything.only(held_ids)
        epochs = KeptFeatures(kept, train.labels[kept.ids], settings.batch_size, seed)
        return Material(epochs, test, held, test.skipped + everything.skipped)

    def _train(self, name: str, heads: Heads, epochs: Epochs) -> float:
        """All remaining epochs of an evaluation; returns the seconds that an earlier process spent on it."""
        settings, state = self.job.evaluations[name], self.begun.get(name)
        start, seconds_before = 0, 0.0
        if state is not None:
            heads.load_state_dict(state["heads"])
            heads.optimizer.load_state_dict(state["optimizer"])
            epochs.skipped = state["skipped"] if self.world.is_main else 0
            start, seconds_before = state["epoch"], state["seconds"]
        began = saved = time.monotonic()

        def after_epoch(summary: EpochSummary) -> None:
            nonlocal saved
            _require_a_finite_head(name, heads, summary)
            skipped = int(distributed.all_sum(torch.tensor(epochs.skipped, device=self.world.device)))
            if self.journal is None:
                return
            self.journal.metrics(summary.done, _journal_values(name, heads, summary))
            if time.monotonic() - saved > SAVE_SECONDS and summary.done < settings.epochs:
                saved = time.monotonic()
                progress: dict[str, Any] = {"epoch": summary.done, "seconds": seconds_before + saved - began}
                progress |= {"heads": heads.state_dict(), "optimizer": heads.optimizer.state_dict()}
                self.kept.save_epochs(name, progress | {"skipped": skipped, "journal": self.journal.sync()})

        run_epochs(heads, epochs, start, label=f"{name}: probe", world=self.world, after_epoch=after_epoch)
        return seconds_before


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
    settings = heads.protocol
    total = settings.epochs * epochs.steps
    progress = Progress(total, label, start=start * epochs.steps) if world.is_main else None
    for epoch in range(start, settings.epochs):
        sums = torch.zeros(2 * len(heads.members) + 1, device=world.device)
        for step, (features, labels_B) in enumerate(epochs(epoch), start=epoch * epochs.steps):
            loss_H, correct_H = heads.step(features, labels_B, epoch=epoch, progress=step / total)
            sums += torch.cat([loss_H, correct_H, labels_B.new_tensor([len(labels_B)])])
            if progress:
                progress.advance(images=settings.batch_size)
        *both, images = epochs.reduce(sums).tolist()
        loss, correct = both[: len(heads.members)], both[len(heads.members) :]
        if progress:
            progress.show(loss=loss[0] / images)
        after_epoch(EpochSummary(epoch + 1, [x / images for x in loss], [100 * x / images for x in correct]))
    if progress:
        progress.close()


def _predictions(heads: Heads, collected: Collected) -> NDArray[np.int64]:
    predicted_HN: NDArray[np.int64] = heads.predict(collected.features).cpu().numpy()
    return predicted_HN


def _journal_values(name: str, heads: Heads, summary: EpochSummary) -> dict[str, float]:
    values: dict[str, float] = {}
    for member, loss, top1 in zip(heads.members, summary.losses, summary.top1, strict=True):
        head = f"{name}/{member.features}/lr{member.learning_rate:g}"
        values |= {f"{head}/loss": loss, f"{head}/train_top1": top1}
    return values


def _require_a_finite_head(name: str, heads: Heads, summary: EpochSummary) -> None:
    """One rate of a sweep may be too high; when all are, nothing is left to choose.

    Raises:
        UserError: no head on the reported features has a finite loss.

    """
    rates = heads.protocol.learning_rates
    if not any(math.isfinite(loss) for loss in summary.losses[: len(rates)]):
        raise UserError(
            f"evaluations.{name}: the loss of every head on {heads.protocol.features[0]} features is NaN or infinite "
            f"after epoch {summary.done}; lower learning_rates {rates}."
        )

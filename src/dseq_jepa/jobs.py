"""The resolved settings of one job: exactly the part of a configuration that the job uses.

The workflow puts a job's JSON into the rule's `params` and onto the command line, so a change of configuration reruns
what it changes and nothing else; `--config FILE --method NAME ...` resolves to the same object for people.
"""

import hashlib
from pathlib import Path
from typing import Generic, Self, TypeVar

from dseq_jepa.closed import Closed
from dseq_jepa.config import ComputeSettings, Experiment, nearest
from dseq_jepa.cost.settings import CostSettings
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation.settings import (
    DetectionSettings,
    EvaluationSettings,
    FinetuneSettings,
    ProbeSettings,
    SegmentationSettings,
)
from dseq_jepa.methods.settings import MethodSettings
from dseq_jepa.models.settings import ArchitectureSettings
from dseq_jepa.training.settings import Recipe, SelectionSettings

Entry = TypeVar("Entry")
Settings = TypeVar("Settings", bound=Closed)

_LOOSE = {
    "loading": {"workers", "stage"},
    "recipe": {"save_every_minutes"},
    "method": {"label"},
    "architecture": {"label", "recipe"},
}
"""Settings that no result depends on; changing them reruns nothing."""


class Model(Closed):
    """Which model a job is about."""

    experiment: str
    method: str
    architecture: str
    seed: int


class Job(Closed):
    """What every job has."""

    model: Model
    compute: ComputeSettings
    loading: LoadingSettings

    @property
    def digest(self) -> str:
        """Identity of what is computed: the same digest gives the same bits on the same machine."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude=_LOOSE)).encode()).hexdigest()[:16]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the JSON that the workflow wrote."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """One line, keys sorted: equal settings give equal text."""
        return canonical(self.model_dump(mode="json"))


class PretrainJob(Job):
    """Pre-train one method on one architecture with one seed."""

    method: MethodSettings
    architecture: ArchitectureSettings
    recipe: Recipe
    data: DatasetSettings
    keep_percent: tuple[int, ...]


class ScoreJob(Job):
    """Score every kept checkpoint of a run."""

    architecture: ArchitectureSettings
    class_token: bool
    data: DatasetSettings
    selection: SelectionSettings


class EvaluateJob(Job, Generic[Settings]):
    """Run a group of evaluations, all of one kind, on one exported encoder."""

    group: str
    evaluations: dict[str, Settings]
    data: dict[str, DatasetSettings]


ProbeJob = EvaluateJob[ProbeSettings]
FinetuneJob = EvaluateJob[FinetuneSettings]
SegmentJob = EvaluateJob[SegmentationSettings]
DetectJob = EvaluateJob[DetectionSettings]
AnyEvaluateJob = EvaluateJob[EvaluationSettings]


class CostJob(EvaluateJob[CostSettings]):
    """Measure what a pre-training costs; it needs what a pre-training needs, and no encoder."""

    method: MethodSettings
    architecture: ArchitectureSettings
    recipe: Recipe


def canonical(value: object) -> str:
    """JSON with sorted keys and no spaces."""
    import json

    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def pretrain_job(experiment: Experiment, method: str, architecture: str, seed: int) -> PretrainJob:
    """Resolve a pre-training run."""
    settings = _entry(experiment.architectures, architecture, "architectures")
    return PretrainJob(
        model=Model(experiment=experiment.name, method=method, architecture=architecture, seed=seed),
        compute=experiment.compute,
        loading=experiment.loading,
        method=_entry(experiment.methods, method, "methods"),
        architecture=settings,
        recipe=experiment.recipes[settings.recipe],
        data=experiment.data[experiment.pretraining_data],
        keep_percent=experiment.selection.keep_percent,
    )


def score_job(experiment: Experiment, method: str, architecture: str, seed: int) -> ScoreJob:
    """Resolve the scoring of a run's checkpoints."""
    return ScoreJob(
        model=Model(experiment=experiment.name, method=method, architecture=architecture, seed=seed),
        compute=experiment.compute,
        loading=experiment.loading,
        architecture=_entry(experiment.architectures, architecture, "architectures"),
        class_token=_entry(experiment.methods, method, "methods").class_token,
        data=experiment.data[experiment.pretraining_data],
        selection=experiment.selection,
    )


def evaluate_job(experiment: Experiment, group: str, method: str, architecture: str, seed: int) -> AnyEvaluateJob:
    """Resolve a group of evaluations of one model."""
    evaluations = {
        name: _on(experiment.evaluations[name], architecture) for name in _entry(experiment.groups, group, "groups")
    }
    return AnyEvaluateJob(
        model=Model(experiment=experiment.name, method=method, architecture=architecture, seed=seed),
        compute=experiment.compute,
        loading=experiment.loading,
        group=group,
        evaluations=evaluations,
        data={e.data: experiment.data[e.data] for e in evaluations.values()},
    )


def cost_job(experiment: Experiment, group: str, method: str, architecture: str, seed: int) -> CostJob:
    """Resolve the measurement of a pre-training's cost."""
    run = pretrain_job(experiment, method, architecture, seed)
    resolved = evaluate_job(experiment, group, method, architecture, seed)
    return CostJob.model_validate(
        {**resolved.model_dump(), "method": run.method, "architecture": run.architecture, "recipe": run.recipe}
    )


def _on(settings: EvaluationSettings, architecture: str) -> EvaluationSettings:
    """The settings of an evaluation as they are on one architecture."""
    return settings.on(architecture) if isinstance(settings, FinetuneSettings) else settings


def _entry(entries: dict[str, Entry], name: str, section: str) -> Entry:
    try:
        return entries[name]
    except KeyError:
        raise UserError(f"{section}: {name!r} is not defined; {nearest(name, entries)}") from None


def model_directory(results: Path, step: str, model: Model) -> Path:
    """results/<experiment>/<step>/<method>/<architecture>/seed<seed>."""
    return results / model.experiment / step / model.method / model.architecture / f"seed{model.seed}"

"""From what a command line names to a job, a configuration's entries and a results folder.

    job = resolve(PretrainJob, settings, pretrain_job, config, (method, architecture, seed))

A job is given either as `--settings` (JSON, what the workflow passes) or, by people, as `--config` with the names of a
method, an architecture and a seed; both resolve to the same job.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dseq_jepa.errors import UserError

if TYPE_CHECKING:
    from dseq_jepa.config import Experiment
    from dseq_jepa.jobs import Job

Entry = TypeVar("Entry")
AnyJob = TypeVar("AnyJob", bound="Job")


def experiment_of(config: Path | None) -> "Experiment":
    """What a configuration file means.

    Raises:
        UserError: there is none, or it means nothing.

    """
    from dseq_jepa.config import load

    if config is None:
        raise UserError("nothing says what to do: give --config FILE, or --settings JSON as the workflow does")
    return load(config)


def first(given: str | None, entries: dict[str, Any]) -> str:
    """The name that was given, or the first."""
    return given if given is not None else next(iter(entries))


def resolve(
    kind: type[AnyJob],
    settings: str | None,
    build: Callable[["Experiment", str, str, int], AnyJob],
    config: Path | None,
    names: tuple[str | None, str | None, int | None],
) -> AnyJob:
    """The job, from JSON or from a configuration and names."""
    if settings is not None:
        return kind.parse(settings)
    experiment = experiment_of(config)
    method, architecture, seed = names
    return build(
        experiment,
        first(method, experiment.methods),
        first(architecture, experiment.architectures),
        experiment.seeds[0] if seed is None else seed,
    )


def of_group(kind: type[AnyJob], verb: str, group: str | None) -> Callable[["Experiment", str, str, int], AnyJob]:
    """How a group of evaluations is resolved for the verb that runs them."""

    def build(experiment: "Experiment", method: str, architecture: str, seed: int) -> AnyJob:
        from dseq_jepa.config import nearest
        from dseq_jepa.jobs import CostJob, cost_job, evaluate_job

        resolve = cost_job if kind is CostJob else evaluate_job
        groups = experiment.groups_of_kind(verb)
        name = group if group is not None else next(iter(groups), "")
        if name not in groups:
            raise UserError(f"--group: no evaluations of kind {verb} are in a group {name!r}; {nearest(name, groups)}")
        return kind.parse(resolve(experiment, name, method, architecture, seed).to_json())

    return build


def chosen(section: str, entries: dict[str, Entry], name: str | None) -> dict[str, Entry]:
    """All entries, or the one that is named."""
    from dseq_jepa.config import nearest

    if name is None:
        return entries
    if name not in entries:
        raise UserError(f"{section}: {name!r} is not defined; {nearest(name, entries)}")
    return {name: entries[name]}


def results_of(config: Path | None, results: Path | None) -> tuple[Path, str]:
    """A results folder and the name of its MLflow experiment."""
    if results is not None:
        return results, results.name
    experiment = experiment_of(config)
    return experiment.directory, experiment.tracking.experiment or experiment.name

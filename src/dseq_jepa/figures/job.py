"""The resolved settings of one figure: exactly the part of a configuration that it shows.

from dseq_jepa.figures.job import figure_job
figure_job(load("configs/demo.yaml"), "figure2").to_json()  # what the workflow passes to `dseq-jepa figures`
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Self

from dseq_jepa.closed import Closed
from dseq_jepa.config import ComputeSettings, Experiment, nearest
from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.errors import UserError
from dseq_jepa.figures.settings import CourseSettings, FigureSettings, methods_of
from dseq_jepa.jobs import Model, canonical
from dseq_jepa.methods.settings import MethodSettings
from dseq_jepa.models.settings import ArchitectureSettings

_LOOSE: Mapping[str, Any] = {"loading": {"workers", "stage"}, "architecture": {"recipe"}}
"""Settings that no picture depends on."""


class FigureJob(Closed):
    """Draw one figure of an experiment."""

    name: str
    """Entry in the configuration and stem of the files, such as figure2."""
    figure: FigureSettings
    experiment: str
    seeds: list[int]
    """Of the runs that are shown."""
    miniature: bool
    """Whether the pictures are generated."""
    compute: ComputeSettings
    loading: LoadingSettings
    data: DatasetSettings
    """What was pre-trained on."""
    methods: dict[str, MethodSettings]
    """The methods that the figure names."""
    architecture: ArchitectureSettings
    kept: tuple[int, ...]
    """Kept checkpoints that are read, in percent of the epochs; none for a figure of journals."""

    @property
    def digest(self) -> str:
        """Identity of what is drawn."""
        return hashlib.sha256(canonical(self.model_dump(mode="json", exclude=dict(_LOOSE))).encode()).hexdigest()[:16]

    @property
    def models(self) -> list[Model]:
        """The runs that are read."""
        named = self.figure.methods if isinstance(self.figure, CourseSettings) else [self.figure.method]
        return [
            Model(experiment=self.experiment, method=method, architecture=self.figure.architecture, seed=seed)
            for method in named
            for seed in self.seeds
        ]

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the JSON that the workflow wrote."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """One line, keys sorted: equal settings give equal text."""
        return canonical(self.model_dump(mode="json"))


def figure_job(experiment: Experiment, name: str) -> FigureJob:
    """Resolve a figure.

    Raises:
        UserError: when the configuration has no such figure.

    """
    if name not in experiment.figures:
        raise UserError(f"figures: {name!r} is not defined; {nearest(name, experiment.figures)}")
    figure = experiment.figures[name]
    of_journals = isinstance(figure, CourseSettings)
    return FigureJob(
        name=name,
        figure=figure,
        experiment=experiment.name,
        seeds=experiment.seeds if of_journals else experiment.seeds[:1],
        miniature=experiment.miniature is not None,
        compute=experiment.compute,
        loading=experiment.loading,
        data=experiment.data[experiment.pretraining_data],
        methods={method: experiment.methods[method] for method in methods_of(figure)},
        architecture=experiment.architectures[figure.architecture],
        kept=_kept(figure, experiment.selection.keep_percent),
    )


def shown_models(experiment: Experiment) -> set[Model]:
    """The runs that any figure reads, whether a table has a row for them or not."""
    return {model for name in experiment.figures for model in figure_job(experiment, name).models}


def _kept(figure: FigureSettings, percents: tuple[int, ...]) -> tuple[int, ...]:
    match figure.kind:
        case "course":
            return ()
        case "clusters":
            return percents
        case _:
            return (figure.percent,)

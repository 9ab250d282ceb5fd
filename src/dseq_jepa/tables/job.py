"""The resolved settings of one table: exactly the part of a configuration that it shows.

from dseq_jepa.tables.job import table_job
table_job(load("configs/demo.yaml"), "table1").to_json()  # what the workflow passes to `dseq-jepa tables`
"""

from typing import Self

from dseq_jepa.closed import Closed
from dseq_jepa.config import Experiment, nearest
from dseq_jepa.errors import UserError
from dseq_jepa.jobs import canonical
from dseq_jepa.tables.settings import TableSettings


class OwnArchitecture(Closed):
    """How an architecture of ours is called, and how long it was pre-trained."""

    label: str
    epochs: int


class TableJob(Closed):
    """Assemble and render one table of an experiment."""

    experiment: str
    seeds: list[int]
    miniature: bool
    """Whether our numbers are of generated data."""
    table: TableSettings
    systems: list[str]
    """Name of each row."""
    architectures: dict[str, OwnArchitecture]
    """The architectures that rows name."""
    groups: dict[str, str]
    """The group whose job runs each evaluation that a column names."""

    @property
    def name(self) -> str:
        """Entry in the configuration and stem of the files, such as table1."""
        return f"table{self.table.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the JSON that the workflow wrote."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """One line, keys sorted: equal settings give equal text."""
        return canonical(self.model_dump(mode="json"))


def table_job(experiment: Experiment, name: str) -> TableJob:
    """Resolve a table.

    Raises:
        UserError: when the configuration has no such table.

    """
    if name not in experiment.tables:
        raise UserError(f"tables: {name!r} is not defined; {nearest(name, experiment.tables)}")
    table = experiment.tables[name]
    shown = [row.architecture for row in table.rows if row.architecture is not None]
    return TableJob(
        experiment=experiment.name,
        seeds=experiment.seeds,
        miniature=experiment.miniature is not None,
        table=table,
        systems=[row.system(experiment.methods) for row in table.rows],
        architectures={
            key: OwnArchitecture(label=architecture.label, epochs=experiment.recipes[architecture.recipe].epochs)
            for key, architecture in experiment.architectures.items()
            if key in shown
        },
        groups={c.evaluation: experiment.group_of(c.evaluation) for c in table.columns if c.evaluation is not None},
    )

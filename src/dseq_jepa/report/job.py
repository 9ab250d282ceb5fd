"""The resolved settings of a report: which tables it shows, and what methods are called.

from dseq_jepa.report.job import report_job
report_job(load("configs/demo.yaml")).to_json()  # what the workflow passes to `dseq-jepa report`
"""

from typing import Self

from dseq_jepa.closed import Closed
from dseq_jepa.config import Experiment
from dseq_jepa.jobs import canonical
from dseq_jepa.tables.job import TableJob, table_job


class ReportJob(Closed):
    """Write the report of an experiment."""

    experiment: str
    tables: list[TableJob]
    """In the order of the page."""
    labels: dict[str, str]
    """What methods are called."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the JSON that the workflow wrote."""
        return cls.model_validate_json(text)

    def to_json(self) -> str:
        """One line, keys sorted: equal settings give equal text."""
        return canonical(self.model_dump(mode="json"))


def report_job(experiment: Experiment) -> ReportJob:
    """Resolve the report of an experiment."""
    return ReportJob(
        experiment=experiment.name,
        tables=[table_job(experiment, name) for name in experiment.tables],
        labels={name: method.label for name, method in experiment.methods.items()},
    )

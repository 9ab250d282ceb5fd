"""What a report says about jobs, read from the artefacts of results/<config>; MLflow is never asked.

collect(Path("results/demo")).models["dseq-jepa/vit-mini/seed0"]
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dseq_jepa.errors import UserError
from dseq_jepa.journal import read
from dseq_jepa.provenance import FILE
from dseq_jepa.sources import JOURNAL, RESULTS, job_folders, sources
from dseq_jepa.tracked import Run, read_run

LOG_LINES = 30
EXAMPLES = "examples.png"
_STEPS = {"pretrain": 0, "score": 1, "export": 2}  # evaluations follow


@dataclass(frozen=True)
class JobRecord:
    """One folder that a job wrote to."""

    place: str
    """Below the results, such as evaluate/classify/dseq-jepa/vit-b16/seed0."""
    made: dict[str, Any]
    """provenance.json; empty where there is none."""
    files: dict[str, dict[str, Any]]
    """Result files by name."""
    events: list[dict[str, Any]]
    """Of the journal."""
    memory_mb: float | None
    """Largest resident memory that Snakemake saw."""
    log: Path | None
    examples: Path | None = None
    """Pictures of the test set with truth and prediction, where the evaluation draws them."""

    @property
    def step(self) -> str:
        """pretrain, score, export, or evaluate with its group."""
        parts = self.place.split("/")
        return "/".join(parts[:-3])

    @property
    def model(self) -> str:
        """<method>/<architecture>/seed<seed>."""
        return "/".join(self.place.split("/")[-3:])

    @property
    def seconds(self) -> float:
        """Of work, over all processes of a job that was interrupted where it counts them."""
        return max(float(self.made.get("seconds", 0)), float(self.files.get("run.json", {}).get("seconds", 0)))

    @property
    def devices(self) -> int:
        """Processes, each with a device of its own."""
        planned = self.made.get("job", {}).get("compute", {}).get("ranks", 1)
        return int(self.files.get("run.json", {}).get("ranks", planned))

    @property
    def gpu_hours(self) -> float:
        """Zero for a job on the CPU."""
        return self.seconds * self.devices / 3600 if str(self.made.get("device", "")).startswith("cuda") else 0.0

    @property
    def core_hours(self) -> float:
        """Compute threads times time; zero for a job on GPUs."""
        threads = int(self.made.get("threads") or 1)
        return 0.0 if self.gpu_hours else self.seconds * self.devices * threads / 3600


@dataclass(frozen=True)
class Collected:
    """Everything that is not a table or a figure."""

    results: Path
    jobs: list[JobRecord]
    runs: dict[str, Run] = field(default_factory=dict)
    """By place, as MLflow shows them: with curves."""
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Manifests by data set."""

    @cached_property
    def models(self) -> dict[str, list[JobRecord]]:
        """The jobs of every model."""
        models: dict[str, list[JobRecord]] = {}
        for job in sorted(self.jobs, key=lambda job: (_STEPS.get(job.step, len(_STEPS)), job.place)):
            models.setdefault(job.model, []).append(job)
        return dict(sorted(models.items()))

    def different(self, name: str) -> dict[str, list[str]]:
        """The values of a provenance entry, each with the places that have it."""
        values: dict[str, list[str]] = {}
        for job in self.jobs:
            if name in job.made:
                values.setdefault(str(job.made[name]), []).append(job.place)
        return values


def collect(results: Path) -> Collected:
    """Read the artefacts of every job.

    Raises:
        UserError: when the folder is missing or a file in it is corrupt, with its name.

    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder; there is nothing to report before the workflow has run.")
    return Collected(
        results,
        list(_jobs(results)),
        {source.place: read_run(source) for source in sources(results) if source.place.count("/") >= 3},
        {path.stem: read_json(path) for path in sorted((results / "fingerprints").glob("*.json"))},
    )


def _jobs(results: Path) -> Iterator[JobRecord]:
    for folder in job_folders(results):
        place = folder.relative_to(results).as_posix()
        names = [name for name in (*RESULTS, "encoder.json") if (folder / name).is_file()]
        journal = folder / JOURNAL
        events = [line for line in read(journal) if line["kind"] == "event"] if journal.exists() else []
        log = results / "logs" / f"{place}.log"
        yield JobRecord(
            place=place,
            made=read_json(folder / FILE) if (folder / FILE).is_file() else {},
            files={name: read_json(folder / name) for name in names},
            events=events,
            memory_mb=_memory(results / "benchmarks" / f"{place}.tsv"),
            log=log if log.is_file() else None,
            examples=examples if (examples := folder / EXAMPLES).is_file() else None,
        )


def _memory(path: Path) -> float | None:
    """Snakemake's max_rss in MB."""
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        found = [row.get("max_rss") for row in csv.DictReader(file, delimiter="\t")]
    return max((float(value) for value in found if value and value != "NA"), default=None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: naming the file.

    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and run its job again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; delete it and run its job again.")
    return content


def evaluations(job: JobRecord) -> Mapping[str, dict[str, Any]]:
    """What a group of evaluations measured."""
    found: Mapping[str, dict[str, Any]] = job.files.get("metrics.json", {}).get("evaluations", {})
    return found

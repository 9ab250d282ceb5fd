"""What a reader should know before trusting the numbers of a report.

for check in checks(collect(Path("results/demo")), tables): print(check.good, check.text)
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dseq_jepa.report.collect import Collected, JobRecord, evaluations
from dseq_jepa.tables.assemble import Table


class Check(NamedTuple):
    """A sentence, and whether it is good news."""

    good: bool
    text: str


def checks(collected: Collected, tables: Sequence[Table]) -> Iterator[Check]:
    """Code, seeds, data, failures, interruptions: good news as well, so that silence is never an answer."""
    yield from _code(collected)
    yield from _tables(tables)
    yield _of(collected, "FAILED", "No job failed.", "Failed")
    yield _of(collected, "RUNNING", "Every job has ended.", "Not ended")
    yield _listed(
        _other_data(collected), "Every job read the data that the workflow checked.", "Read other data than was checked"
    )
    yield _listed(
        _other_encoder(collected),
        "Every measurement is of the encoder that is there now.",
        "Measured on an encoder that was replaced since",
    )
    skipped = [job.place for job in collected.jobs if _skipped(job)]
    yield _listed(skipped, "No picture was unreadable.", "Unreadable pictures were skipped in")
    warned = [job.place for job in collected.jobs if any(event["name"] == "warning" for event in job.events)]
    yield _listed(warned, "No job wrote a warning.", "Warnings in")
    resumed = [job.place for job in collected.jobs if any(event["name"] == "resumed" for event in job.events)]
    if resumed:
        yield Check(True, f"Interrupted, and gone on from the saved state: {', '.join(resumed)}.")


def _code(collected: Collected) -> Iterator[Check]:
    versions = list(collected.different("code_version"))
    if len(versions) > 1:
        yield Check(False, f"Jobs ran {len(versions)} versions of the code: {', '.join(versions)}.")
    else:
        yield Check(bool(versions), f"All jobs ran the same code: {versions[0] if versions else 'not recorded'}.")
    if any(version.endswith("-dirty") for version in versions):
        yield Check(False, "Some code was not committed; the patch is in the provenance.json of its jobs.")


def _tables(tables: Sequence[Table]) -> Iterator[Check]:
    seeds = min((len(table.seeds) for table in tables), default=0)
    if seeds == 1:
        yield Check(False, "One seed per number: how much another seed would change is not known.")
    elif seeds:
        yield Check(True, f"{seeds} seeds per number.")
    if any(table.miniature for table in tables):
        yield Check(False, "The pictures are generated miniatures: our numbers are not comparable with the paper's.")


def _of(collected: Collected, status: str, none: str, some: str) -> Check:
    return _listed([place for place, run in collected.runs.items() if run.status == status], none, some)


def _listed(places: list[str], none: str, some: str) -> Check:
    return Check(not places, f"{some}: {', '.join(places)}." if places else none)


def _other_data(collected: Collected) -> list[str]:
    """Jobs whose data is not what the workflow's manifests say now."""
    known = {manifest["fingerprint"] for manifest in collected.data.values()}
    read = {job.place: {found for found in job.made.get("data", {}).values() if found} for job in collected.jobs}
    return [place for place, fingerprints in read.items() if fingerprints - known]


def _other_encoder(collected: Collected) -> list[str]:
    """Evaluations of a model whose export came later."""
    exported = {job.model: job.made["finished"] for job in collected.jobs if job.step == "export" and job.made}
    measured = [job for job in collected.jobs if job.step.startswith("evaluate") and job.made]
    return [job.place for job in measured if job.made["started"] < exported.get(job.model, "")]


def _skipped(job: JobRecord) -> int:
    counts = [int(found.get("skipped_images", 0)) for found in evaluations(job).values()]
    return sum(counts) + int(job.files.get("run.json", {}).get("skipped_images", 0))

"""Which jobs of a results folder left something to mirror or to report; finding them reads no result file.

    python -c 'from pathlib import Path; from dseq_jepa.sources import sources
    for source in sources(Path("results/demo")): print(source.place, source.files())'

A pre-training is a source of its own; scoring and export of its model are one, its choice of a checkpoint. Tables,
figures and the report are one, and so is every invocation of the workflow. tracked.py reads them.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dseq_jepa.journal import read

JOURNAL = "journal.jsonl"
_FORMAT = "2"  # of the mirror; a change here mirrors everything anew
_LAYOUT = re.compile(
    r"(?P<step>[^/]+)/(?:(?P<group>[^/]+)/)?(?P<method>[^/]+)/(?P<architecture>[^/]+)/seed(?P<seed>\d+)"
)
ENCODER = "encoder.safetensors"
RESULTS = ("metrics.json", "scores.json", "selection.json", "run.json")
_ARTEFACTS = (*RESULTS, "encoder.json", "provenance.json")
_NO_JOBS = (
    "benchmarks",
    "data",
    "figures",
    "fingerprints",
    "logs",
    "mlartifacts",
    "tables",
    "tracking",
    "workflow",
)  # folders of results/<config>
_SHOWN = {"tables": ("csv", "md", "tex", "html"), "figures": ("png", "pdf", "md")}
_REPORT = "report.html"


@dataclass(frozen=True)
class Source:
    """A job that left something to mirror; finding it reads no file."""

    place: str
    step: str
    parent: str | None
    """Place of the pre-training that it belongs to."""
    folders: tuple[Path, ...]
    logs: tuple[Path, ...] = ()
    """What the jobs wrote to their terminals."""
    superseded: bool = False
    """Of a workflow's invocation: another one began later."""

    def files(self) -> list[Path]:
        """What the run is read from, first of all its journal."""
        if self.step == "tables":
            return [path for path, _ in shown(self.folders[0])]
        names = (JOURNAL, *_ARTEFACTS, *((ENCODER,) if self.step == "select" else ()))
        return [folder / name for folder in self.folders for name in names if (folder / name).is_file()]

    def fingerprint(self) -> str:
        """Changes when any of the files changes; taken before reading, so a growing journal is read again later."""
        stats = [(path, path.stat()) for path in (*self.files(), *self.logs)]
        lines = [f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
        return hashlib.sha256("\n".join([_FORMAT, str(self.superseded), *lines]).encode()).hexdigest()[:16]


def sources(results: Path) -> Iterator[Source]:
    """The jobs of results/<config> that left something, pre-trainings first."""
    found: dict[str, list[Path]] = {}
    for folder in job_folders(results):
        if any((folder / name).is_file() for name in (JOURNAL, *RESULTS)):
            found.setdefault(_place(_parts(folder, results)), []).append(folder)
    for place in sorted(found, key=lambda place: (not place.startswith("pretrain/"), place)):
        folders = tuple(sorted(found[place], reverse=True))
        logs = [results / "logs" / f"{folder.relative_to(results)}.log" for folder in folders]
        yield _source(place, folders, tuple(log for log in logs if log.is_file()))
    if shown(results):
        yield Source("tables", "tables", None, (results,))
    invocations = [journal.parent for journal in sorted(results.glob(f"workflow/*/{JOURNAL}"))]
    for folder in invocations:
        later = folder != invocations[-1]
        yield Source(f"workflow/{folder.name}", "workflow", None, (folder,), superseded=later)


def job_folders(results: Path) -> Iterator[Path]:
    """The folders of results/<config> that jobs of a model write to, whether or not anything is in them yet."""
    steps = [folder for folder in sorted(results.iterdir()) if folder.is_dir() and folder.name not in _NO_JOBS]
    for folder in chain.from_iterable(
        sorted(step.glob(deep)) for step in steps for deep in ("*/*/seed*", "*/*/*/seed*")
    ):
        if folder.is_dir() and _LAYOUT.fullmatch(folder.relative_to(results).as_posix()):
            yield folder


def _parts(folder: Path, results: Path) -> dict[str, str | None]:
    match = _LAYOUT.fullmatch(folder.relative_to(results).as_posix())
    return match.groupdict() if match else {}


def source_of(folder: Path) -> Source | None:
    """The job that writes into a folder, which may lie anywhere; None before its journal's first line is written."""
    first = next(iter(read(folder / JOURNAL)), None) if (folder / JOURNAL).exists() else None
    if first is None or first["kind"] != "run":
        return None
    return _source(_place({"group": None, **first["tags"]}), (folder,))


def _place(where: Mapping[str, str | None]) -> str:
    """Scoring and export are the two halves of choosing a checkpoint: one run."""
    step = "select" if where["step"] in ("score", "export") else where["step"]
    parts = (step, where["group"], where["method"], where["architecture"], f"seed{where['seed']}")
    return "/".join(part for part in parts if part)


def _source(place: str, folders: tuple[Path, ...], logs: tuple[Path, ...] = ()) -> Source:
    step = place.split("/")[0]
    model = "/".join(place.split("/")[-3:])
    return Source(place, step, None if step == "pretrain" else f"pretrain/{model}", folders, logs)


def shown(results: Path) -> list[tuple[Path, str | None]]:
    """Tables, figures and the report, each with its folder."""
    found: list[tuple[Path, str | None]] = [
        (path, folder)
        for folder, ends in _SHOWN.items()
        for end in ends
        for path in sorted((results / folder).glob(f"*.{end}"))
    ]
    report = results / _REPORT
    return [*found, (report, None)] if report.is_file() else found

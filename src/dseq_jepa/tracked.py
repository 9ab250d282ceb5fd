"""What the MLflow mirror of a results folder holds: one run per job, read from journals and result files.

    python -c 'from pathlib import Path; from dseq_jepa.tracked import sources
    for source in sources(Path("results/demo")): print(source.read().name)'

Nothing here knows MLflow; tracking.py makes the store agree with it. A pre-training is a root run; the selection and
the evaluations of its model are its children. Curves are thinned to at most 10,000 points a metric: one at a fixed
stride of steps, plus the last one when the run has ended. The stride comes from the planned steps in the journal's
first line, so it is the same while a run goes on and after a resume. The journal keeps everything.
"""

import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from dseq_jepa.errors import UserError
from dseq_jepa.journal import read
from dseq_jepa.masking import masked

MAX_POINTS = 10_000
JOURNAL = "journal.jsonl"
_FORMAT = "1"  # of the mirror; a change here mirrors everything anew
_LAYOUT = re.compile(
    r"(?P<step>[^/]+)/(?:(?P<group>[^/]+)/)?(?P<method>[^/]+)/(?P<architecture>[^/]+)/seed(?P<seed>\d+)"
)
RESULTS = ("metrics.json", "scores.json", "selection.json", "run.json")
_ARTEFACTS = (*RESULTS, "encoder.json", "provenance.json")
_NO_JOBS = ("data", "fingerprints", "mlartifacts", "tables", "tracking")  # folders of results/<config>
_TABLES = ("csv", "md", "tex", "html")
_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")
_CLOSING_MS = 5000  # a job may still write a line after its result
_LONGEST_NAME, _LONGEST_PARAM = 250, 6000
_STATES = {"resumed": "RUNNING", "finished": "FINISHED", "failed": "FAILED"}


class Point(NamedTuple):
    """One value of a curve."""

    name: str
    step: int
    time_ms: int
    value: float


@dataclass
class Run:
    """One run as the store should hold it."""

    place: str
    """Where in the results, such as pretrain/dseq-jepa/vit-b/seed0; children find their parent by it."""
    key: str
    """Its identity: the place and the digest of its configuration. A changed configuration is another run."""
    name: str
    status: str
    """RUNNING, FINISHED or FAILED."""
    start_ms: int
    end_ms: int | None
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    config: dict[str, Any] | None = None
    """The resolved job."""
    artefacts: list[tuple[Path, str | None]] = field(default_factory=list)
    """Files, each with its folder among the run's artefacts (None: at the top)."""


@dataclass(frozen=True)
class Source:
    """A job that left something to mirror; finding it reads no file."""

    place: str
    step: str
    parent: str | None
    """Place of the pre-training that it belongs to."""
    folders: tuple[Path, ...]

    def files(self) -> list[Path]:
        """What the run is read from, first of all its journal."""
        if self.step == "tables":
            return sorted(path for end in _TABLES for path in self.folders[0].glob(f"*.{end}"))
        names = (JOURNAL, *_ARTEFACTS)
        return [folder / name for folder in self.folders for name in names if (folder / name).is_file()]

    def fingerprint(self) -> str:
        """Changes when any of the files changes; taken before reading, so a growing journal is read again later."""
        stats = [(path, path.stat()) for path in self.files()]
        lines = [f"{path.name} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
        return hashlib.sha256("\n".join([_FORMAT, *lines]).encode()).hexdigest()[:16]

    def read(self) -> Run:
        """Read everything.

        Raises:
            UserError: for a corrupt journal or result file, with its name.

        """
        return _tables(self) if self.step == "tables" else _job(self)


def sources(results: Path) -> Iterator[Source]:
    """The jobs of results/<config> that left something, pre-trainings first."""
    found: dict[str, list[Path]] = {}
    for folder in job_folders(results):
        if any((folder / name).is_file() for name in (JOURNAL, *RESULTS)):
            found.setdefault(_place(_parts(folder, results)), []).append(folder)
    for place in sorted(found, key=lambda place: (not place.startswith("pretrain/"), place)):
        yield _source(place, tuple(sorted(found[place], reverse=True)))
    if any((results / "tables").glob("*.*")):
        yield Source("tables", "tables", None, (results / "tables",))


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


def stride_of(interval: int, last_step: int) -> int:
    """Steps between mirrored points of a metric that is logged every `interval` steps up to `last_step`.

    The interval times 1, 2, 4, ...: the first that leaves room for the last point.
    """
    stride = max(1, interval)
    while last_step // stride + 1 >= MAX_POINTS:
        stride *= 2
    return stride


def _place(where: Mapping[str, str | None]) -> str:
    """Scoring and export are the two halves of choosing a checkpoint: one run."""
    step = "select" if where["step"] in ("score", "export") else where["step"]
    parts = (step, where["group"], where["method"], where["architecture"], f"seed{where['seed']}")
    return "/".join(part for part in parts if part)


def _source(place: str, folders: tuple[Path, ...]) -> Source:
    step = place.split("/")[0]
    model = "/".join(place.split("/")[-3:])
    return Source(place, step, None if step == "pretrain" else f"pretrain/{model}", folders)


def _job(source: Source) -> Run:
    paths = source.files()
    files = {path.name: path for path in reversed(paths)}  # of score/ and export/, score/ tells more
    lines = list(read(files[JOURNAL])) if JOURNAL in files else []
    started = _first(lines, "run")
    made = _json(files["provenance.json"]) if "provenance.json" in files else {}
    if made and lines and _utc_ms(made["finished"]) < _ms(lines[0]["t"]):
        made = {}  # of an attempt before this one
    job = _first(lines, "params").get("values") or made.get("job", {})
    tags = _tags(source, made, started.get("tags", {}) | _resumed(lines), job)
    result_ms = max((_modified_ms(files[name]) for name in RESULTS if name in files), default=0)
    last_ms = max((_ms(line["t"]) for line in lines), default=0)
    status = _status(lines, finished=bool(result_ms) and result_ms >= last_ms - _CLOSING_MS)
    end_ms = _utc_ms(made["finished"]) if made else max(result_ms, last_ms)
    start_ms = _ms(lines[0]["t"]) if lines else _utc_ms(made["started"]) if made else end_ms
    metrics = [line for line in lines if line["kind"] == "metrics"]
    curves = list(_curves(metrics, started.get("steps"), ended=status != "RUNNING"))
    journalled = {point.name for point in curves}
    return Run(
        place=source.place,
        key=f"{source.place}:{tags.get('config_digest', '')}",
        name=_name(source, tags, job),
        status=status,
        start_ms=start_ms,
        end_ms=None if status == "RUNNING" else end_ms,
        tags=tags,
        params=_flat(job),
        points=[*curves, *(point for point in _results(files, end_ms) if point.name not in journalled)],
        config=job or None,
        artefacts=[
            (path, path.parents[3].name if len(source.folders) > 1 else None) for path in paths if path.name != JOURNAL
        ],
    )


def _tables(source: Source) -> Run:
    files = source.files()
    times = [_modified_ms(path) for path in files]
    tags = {"step": "tables", "host": socket.gethostname()}
    return Run(
        "tables",
        "tables",
        "tables",
        "FINISHED",
        min(times),
        max(times),
        tags,
        artefacts=[(path, None) for path in files],
    )


def _status(lines: list[dict[str, Any]], finished: bool) -> str:
    """RUNNING, unless the journal's last word or the result file behind it says that it ended."""
    states = [_STATES[line["name"]] for line in lines if line["kind"] == "event" and line["name"] in _STATES]
    if states and states[-1] != "RUNNING":
        return states[-1]
    return "FINISHED" if finished else "RUNNING"


def _resumed(lines: list[dict[str, Any]]) -> dict[str, str]:
    """Tags of the latest process that went on with the run."""
    return next((line["tags"] for line in reversed(lines) if line.get("name") == "resumed"), {})


def _tags(
    source: Source, made: Mapping[str, Any], started: Mapping[str, str], job: Mapping[str, Any]
) -> dict[str, str]:
    step, *group, method, architecture, seed = source.place.split("/")
    tags = {"method": method, "architecture": architecture, "seed": seed.removeprefix("seed")}
    tags |= {"group": group[0]} if group else {}
    tags |= {name: str(made[name]) for name in ("config_digest", "code_version", "host", "device") if name in made}
    tags |= started
    data = job.get("data", {})
    if data:
        tags["dataset"] = data["layout"] if "layout" in data else ",".join(sorted(data))
    return {name: masked(value) for name, value in tags.items()} | {"step": step}


def _name(source: Source, tags: Mapping[str, str], job: Mapping[str, Any]) -> str:
    """For people: dseq-jepa / ViT-B/16 / seed 0, after what was done with the model where it is not the training."""
    label = job.get("architecture", {}).get("label", tags["architecture"])
    model = f"{tags['method']} / {label} / seed {tags['seed']}"
    return model if source.step == "pretrain" else f"{tags.get('group', source.step)}: {model}"


def _curves(metrics: list[dict[str, Any]], steps: int | None, ended: bool) -> Iterator[Point]:
    """The journal's points, thinned. Which ones is decided by earlier lines only, and so never changes later."""
    last_step = max([steps or 0, *(line["step"] for line in metrics)])
    curves: dict[str, _Curve] = {}
    for line in metrics:
        time_ms, step = _ms(line["t"]), line["step"]
        for name, value in line["values"].items():
            curve = curves.setdefault(name, _Curve(first=step))
            point = Point(name, step, time_ms, value)
            if curve.takes(step, last_step):
                curve.last = None
                yield _named(point)
            else:
                curve.last = point
    if ended:
        yield from (_named(curve.last) for curve in curves.values() if curve.last)


@dataclass
class _Curve:
    """What was taken of a metric; its second point shows how often it is logged."""

    first: int
    stride: int = 0
    taken: set[int] = field(default_factory=set)
    last: Point | None = None

    def takes(self, step: int, last_step: int) -> bool:
        """The first point of each stride, counted from the metric's first step."""
        if not self.stride and step > self.first:
            self.stride = stride_of(step - self.first, last_step)
        window = (step - self.first) // self.stride if self.stride else 0
        if window in self.taken:
            return False
        self.taken.add(window)
        return True


def _results(files: Mapping[str, Path], end_ms: int) -> Iterator[Point]:
    """Values of result files: evaluations at step 0, scores of checkpoints at their percent of the training."""
    if "metrics.json" in files:
        for name, found in _json(files["metrics.json"])["evaluations"].items():
            for entry, label in (("value", found["metric"]), ("skipped_images", "skipped_images")):
                if isinstance(found.get(entry), int | float):
                    yield _named(Point(f"{name}/{label}", 0, end_ms, float(found[entry])))
    if "scores.json" in files:
        for checkpoint in _json(files["scores.json"])["checkpoints"]:
            for name, value in _numbers(checkpoint):
                yield _named(Point(name, checkpoint["percent"], end_ms, value))
    if "selection.json" in files:
        chosen = _json(files["selection.json"])["chosen"]
        yield Point("selected/percent", 0, end_ms, float(chosen["percent"]))
        for name, value in _numbers(chosen):
            yield _named(Point(f"selected/{name}", 0, end_ms, value))


def _numbers(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in checkpoint.items():
        if name != "percent" and isinstance(value, int | float):
            yield name, float(value)


def _named(point: Point) -> Point:
    name = _allowed(point.name)
    return point if name == point.name else point._replace(name=name)


def _allowed(name: str) -> str:
    """A name within MLflow's rules; one that is too long keeps its end apart by a hash."""
    name = _NOT_ALLOWED.sub("_", name).strip("/") or "_"
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]


def _flat(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as key paths; values as JSON without the quotes, cut where MLflow would refuse them."""
    flat: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            text = masked(value if isinstance(value, str) else json.dumps(value))
            flat[_allowed(f"{prefix}{key}")] = (
                text if len(text) <= _LONGEST_PARAM else text[: _LONGEST_PARAM - 3] + "..."
            )
    return flat


def _first(lines: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((line for line in lines if line["kind"] == kind), {})


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); delete it and run its job again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; delete it and run its job again.")
    return content


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _modified_ms(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def _utc_ms(text: str) -> int:
    return _ms(datetime.fromisoformat(text).timestamp())

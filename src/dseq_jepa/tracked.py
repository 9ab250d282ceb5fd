"""What the MLflow mirror of a results folder holds: one run per job, read from journals and result files.

    python -c 'from pathlib import Path; from dseq_jepa.sources import sources; from dseq_jepa.tracked import read_run
    for source in sources(Path("results/demo")): print(read_run(source).name)'

Nothing here knows MLflow; tracking.py makes the store agree with it. A pre-training is a root run; the selection and
the evaluations of its model are its children. Tables, figures and the report are a run, and so is every invocation of
the workflow. Curves are thinned (thinning.py); the journal keeps everything.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from dseq_jepa.errors import UserError
from dseq_jepa.journal import read
from dseq_jepa.masking import masked, masked_values
from dseq_jepa.sources import ENCODER, JOURNAL, RESULTS, Source, shown
from dseq_jepa.thinning import Point, allowed, named, thinned

_CLOSING_MS = 5000  # a job may still write a line after its result
_LONGEST_PARAM, _LONGEST_TAG = 6000, 4000
_STATES = {"resumed": "RUNNING", "finished": "FINISHED", "failed": "FAILED"}


class Dataset(NamedTuple):
    """A data set that a run read."""

    name: str
    fingerprint: str
    context: str
    """pre-training, selection or evaluation."""
    root: str


class Export(NamedTuple):
    """The encoder that a model's selection chose."""

    weights: Path
    card: dict[str, Any]


@dataclass
class Run:
    """One run as the store should hold it."""

    place: str
    """Where in the results, such as pretrain/dseq-jepa/vit-b/seed0; children find their parent by it."""
    key: str
    """Its identity: the place and the digest of its configuration. A changed configuration is another run."""
    name: str
    status: str
    """RUNNING, FINISHED or FAILED; KILLED for a workflow that could not say how it ended."""
    start_ms: int
    end_ms: int | None
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    config: dict[str, Any] | None = None
    """The resolved job."""
    artefacts: list[tuple[Path, str | None]] = field(default_factory=list)
    """Files, each with its folder among the run's artefacts (None: at the top)."""
    datasets: list[Dataset] = field(default_factory=list)
    export: Export | None = None


def read_run(source: Source) -> Run:
    """Read everything of a job.

    Raises:
        UserError: for a corrupt journal or result file, with its name.

    """
    match source.step:
        case "tables":
            return _tables(source)
        case "workflow":
            return _workflow(source)
        case _:
            return _job(source)


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
    curves = list(thinned(metrics, started.get("steps"), ended=status != "RUNNING"))
    journalled = {point.name for point in curves}
    return Run(
        place=source.place,
        key=f"{source.place}:{tags.get('config_digest', '')}",
        name=_name(source, tags, job),
        status=status,
        start_ms=start_ms,
        end_ms=None if status == "RUNNING" else end_ms,
        tags=tags | {"state": status.lower()},
        params=_flat(job),
        points=[*curves, *(point for point in _results(files, end_ms) if point.name not in journalled)],
        config=masked_values(job) or None,
        artefacts=[
            *((path, _folder(path, source)) for path in paths if path.name != JOURNAL),
            *((log, "logs") for log in source.logs),
        ],
        datasets=_datasets(source.step, made, job),
        export=Export(files[ENCODER], _json(files["encoder.json"]))
        if {ENCODER, "encoder.json"} <= files.keys()
        else None,
    )


def _folder(path: Path, source: Source) -> str | None:
    """Two folders make the selection's run: score and export keep their names."""
    return path.parents[3].name if source.step == "select" else None


def _datasets(step: str, made: Mapping[str, Any], job: Mapping[str, Any]) -> list[Dataset]:
    """What the job says that it read; its settings know the layouts and folders."""
    settings = job.get("data", {})
    context = {"pretrain": "pre-training", "select": "selection"}.get(step, "evaluation")
    found = []
    for name, fingerprint in made.get("data", {}).items():
        entry = settings.get(name, settings)
        found.append(Dataset(str(entry.get("layout", name)), fingerprint or "", context, str(entry.get("root", ""))))
    return found


def _workflow(source: Source) -> Run:
    """An invocation of the workflow. The one that is mirroring its own results has nothing else left to do."""
    lines = list(read(source.folders[0] / JOURNAL))
    tags = {name: masked(value) for name, value in _first(lines, "run").get("tags", {}).items()}
    name = source.place.partition("/")[2]
    events = [line for line in lines if line["kind"] == "event"]
    status = _status(lines, finished=os.environ.get("DSEQ_WORKFLOW") == name)
    if status == "RUNNING" and source.superseded:
        status = "KILLED"  # it held the lock that the later one has
    start_ms, last_ms = (_ms(lines[i]["t"]) if lines else 0 for i in (0, -1))
    counts = {state: sum(event["name"] == f"job_{state}" for event in events) for state in ("finished", "failed")}
    failures = [
        f"{e['rule']}:\n```\n{chr(10).join(e['logs'].values())}\n```" for e in events if e["name"] == "job_failed"
    ]
    if failures:
        tags["failures"] = masked("\n".join(failures))[:_LONGEST_TAG]
    return Run(
        place=source.place,
        key=source.place,
        name=f"workflow {name.partition('-')[0]}",
        status=status,
        start_ms=start_ms,
        end_ms=None if status == "RUNNING" else last_ms,
        tags=tags
        | {
            "step": "workflow",
            "state": status.lower(),
            **{f"jobs_{state}": str(count) for state, count in counts.items()},
        },
        points=list(thinned([line for line in lines if line["kind"] == "metrics"], None, ended=status != "RUNNING")),
        artefacts=[(source.folders[0] / JOURNAL, None)],
    )


def _tables(source: Source) -> Run:
    artefacts = shown(source.folders[0])
    times = [_modified_ms(path) for path, _ in artefacts]
    tags = {"step": "tables", "state": "finished", "host": socket.gethostname()}
    return Run(
        "tables", "tables", "tables and figures", "FINISHED", min(times), max(times), tags, artefacts=artefacts
    )  # fmt: skip


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
    tags |= {name: str(value) for name, value in made.get("scheduler", {}).items()}
    tags |= started
    data = job.get("data", {})
    if data:
        tags["dataset"] = data["layout"] if "layout" in data else ",".join(sorted(data))
    return {name: masked(value) for name, value in tags.items()} | {"step": step}


def _name(source: Source, tags: Mapping[str, str], job: Mapping[str, Any]) -> str:
    """For people: dseq-jepa / ViT-B/16 / seed 0, after what was done with the model where it is not the training."""
    label = job.get("architecture", {}).get("label") or _label(source) or tags["architecture"]
    model = f"{tags['method']} / {label} / seed {tags['seed']}"
    return model if source.step == "pretrain" else f"{tags.get('group', source.step)}: {model}"


def _label(source: Source) -> str | None:
    """What the architecture is called, from the card of the encoder that an evaluation was given."""
    results = source.folders[0].parents[source.place.count("/")]
    card = results / "export" / "/".join(source.place.split("/")[-3:]) / "encoder.json"
    return str(_json(card)["architecture"]["label"]) if card.is_file() else None


def _results(files: Mapping[str, Path], end_ms: int) -> Iterator[Point]:
    """Values of result files: evaluations at step 0, scores of checkpoints at their percent of the training."""
    if "metrics.json" in files:
        for name, found in _json(files["metrics.json"])["evaluations"].items():
            for entry, label in (("value", found["metric"]), ("skipped_images", "skipped_images")):
                if isinstance(found.get(entry), int | float):
                    yield named(Point(f"{name}/{label}", 0, end_ms, float(found[entry])))
    if "scores.json" in files:
        for checkpoint in _json(files["scores.json"])["checkpoints"]:
            for name, value in _numbers(checkpoint):
                yield named(Point(name, checkpoint["percent"], end_ms, value))
    if "selection.json" in files:
        chosen = _json(files["selection.json"])["chosen"]
        yield Point("selected/percent", 0, end_ms, float(chosen["percent"]))
        for name, value in _numbers(chosen):
            yield named(Point(f"selected/{name}", 0, end_ms, value))


def _numbers(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in checkpoint.items():
        if name != "percent" and isinstance(value, int | float):
            yield name, float(value)


def _flat(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as key paths; values as JSON without the quotes, cut where MLflow would refuse them."""
    flat: dict[str, str] = {}
    for key, value in job.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            text = masked(value if isinstance(value, str) else json.dumps(value))
            flat[allowed(f"{prefix}{key}")] = (
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

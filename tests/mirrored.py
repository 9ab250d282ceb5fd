"""Journals of made-up runs, and what an MLflow store has to hold of them; for the tests of the mirror."""

import json
from pathlib import Path
from typing import Any

from dseq_jepa.journal import encode, read
from dseq_jepa.sources import sources
from dseq_jepa.tracked import read_run

MODEL = "dseq-jepa/vit-b/seed0"
JOB = {
    "model": {"experiment": "demo", "method": "dseq-jepa", "architecture": "vit-b", "seed": 0},
    "architecture": {"label": "ViT-B/16", "width": 768, "heads": None},
    "recipe": {"learning_rate": {"peak": 0.001}, "betas": [0.9, 0.999], "note": "x" * 7000},
    "data": {"layout": "imagenet", "root": "/data"},
}
TAGS = {
    "step": "pretrain", "experiment": "demo", "method": "dseq-jepa", "architecture": "vit-b", "seed": "0",
    "config_digest": "abc", "code_version": "c0de", "host": "here",
}  # fmt: skip


def pretrain(results: Path, steps: int = 20, model: str = MODEL, finished: bool = True, every: int = 1) -> Path:
    """A journal of a pre-training; times are those of long ago, so that the store's own clock would show."""
    folder = results / "pretrain" / model
    folder.mkdir(parents=True, exist_ok=True)
    method, architecture, seed = model.split("/")
    tags = TAGS | {"method": method, "architecture": architecture, "seed": seed.removeprefix("seed")}
    lines: list[dict[str, Any]] = [
        {"t": 1000.0, "kind": "run", "tags": tags, "steps": steps},
        {"t": 1000.0, "kind": "params", "values": JOB},
    ]
    for step in range(every, steps + 1, every):
        values = {"loss": 1 / step, "regions/mean": float(step)}
        lines.append({"t": 1000.0 + step / 8, "kind": "metrics", "step": step, "values": values})
    if finished:
        lines.append({"t": 1001.0 + steps, "kind": "event", "name": "finished"})
    (folder / "journal.jsonl").write_text("".join(encode(line) + "\n" for line in lines))
    return folder


def evaluated(results: Path) -> None:
    """What scoring, export and a group of evaluations of the same model leave."""
    checkpoints = [{"percent": 50, "knn_top1": 30.5, "file": "a"}, {"percent": 100, "knn_top1": 31.5, "file": "b"}]
    made = {
        "job": JOB | {"data": {"cub": {}, "cars": {}}}, "config_digest": "e7a1", "code_version": "c0de", "host": "here",
        "started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T10:01:00+00:00", "device": "cpu",
        "scheduler": {"slurm_job": "4711", "workflow": "20260101T100000-7"},
    }  # fmt: skip
    found = {"cub": {"value": 71.25, "metric": "top1", "skipped_images": 2}}
    content: dict[str, dict[str, Any]] = {
        "score": {"scores.json": {"checkpoints": checkpoints}, "provenance.json": made},
        "export": {"selection.json": {"chosen": checkpoints[1], "reason": "best"}, "provenance.json": made},
        "evaluate/fine-grained": {"metrics.json": {"evaluations": found}, "provenance.json": made},
    }
    for step, files in content.items():
        folder = results / step / MODEL
        folder.mkdir(parents=True)
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value))
    (results / "tables").mkdir()
    (results / "tables" / "table1.csv").write_text("system,top1\n")


def stored(results: Path, experiment: str = "demo", uri: str | None = None) -> dict[str, Any]:
    """Active runs of an experiment by name; two with one name fail."""
    from mlflow import MlflowClient

    client = MlflowClient(uri or f"sqlite:///{results.resolve()}/mlflow.db")
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    names = [run.info.run_name for run in runs]
    assert len(set(names)) == len(names)
    for run in runs:
        run.histories = {
            name: [(p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
    return dict(zip(names, runs, strict=True))


def journal_points(folder: Path) -> dict[str, list[tuple[int, int, float]]]:
    """Every point of a journal, as the store should hold it; the slow way."""
    points: dict[str, list[tuple[int, int, float]]] = {}
    for line in read(folder / "journal.jsonl"):
        for name, value in line.get("values", {}).items() if line["kind"] == "metrics" else ():
            points.setdefault(name, []).append((line["step"], round(line["t"] * 1000), value))
    return points


def assert_mirrored(results: Path, experiment: str = "demo", uri: str | None = None) -> None:
    """Every journal's points are in the store exactly once, with the journal's times."""
    runs = stored(results, experiment, uri)
    folders = {read_run(source).name: source.folders[0] for source in sources(results) if source.step == "pretrain"}
    assert folders
    for name, folder in folders.items():
        held = {metric: sorted(points) for metric, points in runs[name].histories.items()}
        assert held == journal_points(folder)


NAME = "dseq-jepa / ViT-B/16 / seed 0"

"""Made-up measurements in the files that evaluations write."""

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dseq_jepa.config import Experiment, load
from dseq_jepa.jobs import Model
from dseq_jepa.tables.assemble import run_directory

CONFIGS = Path(__file__).parents[2] / "configs"
REPORTED = CONFIGS / "reported_values.csv"
IMAGES = 1000
METRICS = {"probe": "top1", "finetune": "top1", "segment": "miou", "detect": "box_ap", "cost": "pretrain_hours"}
VALUES = {"mine": 50.0, "i-jepa": 40.0, "dseq-jepa": 42.5, "c-jepa": 41.0, "dseq-c-jepa": 40.9}


@functools.cache
def records(answered: tuple[tuple[str, float], ...]) -> bytes:
    """records.csv.gz of evaluations with these accuracies in percent."""
    lines = [
        f"{name},{image}.jpg,a,a,{int(image < round(IMAGES * value / 100))}"
        for name, value in answered
        for image in range(IMAGES)
    ]
    return gzip.compress("\n".join(["evaluation,image,label,prediction,correct", *lines, ""]).encode(), 1)


@functools.cache
def overlaps(name: str, value: float) -> bytes:
    """records.csv.gz of a segmentation with this mean IoU in percent: one class, ten pixels in a picture."""
    hits = round(value * 10)
    lines = [f"{name},{image}.jpg,a,{min(10, max(0, hits - 10 * image))},10" for image in range(100)]
    return gzip.compress("\n".join(["evaluation,image,class,intersection,union", *lines, ""]).encode(), 1)


def write_measurements(experiment: Experiment, results: Path, code_version: str = "v1") -> dict[str, Path]:
    """Every metrics.json that the experiment's rows need, and its records; the value is the method's, plus a tenth per
    evaluation and a whole point per seed. The better of two runs is right wherever the other one is.
    """
    rows = [row for table in experiment.tables.values() for row in table.rows if row.method and row.architecture]
    files, order = {}, list(experiment.evaluations)
    columns = [column for table in experiment.tables.values() for column in table.columns if column.value]
    for method, architecture in {(str(row.method), str(row.architecture)) for row in rows}:
        for seed in experiment.seeds:
            for group, members in experiment.groups.items():
                model = Model(experiment=experiment.name, method=method, architecture=architecture, seed=seed)
                path = results / run_directory(group, model) / "metrics.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                evaluations = {
                    name: {
                        "value": VALUES.get(method, 42.0) + order.index(name) / 10 + seed,
                        "metric": METRICS[experiment.evaluations[name].kind],
                        "values": {column.value: 12.3456 for column in columns if column.evaluation == name},
                        "n": IMAGES,
                        "chance": 10.0,
                        "features": "last4",
                        "learning_rate": 0.1,
                        "heads": [],
                        "skipped_images": 0,
                        "seconds": 1.5,
                    }
                    for name in members
                }
                content = {
                    "schema": 1,
                    "model": model.model_dump(),
                    "group": group,
                    "code_version": code_version,
                    "config_digest": f"digest-{method}",
                    "evaluations": evaluations,
                }
                path.write_text(json.dumps(content))
                answered = [(name, e["value"]) for name, e in evaluations.items() if e["metric"] == "top1"]
                segmented = [(name, e["value"]) for name, e in evaluations.items() if e["metric"] == "miou"]
                text = overlaps(*segmented[0]) if segmented else records(tuple(answered))
                path.with_name("records.csv.gz").write_bytes(text)
                files[f"{method}/{architecture}/{seed}/{group}"] = path
    return files


@pytest.fixture
def demo(tmp_path: Path) -> tuple[Experiment, Path]:
    """The demo and a results folder that holds everything its tables need."""
    experiment = load(CONFIGS / "demo.yaml").model_copy(update={"results": tmp_path})
    write_measurements(experiment, experiment.directory)
    return experiment, experiment.directory


@pytest.fixture
def measure() -> Callable[[Experiment, Path], dict[str, Path]]:
    """Writes what is still missing for an experiment with more seeds or methods."""
    return write_measurements

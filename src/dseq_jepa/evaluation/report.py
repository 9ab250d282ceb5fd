"""What an evaluation leaves behind: metrics.json, and one line per test image in records.csv.gz.

zcat out/records.csv.gz | head
python -c 'import json; print(json.load(open("out/metrics.json"))["evaluations"])'
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.catalog import Split
from dseq_jepa.evaluation.heads import HeadSettings
from dseq_jepa.files import atomically, write_atomically
from dseq_jepa.jobs import EvaluateJob
from dseq_jepa.provenance import code_version

METRICS = "metrics.json"
RECORDS = "records.csv.gz"
COLUMNS = ("evaluation", "image", "label", "prediction", "correct")


@dataclass(frozen=True)
class Measured:
    """What a trained model is worth."""

    result: dict[str, Any]
    """Its entry in metrics.json: value, values, metric, n, chance."""
    records: str
    """Lines of records.csv, without heading."""
    columns: Sequence[str]
    """Their heading."""
    skipped: int
    """Test pictures that could not be read."""
    pictures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Further artefacts by file name, each written by a function of its path."""


def top1(predicted_HN: NDArray[np.int64], truth_N: NDArray[np.int64]) -> list[float]:
    """Accuracy of every head in percent."""
    return [100 * float((predicted_N == truth_N).mean()) for predicted_N in predicted_HN]


def best_constant(truth_N: NDArray[np.int64]) -> float:
    """Chance: percent of the images that have the most frequent label, 100 / classes where all are equally frequent."""
    return 100 * float(np.bincount(truth_N).max() / len(truth_N))


def choose(members: Sequence[HeadSettings], held_top1: Sequence[float] | None) -> int:
    """Which head is reported: of those on the first kind of features, the best on held-out images, else the only one.

    Of equals the first learning rate in the configuration.
    """
    reported = [index for index, member in enumerate(members) if member.features == members[0].features]
    return reported[0] if held_top1 is None else max(reported, key=lambda index: held_top1[index])


def head_rows(
    members: Sequence[HeadSettings], held_top1: Sequence[float] | None, test_top1: Sequence[float]
) -> list[dict[str, Any]]:
    """Every head's entry in metrics.json."""
    return [
        {
            "features": member.features,
            "learning_rate": member.learning_rate,
            "holdout_top1": None if held_top1 is None else held_top1[index],
            "top1": test_top1[index],
        }
        for index, member in enumerate(members)
    ]


def record_lines(evaluation: str, split: Split, ids: NDArray[np.int64], predicted_N: NDArray[np.int64]) -> str:
    """CSV of all test images in their order; an unreadable one has no prediction and is neither right nor wrong."""
    predictions = dict(zip(ids.tolist(), predicted_N.tolist(), strict=True))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for image_id, label in enumerate(split.labels.tolist()):
        predicted = predictions.get(image_id)
        answer = ("", "") if predicted is None else (split.class_names[predicted], int(predicted == label))
        writer.writerow((evaluation, split.paths[image_id], split.class_names[label], *answer))
    return buffer.getvalue()


def write_records(out: Path, lines: Sequence[str], columns: Sequence[str] = COLUMNS) -> None:
    """records.csv.gz: equal records give equal bytes."""
    text = ",".join(columns) + "\n" + "".join(lines)
    with (
        atomically(out / RECORDS) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file,
    ):
        file.write(text.encode("utf-8", "surrogateescape"))


def write_metrics(out: Path, job: EvaluateJob[Any], results: dict[str, dict[str, Any]]) -> None:
    """metrics.json, the last file of the job."""
    metrics = {
        "schema": 1,
        "model": job.model.model_dump(),
        "group": job.group,
        "code_version": code_version(),
        "config_digest": job.digest,
        "evaluations": results,
    }
    write_atomically(out / METRICS, json.dumps(metrics, indent=1) + "\n")

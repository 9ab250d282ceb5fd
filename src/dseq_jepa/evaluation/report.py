"""What an evaluation leaves behind: metrics.json, and one line per test image in records.csv.gz.

zcat out/records.csv.gz | head
python -c 'import json; print(json.load(open("out/metrics.json"))["evaluations"])'
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
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


def winners(members: Sequence[HeadSettings], held_top1: Sequence[float]) -> list[int]:
    """Which candidates of a sweep are trained on all of train: of each kind of features the best on held-out images.

    Of equals the first in the configuration.
    """
    kinds = dict.fromkeys(member.features for member in members)
    of_kind = ([index for index, member in enumerate(members) if member.features == kind] for kind in kinds)
    return [max(indices, key=lambda index: held_top1[index]) for indices in of_kind]


def head_rows(members: Sequence[HeadSettings], test_top1: Sequence[float]) -> list[dict[str, Any]]:
    """Every head that was tested, as metrics.json has it."""
    return [asdict(member) | {"top1": top1} for member, top1 in zip(members, test_top1, strict=True)]


def sweep_rows(members: Sequence[HeadSettings], held_top1: Sequence[float]) -> list[dict[str, Any]]:
    """Every candidate of a sweep, as metrics.json has it."""
    chosen = winners(members, held_top1)
    return [
        asdict(member) | {"holdout_top1": held_top1[index], "chosen": index in chosen}
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

"""What both engines make of their predictions: average precision, records, COCO's result file, a page of examples.

    python -c 'from dseq_jepa.evaluation.detection.average_precision import read_predictions; help(read_predictions)'

An engine says for every picture of the validation split what it found; nothing else here depends on the engine.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dseq_jepa.data.coco import CocoPart
from dseq_jepa.errors import UserError
from dseq_jepa.evaluation import report
from dseq_jepa.evaluation.detection.average_precision import (
    PREDICTIONS,
    Prediction,
    average_precision,
    write_predictions,
)
from dseq_jepa.evaluation.detection.examples import draw_examples
from dseq_jepa.training.distributed import World

COLUMNS = ("evaluation", "image", "objects", "crowds", "detections", "found")
"""found: objects that a box of the right category finds at an IoU of 0.5."""
EXAMPLES = "examples.png"


@dataclass(frozen=True, eq=False)
class Searched:
    """What was found in one picture."""

    index: int
    """Position in the split."""
    predictions: list[Prediction]
    read: bool = True
    """False: the file could not be read, and all its objects count as missed."""


def gathered(mine: Sequence[Searched], images: int, world: World) -> list[Searched]:
    """All ranks' pictures in the order of the split, each exactly once; the same on every rank.

    Raises:
        RuntimeError: a picture was searched twice or not at all, which no split over ranks may do.

    """
    parts: list[Sequence[Searched]] = [mine]
    if world.size > 1:
        parts = [[] for _ in range(world.size)]
        dist.all_gather_object(parts, list(mine))
    everything = sorted((one for part in parts for one in part), key=lambda one: one.index)
    if [one.index for one in everything] != list(range(images)):
        raise RuntimeError(f"{len(everything)} results for {images} pictures; each must be searched exactly once")
    return everything


def measured(name: str, part: CocoPart, searched: Sequence[Searched], examples: int) -> report.Measured:
    """Judge what was found in a whole split.

    Args:
        name: of the evaluation.
        part: the validation split.
        searched: every picture once, in order.
        examples: pictures shown in examples.png.

    """
    unread = sum(not one.read for one in searched)
    if unread == len(searched):
        raise UserError(f"evaluations.{name}: not one of the {unread} validation pictures can be read.")
    predictions = [prediction for one in searched for prediction in one.predictions]
    values, found = average_precision(part.annotations, predictions)
    return report.Measured(
        result={"value": values["box_ap"], "values": values, "metric": "box_ap", "n": len(searched), "chance": None},
        records=_records(name, part, searched, found),
        columns=COLUMNS,
        skipped=unread,
        pictures=_artefacts(part, searched, predictions, examples),
    )


def _artefacts(
    part: CocoPart, searched: Sequence[Searched], predictions: Sequence[Prediction], examples: int
) -> dict[str, Callable[[Path], None]]:
    shown = [one for one in searched if one.read][:examples]
    return {
        PREDICTIONS: lambda path: write_predictions(path, predictions),
        EXAMPLES: lambda path: draw_examples(path, part, {one.index: one.predictions for one in shown}),
    }


def _records(name: str, part: CocoPart, searched: Sequence[Searched], found: Counter[int]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for one in searched:
        image, objects = part.images[one.index], part.objects[one.index]
        crowds = sum(record["iscrowd"] for record in objects)
        counts: tuple[Any, ...] = (len(objects) - crowds, crowds, len(one.predictions), found[image.id])
        writer.writerow((name, image.file, *counts))
    return buffer.getvalue()

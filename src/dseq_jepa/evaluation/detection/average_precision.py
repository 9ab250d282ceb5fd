"""COCO's average precision of predictions, box and mask, by faster-coco-eval.

    values, found = average_precision(Path("instances_val2017.json"), predictions)
    values["box_ap"]                     # percent: mean over categories and over IoU 0.50, 0.55 .. 0.95

A prediction is COCO's result record: image_id, category_id, bbox (left, top, width, height), score and segmentation
(run lengths as text). faster-coco-eval computes in C++ what pycocotools computes in Python; a test holds them, and
detectron2's evaluator, to 1e-9 on the same predictions.
"""

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dseq_jepa.data.layouts import read_json
from dseq_jepa.files import atomically

PREDICTIONS = "predictions.json.gz"
Prediction = dict[str, Any]

STATISTICS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar100": 8}
"""Ours, and their places in COCOeval's summary."""
KINDS = {"box": "bbox", "mask": "segm"}
_FOUND_IOU = 0.5


def average_precision(annotations: Path, predictions: Sequence[Prediction]) -> tuple[dict[str, float], Counter[int]]:
    """Judge predictions on a whole annotation file; images without predictions count with all that they miss.

    Args:
        annotations: instances_<part>2017.json.
        predictions: COCO's result records.

    Returns:
        box_ap, box_ap50, ..., mask_ap, ... in percent; a value that no object of the file defines (such as AP of small
        objects where all are large) is left out. And per image id how many of its objects, crowds apart, a predicted
        box finds at an IoU of 0.5.

    """
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(read_json(annotations))
    values: dict[str, float] = {}
    found: Counter[int] = Counter()
    for prefix, kind in KINDS.items():
        # As detectron2: a mask is small or large by its own area; COCO's reader prefers the box's where there is one.
        dropped = () if kind == "bbox" else ("bbox",)
        records = [{key: value for key, value in one.items() if key not in dropped} for one in predictions]
        judge = COCOeval_faster(truth, truth.loadRes(records), kind, print_function=_silent, extra_calc=True)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        values |= {
            f"{prefix}_{name}": 100 * float(judge.stats[place])
            for name, place in STATISTICS.items()
            if judge.stats[place] >= 0
        }
        if kind == "bbox":
            found = _found(judge)
    return values, found


def _silent(*_words: object) -> None:
    """COCOeval prints its table; ours go to metrics.json."""


def _found(judge: Any) -> Counter[int]:
    """Objects per image that COCOeval matched at the lowest IoU, 0.5, among 100 detections of each category."""
    matched = {int(pair.split("_", 1)[1]) for pair, iou in judge.eval["matched"].items() if iou >= _FOUND_IOU}
    objects = judge.cocoGt.anns
    return Counter(objects[key]["image_id"] for key in matched if not objects[key].get("iscrowd"))


def encode_masks(masks_NHW: np.ndarray[Any, np.dtype[np.bool_]]) -> list[dict[str, Any]]:
    """Run lengths of (N, H, W) masks, compressed to text."""
    from faster_coco_eval.core import mask as coder

    coded = coder.encode(np.asfortranarray(masks_NHW.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(v) for v in one["size"]], "counts": _text(one["counts"])} for one in coded]


def _text(counts: Any) -> str:
    return counts.decode() if isinstance(counts, bytes) else str(counts)


def write_predictions(path: Path, predictions: Sequence[Mapping[str, Any]]) -> None:
    """predictions.json.gz in COCO's result format; equal predictions give equal bytes."""
    with (
        atomically(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as file,
    ):
        file.write(json.dumps(list(predictions), separators=(",", ":")).encode())


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        predictions: list[Prediction] = json.load(file)
    return predictions

"""Average precision by hand, by pycocotools and, where it is installed, by detectron2's evaluator."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dseq_jepa.evaluation.detection.average_precision import (
    STATISTICS,
    average_precision,
    encode_masks,
    read_predictions,
    write_predictions,
)
from tests.evaluation.shapes import CATEGORIES, crowd, record


def truth(path: Path, annotations: list[dict[str, Any]], images: int = 2) -> Path:
    pictures = [{"id": i, "file_name": f"{i}.jpg", "height": 60, "width": 80} for i in range(1, images + 1)]
    path.write_text(json.dumps({"images": pictures, "annotations": annotations, "categories": CATEGORIES}))
    return path


def guess(image: int, category: int, box: tuple[int, int, int, int], score: float) -> dict[str, Any]:
    x, y, w, h = box
    mask_1HW = np.zeros((1, 60, 80), bool)
    inside_HW = np.arange(h)[:, None] / h >= np.arange(w)[None] / w if category == 90 else True  # half of its box
    mask_1HW[0, y : y + h, x : x + w] = inside_HW
    bbox = [float(v) for v in box]
    return {
        "image_id": image, "category_id": category, "bbox": bbox, "score": score,
        "segmentation": encode_masks(mask_1HW)[0],
    }  # fmt: skip


BOX = (10, 10, 40, 40)


def test_a_perfect_answer_has_100_and_no_answer_has_0(tmp_path: Path) -> None:
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX), record(2, 2, 7, (5, 5, 20, 20))])
    values, found = average_precision(path, [guess(1, 3, BOX, 0.9), guess(2, 7, (5, 5, 20, 20), 0.4)])
    assert values["box_ap"] == values["box_ap50"] == values["mask_ap"] == values["box_ar100"] == pytest.approx(100)
    assert values["box_ap_small"] == values["box_ap_medium"] == pytest.approx(100)
    assert "box_ap_large" not in values  # nothing is
    assert found == {1: 1, 2: 1}
    nothing, none_found = average_precision(path, [])
    assert {nothing[key] for key in ("box_ap", "box_ap50", "mask_ap", "mask_ar100")} == {0.0}
    assert not none_found


def test_the_ious_of_a_shifted_box_decide_how_many_thresholds_it_passes(tmp_path: Path) -> None:
    """Moved by 10 of 40 pixels: 1200 / 2000 = 0.6, so it counts at 0.50, 0.55 and 0.60: AP = 3 / 10."""
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX)])
    values, found = average_precision(path, [guess(1, 3, (20, 10, 40, 40), 0.9)])
    assert values["box_ap"] == pytest.approx(30)
    assert values["mask_ap"] == pytest.approx(30)
    assert (values["box_ap50"], values["box_ap75"]) == (pytest.approx(100), 0)
    assert found == {1: 1}


def test_a_wrong_first_answer_halves_the_precision(tmp_path: Path) -> None:
    """Miss, then hit: precision 1/2 at every recall."""
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX)])
    values, _ = average_precision(path, [guess(1, 3, (50, 40, 15, 15), 0.9), guess(1, 3, BOX, 0.5)])
    assert values["box_ap"] == pytest.approx(50)


def test_one_of_two_objects_found_fills_51_of_101_recall_points(tmp_path: Path) -> None:
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX), record(2, 2, 3, BOX)])
    values, found = average_precision(path, [guess(1, 3, BOX, 0.9)])
    assert values["box_ap"] == pytest.approx(100 * 51 / 101)
    assert found == {1: 1}


def test_categories_count_equally_and_the_wrong_one_finds_nothing(tmp_path: Path) -> None:
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX), record(2, 1, 7, BOX), record(3, 2, 7, BOX)])
    values, found = average_precision(path, [guess(1, 3, BOX, 0.9), guess(2, 3, BOX, 0.3)])
    assert values["box_ap"] == pytest.approx((100 + 0) / 2)
    assert found == {1: 1}


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    path = truth(tmp_path / "t.json", [record(1, 1, 3, BOX), crowd(2, 1, (55, 5, 20, 20), 60, 80)])
    values, found = average_precision(path, [guess(1, 3, (56, 6, 8, 8), 0.95), guess(1, 3, BOX, 0.5)])
    assert values["box_ap"] == pytest.approx(100)
    assert found == {1: 1}


def scene(path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Twelve crowded pictures and shaky answers."""
    draw, annotations, guesses = np.random.default_rng(5), [], []
    for image in range(1, 13):
        for _ in range(int(draw.integers(1, 5))):
            w, h = (int(v) for v in draw.integers(8, 56, 2))
            box = (int(draw.integers(0, 80 - w)), int(draw.integers(0, 60 - h)), w, h)
            category = int(draw.choice([3, 7, 90]))
            annotations.append(record(len(annotations) + 1, image, category, box))
            for _ in range(int(draw.integers(0, 4))):
                x, y = (max(0, int(v + draw.integers(-6, 7))) for v in box[:2])
                moved = (x, y, min(w, 80 - x), min(h, 60 - y))
                named = category if draw.random() < 0.8 else int(draw.choice([3, 7, 90]))
                guesses.append(guess(image, named, moved, float(draw.random())))
        if image % 4 == 0:
            annotations.append(crowd(len(annotations) + 1, image, (2, 2, 30, 30), 60, 80))
    return truth(path, annotations, images=12), guesses


def test_pycocotools_agrees_to_1e_9(tmp_path: Path) -> None:
    path, guesses = scene(tmp_path / "t.json")
    values, _ = average_precision(path, guesses)
    assert 10 < values["box_ap"] < 90
    assert {"box_ap_small", "box_ap_medium", "mask_ap_small", "mask_ap_medium"} <= values.keys()
    with contextlib.redirect_stdout(io.StringIO()):
        for prefix, kind in (("box", "bbox"), ("mask", "segm")):
            records = copy.deepcopy(guesses)
            for one in records if kind == "segm" else []:
                del one["bbox"]
            reference = COCO(str(path))
            judge = COCOeval(reference, reference.loadRes(records), kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            for name, place in STATISTICS.items():
                if judge.stats[place] >= 0:
                    assert values[f"{prefix}_{name}"] == pytest.approx(100 * judge.stats[place], abs=1e-9)
                else:
                    assert f"{prefix}_{name}" not in values


def test_predictions_survive_their_file_and_give_the_same_bytes(tmp_path: Path) -> None:
    path, guesses = scene(tmp_path / "t.json")
    for name in ("a.json.gz", "b.json.gz"):
        write_predictions(tmp_path / name, guesses)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    assert read_predictions(tmp_path / "a.json.gz") == guesses
    assert average_precision(path, read_predictions(tmp_path / "a.json.gz")) == average_precision(path, guesses)


def test_detectron2s_evaluator_agrees_to_1e_9(tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="detectron2 is not installed; see workflow/envs/detectron2.yml")
    from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco

    path, guesses = scene(tmp_path / "t.json")
    values, _ = average_precision(path, guesses)
    for prefix, kind in (("box", "bbox"), ("mask", "segm")):
        with contextlib.redirect_stdout(io.StringIO()):
            judge = _evaluate_predictions_on_coco(COCO(str(path)), copy.deepcopy(guesses), kind)
        for name, place in STATISTICS.items():
            if judge.stats[place] >= 0:
                assert values[f"{prefix}_{name}"] == pytest.approx(100 * judge.stats[place], abs=1e-9)

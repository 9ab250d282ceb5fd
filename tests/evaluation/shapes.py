"""A tiny COCO data set of coloured rectangles, triangles and a crowd, and a detection job on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dseq_jepa.data.settings import DatasetSettings, LoadingSettings
from dseq_jepa.evaluation.settings import DetectionSettings
from dseq_jepa.jobs import DetectJob
from tests.models.checkpoints import CPU, MODEL

CATEGORIES = [{"id": 3, "name": "red box"}, {"id": 7, "name": "blue box"}, {"id": 90, "name": "green slope"}]
COLOURS = {3: (220, 30, 30), 7: (30, 30, 220), 90: (30, 200, 30)}


def runs(mask_HW: np.ndarray[Any, Any]) -> list[int]:
    """Run lengths, column by column, zeros first."""
    counts, last = [0], 0
    for value in mask_HW.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return counts


def record(identity: int, image: int, category: int, box: tuple[int, int, int, int]) -> dict[str, Any]:
    """A rectangle, or for category 90 its lower left triangle."""
    x, y, w, h = box
    corners = [x, y, x + w, y + h, x, y + h] if category == 90 else [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "id": identity, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0,
        "area": w * h / (2 if category == 90 else 1), "segmentation": [[float(v) for v in corners]],
    }  # fmt: skip


def crowd(identity: int, image: int, box: tuple[int, int, int, int], height: int, width: int) -> dict[str, Any]:
    """A rectangle of red boxes that nobody counted, in run lengths."""
    x, y, w, h = box
    mask_HW = np.zeros((height, width), int)
    mask_HW[y : y + h, x : x + w] = 1
    plain = record(identity, image, 3, box)
    return plain | {"iscrowd": 1, "segmentation": {"size": [height, width], "counts": runs(mask_HW)}}


def make_shapes(root: Path, train: int = 8, val: int = 4) -> DatasetSettings:
    """Pictures of two or three objects on grey; every fourth has a crowd, the last one of a split has no object."""
    draw, first = np.random.default_rng(0), 100
    for part, count in (("train", train), ("val", val)):
        (root / f"{part}2017").mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            identity, (height, width) = first + i, [(48, 64), (64, 40)][i % 2]
            pixels_HWC = np.full((height, width, 3), 120, np.uint8)
            for k in range(0 if i == count - 1 else 2 + i % 2):
                w, h = draw.integers(12, 24, 2).tolist()
                box = (int(draw.integers(0, width - w)), int(draw.integers(0, height - h)), w, h)
                one = record(10 * identity + k, identity, list(COLOURS)[(i + k) % 3], box)
                annotations.append(one)
                area = pixels_HWC[box[1] : box[1] + h, box[0] : box[0] + w]
                if one["category_id"] == 90:
                    area[np.arange(h)[:, None] / h >= np.arange(w)[None] / w] = COLOURS[90]
                else:
                    area[:] = COLOURS[one["category_id"]]
            if i % 4 == 2:
                annotations.append(crowd(10 * identity + 9, identity, (2, 3, 10, 6), height, width))
            images.append({"id": identity, "file_name": f"{identity:012d}.jpg", "height": height, "width": width})
            Image.fromarray(pixels_HWC).save(root / f"{part}2017" / f"{identity:012d}.jpg", quality=95)
        first += count
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
    return DatasetSettings(layout="coco", root=root)


def detection(**changes: Any) -> DetectionSettings:
    """A short training of a narrow detector."""
    plain: dict[str, Any] = {
        "kind": "detect", "data": "shapes", "image_size": 64, "epochs": 2, "warmup_epochs": 0.5, "batch_size": 2,
        "learning_rate": 1e-3, "layer_decay": 0.8, "drop_path": 0.1, "scale_range": [0.5, 1.5], "examples": 2,
    }  # fmt: skip
    detector = {
        "width": 16, "hidden": 32, "anchors_per_image": 32, "proposals_before": [60, 60], "proposals_after": 30,
        "regions_per_image": 16,
    }  # fmt: skip
    settings = plain | changes | {"detector": detector | changes.get("detector", {})}
    return DetectionSettings.model_validate(settings, strict=False)


def job(data: DatasetSettings, settings: DetectionSettings, on_bad_image: Any = "error") -> DetectJob:
    """Of one evaluation called coco."""
    return DetectJob(
        model=MODEL, compute=CPU, loading=LoadingSettings(workers=0, on_bad_image=on_bad_image), group="detect",
        evaluations={"coco": settings}, data={"shapes": data},
    )  # fmt: skip

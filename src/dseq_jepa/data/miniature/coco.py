"""COCO 2017 in miniature: several objects per picture, their masks exact to the pixel.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # writes all miniature data sets

Objects are stamped from back to front without soft edges, so a pixel belongs to exactly one of them or to none; an
annotation holds the visible pixels, as COCO's do.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dseq_jepa.data.miniature.drawing import Floats, Frame, Sprite, background, photograph
from dseq_jepa.data.miniature.labelled import Task, save_jpeg, save_json
from dseq_jepa.data.miniature.masks import Mask, box, counts, outlines
from dseq_jepa.data.miniature.objects import Bird, Car, draw_ball, draw_bird, draw_bottle, draw_car, draw_person

OBJECTS = (2, 4)
"""Fewest and most objects in a picture."""
OBJECT_SIZE = (0.16, 0.3)
"""Half size in sides of the picture."""
CROWD_EVERY = 4
"""Every fourth picture has a crowd of people: one annotation with `iscrowd`, a mask in run lengths."""
CROWD = (5, 8)
CROWD_SIZE = 0.13
VISIBLE = 0.5
"""An object is left out if it would hide more than this part of another."""
LEAST_PIXELS = 12

Draw = Callable[[Sprite, Frame, Generator], None]

CATEGORIES: dict[int, tuple[str, str, Draw]] = {
    1: ("person", "person", draw_person),
    3: ("car", "vehicle", lambda s, f, rng: draw_car(s, f, Car.numbered(int(rng.integers(15))), rng)),
    16: ("bird", "animal", lambda s, f, rng: draw_bird(s, f, Bird.numbered(int(rng.integers(12))), rng)),
    37: ("sports ball", "sports", draw_ball),
    44: ("bottle", "kitchen", draw_bottle),
}
"""COCO's ids, with their gaps, names and super-categories of what is drawn."""


def write_coco(root: Path, task: Task) -> None:
    """`train2017/`, `val2017/` and `annotations/instances_<part>2017.json`."""
    first = 1
    for part, count in task.pictures.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            picture, objects = draw_picture(task.rng("coco", part, i), task.image_size, i)
            height, width = picture.shape[:2]
            identity = first + i
            name = f"{identity:012d}.jpg"
            save_jpeg(picture, root / f"{part}2017" / name)
            images.append({"id": identity, "file_name": name, "height": height, "width": width, "license": 1})
            for mask_HW, category, crowd in objects:
                annotations.append(annotation(mask_HW, category, crowd, identity, 1000 * identity + len(annotations)))
        first += count
        save_json(
            {
                "info": {"description": "miniature, generated", "version": "1.0", "year": 2017},
                "licenses": [{"id": 1, "name": "generated", "url": ""}],
                "images": images,
                "annotations": annotations,
                "categories": [
                    {"id": key, "name": name, "supercategory": group} for key, (name, group, _) in CATEGORIES.items()
                ],
            },
            root / "annotations" / f"instances_{part}2017.json",
        )


def annotation(mask_HW: Mask, category: int, crowd: bool, image: int, identity: int) -> dict[str, Any]:
    """A COCO annotation: polygons, or run lengths for a crowd; area in pixels."""
    height, width = mask_HW.shape
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "iscrowd": int(crowd),
        "area": float(mask_HW.sum()),
        "bbox": box(mask_HW),
        "segmentation": {"counts": counts(mask_HW), "size": [height, width]} if crowd else outlines(mask_HW),
    }


def draw_picture(rng: Generator, side: int, index: int) -> tuple[NDArray[np.uint8], list[tuple[Mask, int, bool]]]:
    """One picture and its objects.

    Args:
        rng: of this picture.
        side: of a square picture of the same area, in pixels.
        index: of the picture; decides whether there is a crowd and which categories come first.

    Returns:
        (H, W, 3) uint8; visible mask, category and whether it is a crowd, of every object from back to front.

    """
    height, width = (round(side * 0.87), round(side * 1.15)) if index % 2 else (side, side)
    picture_HWC = background(rng, height, width)
    objects: list[tuple[Mask, int, bool]] = []
    if index % CROWD_EVERY == CROWD_EVERY - 1:
        objects.append((_stamp_crowd(rng, picture_HWC, side), 1, True))
    for i in range(int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))):
        category = list(CATEGORIES)[(index + 2 * i) % len(CATEGORIES)]
        size = side * rng.uniform(*OBJECT_SIZE)
        centre = (rng.uniform(0.8 * size, width - 0.8 * size), rng.uniform(0.8 * size, height - 0.8 * size))
        sprite = Sprite(height, width)
        frame = Frame.place(height, width, centre, size, rng.uniform(-0.15, 0.15), bool(rng.random() < 0.5))
        CATEGORIES[category][2](sprite, frame, rng)
        if _hides(sprite.mask(), objects):
            continue
        mask_HW = sprite.stamp(picture_HWC)
        objects = [(old_HW & ~mask_HW, key, crowd) for old_HW, key, crowd in objects]
        objects.append((mask_HW, category, False))
    return photograph(rng, picture_HWC), objects


def _hides(mask_HW: Mask, objects: list[tuple[Mask, int, bool]]) -> bool:
    """Whether a new object hides too much of another or is itself too small to be seen."""
    left = [(int((old_HW & ~mask_HW).sum()), int(old_HW.sum())) for old_HW, _, _ in objects]
    return int(mask_HW.sum()) < LEAST_PIXELS or any(rest < max(VISIBLE * whole, LEAST_PIXELS) for rest, whole in left)


def _stamp_crowd(rng: Generator, picture_HWC: Floats, side: int) -> Mask:
    """A row of small people."""
    height, width = picture_HWC.shape[:2]
    mask_HW = np.zeros((height, width), bool)
    size, top = side * CROWD_SIZE, rng.uniform(0.25, 0.75) * height
    number = int(rng.integers(CROWD[0], CROWD[1] + 1))
    left = rng.uniform(size, width - size * number * 0.9) if width > size * (number * 0.9 + 1) else size
    for i in range(number):
        sprite = Sprite(height, width)
        centre = (left + 0.9 * size * i, top + size * rng.uniform(-0.3, 0.3))
        draw_person(sprite, Frame.place(height, width, centre, size), rng)
        mask_HW |= sprite.stamp(picture_HWC)
    return mask_HW

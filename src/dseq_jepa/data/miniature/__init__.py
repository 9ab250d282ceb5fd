"""Miniature data sets: generated pictures in the official layouts, so that the demo needs no downloads.

    dseq-jepa data make-miniature --config configs/demo.yaml       # all of them, some 20 s

Objects have parts, and a class is a combination of them (body, limbs, head, marking, a pair of opposite hues); which
part has which hue, size, place and background are drawn independently of it, so that the mean colour of a picture tells
nothing. The same seed gives the same bytes in every file, whatever else is generated.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from dseq_jepa.data.miniature.ade20k import write_ade20k
from dseq_jepa.data.miniature.coco import write_coco
from dseq_jepa.data.miniature.labelled import (
    CARS_CLASSES,
    CUB_CLASSES,
    INAT21_CLASSES,
    Task,
    write_cars,
    write_clevr,
    write_cub,
    write_imagenet,
    write_inat21,
)
from dseq_jepa.data.settings import Layout, MiniatureSettings
from dseq_jepa.errors import UserError

MARKER = "miniature.json"
"""Says in a data set's folder that it was generated, and how; only folders that hold it are ever replaced."""
MOST_CLASSES = 125

WRITERS: dict[Layout, Callable[[Path, Task], None]] = {
    "imagenet": write_imagenet,
    "inat21": write_inat21,
    "cub": write_cub,
    "cars": write_cars,
    "clevr": write_clevr,
    "coco": write_coco,
    "ade20k": write_ade20k,
}


def make_miniature(root: Path, settings: MiniatureSettings, layouts: Iterable[Layout] | None = None) -> None:
    """Generate data sets as `root/<layout>`.

    Args:
        root: folder of all data sets.
        settings: seed, size and number of pictures.
        layouts: which ones; those that `settings.train_images` names unless given.

    Raises:
        UserError: see `make_layout`.

    """
    for layout in settings.train_images if layouts is None else layouts:
        make_layout(layout, root / layout, settings)


def make_layout(layout: Layout, folder: Path, settings: MiniatureSettings) -> None:
    """Generate one data set; its folder appears only when it is complete.

    Args:
        layout: which official layout.
        folder: where; replaced if it is a generated data set.
        settings: seed, size and number of pictures.

    Raises:
        UserError: the folder holds something else, or there are too few pictures to show every class.

    """
    task = _task(layout, settings)
    if folder.exists() and not (folder / MARKER).exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds files that were not generated; move them away or give another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    WRITERS[layout](partial, task)
    description = {"layout": layout, "seed": task.seed, "image_size": task.image_size, "pictures": task.pictures}
    (partial / MARKER).write_text(json.dumps(description) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def _task(layout: Layout, settings: MiniatureSettings) -> Task:
    """What the settings ask for, checked."""
    classes = {"imagenet": settings.classes, "inat21": INAT21_CLASSES, "cub": CUB_CLASSES, "cars": CARS_CLASSES}
    needed = classes.get(layout, 1)
    if settings.classes > MOST_CLASSES:
        raise UserError(f"miniature.classes: {settings.classes}, but only {MOST_CLASSES} kinds can be drawn")
    pictures = {}
    for part, key in (("train", "train_images"), ("val", "val_images")):
        count = getattr(settings, key).get(layout, 0)
        if count < needed:
            raise UserError(
                f"miniature.{key}.{layout}: {count} pictures cannot show {needed} classes; give at least {needed}"
            )
        pictures[part] = count
    return Task(
        settings.seed, settings.image_size, {"train": pictures["train"], "val": pictures["val"]}, settings.classes
    )

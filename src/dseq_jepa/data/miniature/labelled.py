"""Pictures with one label: ImageNet, iNat21, CUB, Cars and CLEVR layouts.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # writes all miniature data sets

Every picture has random numbers of its own, from (seed, layout, part, number), so that its bytes do not depend on what
else is generated. Labels go round: picture i has class i modulo the number of classes.
"""

import io
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from dseq_jepa.data.miniature.clevr import draw_scene
from dseq_jepa.data.miniature.drawing import Frame, Sprite, background, photograph
from dseq_jepa.data.miniature.objects import Bird, Car, Creature, draw_bird, draw_car, draw_creature

INAT21_CLASSES = 20
CUB_CLASSES = 10
CARS_CLASSES = 10

ASPECTS = (1.0, 1.25, 0.8)
"""Width over height of the pictures; the area is the same."""
OBJECT_SIZE = (0.37, 0.45)
"""Half size of the object in sides of the picture."""
GROUND_SPREAD = 0.1
"""Birds and cars differ so little that on one ground the mean colour would tell some apart."""
SHIFT = 0.06
"""Farthest from the middle, per axis, in sides of the picture."""
TURN = 0.12
"""Largest turn in radians."""
JPEG_QUALITY = 90

Part = Literal["train", "val"]


@dataclass(frozen=True)
class Task:
    """What to generate in one layout."""

    seed: int
    image_size: int
    pictures: dict[Part, int]
    classes: int
    """Of the ImageNet layout."""

    def rng(self, layout: str, part: Part, index: int) -> Generator:
        """Random numbers of one picture."""
        return np.random.default_rng([self.seed, zlib.crc32(f"{layout}/{part}".encode()), index])


def write_imagenet(root: Path, task: Task) -> None:
    """`train/<wnid>/<wnid>_<n>.JPEG` and `val/<wnid>/ILSVRC2012_val_<n>.JPEG`."""
    for part, count in task.pictures.items():
        for i in range(count):
            label = i % task.classes
            wnid = f"n{label + 1:08d}"
            name = f"{wnid}_{i}" if part == "train" else f"ILSVRC2012_val_{i + 1:08d}"
            rng = task.rng("imagenet", part, i)
            picture, _ = portrait(rng, task.image_size, _creature(Creature.numbered(label)))
            save_jpeg(picture, root / part / wnid / f"{name}.JPEG")


def write_inat21(root: Path, task: Task) -> None:
    """`train/<id>_<ranks>/<name>.jpg` and the JSON files beside the folders."""
    species = [_species(i) for i in range(INAT21_CLASSES)]
    categories = [_category(i, one) for i, one in enumerate(species)]
    for part, count in task.pictures.items():
        images, annotations = [], []
        for i in range(count):
            label = i % INAT21_CLASSES
            picture, _ = portrait(task.rng("inat21", part, i), task.image_size, _creature(species[label]))
            name = f"{part}/{categories[label]['image_dir_name']}/{i:08x}.jpg"
            save_jpeg(picture, root / name)
            height, width = picture.shape[:2]
            images.append({"id": i, "width": width, "height": height, "file_name": name, "license": 0})
            annotations.append({"id": i, "image_id": i, "category_id": label})
        save_json(
            {
                "info": {"description": "miniature, generated", "year": 2021},
                "images": images,
                "categories": categories,
                "annotations": annotations,
                "licenses": [{"id": 0, "name": "generated"}],
            },
            root / f"{part}.json",
        )


def _species(index: int) -> Creature:
    """Species 0 to 19: none of them is among the first 25 creatures, which the ImageNet layout shows."""
    return Creature.numbered(25 + index)


def _category(index: int, species: Creature) -> dict[str, Any]:
    """An iNat21 category; its ranks are named after the parts."""
    ranks = {
        "kingdom": "Animalia", "phylum": "Miniata", "class": species.limbs.capitalize(),
        "order": f"{species.body.capitalize()}formes", "family": f"{species.marking.capitalize()}idae",
        "genus": f"{species.marking.capitalize()}{species.body}", "specific_epithet": f"{species.head}{index}",
    }  # fmt: skip
    return {
        "id": index, "name": f"{ranks['genus']} {ranks['specific_epithet']}", "supercategory": "Animals",
        "common_name": f"{species.marking} {species.body} with {species.limbs} and {species.head}", **ranks,
        "image_dir_name": "_".join([f"{index:05d}", *ranks.values()]),
    }  # fmt: skip


def write_cub(root: Path, task: Task) -> None:
    """The text files of CUB-200-2011 and `images/<id>.<Class>/*.jpg`; ids go class by class, as in the original."""
    birds = [Bird.numbered(i) for i in range(CUB_CLASSES)]
    folders = [f"{i + 1:03d}.{_bird_name(bird)}" for i, bird in enumerate(birds)]
    tables: dict[str, list[str]] = {
        "classes": [f"{i + 1} {name}" for i, name in enumerate(folders)],
        "images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": [],
    }  # fmt: skip
    number = 0
    for label, bird in enumerate(birds):
        for part, count in task.pictures.items():
            for i in range(label, count, CUB_CLASSES):
                number += 1
                picture, (left, top, right, bottom) = portrait(
                    task.rng("cub", part, i), task.image_size, _bird(bird), GROUND_SPREAD
                )
                name = f"{folders[label]}/{folders[label][4:]}_{number:04d}_{i}.jpg"
                save_jpeg(picture, root / "images" / name)
                tables["images"].append(f"{number} {name}")
                tables["image_class_labels"].append(f"{number} {label + 1}")
                tables["train_test_split"].append(f"{number} {int(part == 'train')}")
                box = (left, top, right - left, bottom - top)
                tables["bounding_boxes"].append(f"{number} {' '.join(f'{v:.1f}' for v in box)}")
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _bird_name(bird: Bird) -> str:
    crest = "Crested_" if bird.crest else ""
    return f"{crest}{bird.beak.capitalize()}_billed_{bird.wing.capitalize()}_{bird.tail.capitalize()}tail"


def write_cars(root: Path, task: Task) -> None:
    """`cars_train/`, `cars_test/` and the development kit's .mat files."""
    cars = [Car.numbered(i) for i in range(CARS_CLASSES)]
    titles = np.empty((1, CARS_CLASSES), object)
    for i, car in enumerate(cars):
        titles[0, i] = f"Mini {car.roof.capitalize()} {car.wheel.capitalize()} {car.front.capitalize()} 2012"
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    kit: dict[str, dict[str, NDArray[Any]]] = {"cars_meta": {"class_names": titles}}
    for part, count in task.pictures.items():
        folder, table = (
            ("cars_train", "cars_train_annos") if part == "train" else ("cars_test", "cars_test_annos_withlabels")
        )
        records = np.empty((1, count), [(field, object) for field in fields])
        for i in range(count):
            label = i % CARS_CLASSES
            picture, (left, top, right, bottom) = portrait(
                task.rng("cars", part, i), task.image_size, _car(cars[label]), GROUND_SPREAD
            )
            name = f"{i + 1:05d}.jpg"
            save_jpeg(picture, root / folder / name)
            numbers = [np.array([[v]], np.uint16) for v in (left + 1, top + 1, right, bottom, label + 1)]
            records[0, i] = (*numbers, name)
        kit[table] = {"annotations": records}
    for name, content in kit.items():
        save_mat(content, root / "devkit" / f"{name}.mat")


def write_clevr(root: Path, task: Task) -> None:
    """`images/<part>/CLEVR_<part>_<n>.png` (RGBA, 3:2) and `scenes/CLEVR_<part>_scenes.json`."""
    width = 2 * round(task.image_size * 0.6)
    height = 2 * round(width / 3)
    for part, count in task.pictures.items():
        scenes = []
        for i in range(count):
            picture, scene = draw_scene(task.rng("clevr", part, i), height, width, i)
            name = f"CLEVR_{part}_{i:06d}.png"
            save_png(np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]), root / "images" / part / name)
            scenes.append({"image_index": i, "image_filename": name, "split": part, **scene})
        info = {"split": part, "license": "generated", "version": "1.0", "date": "miniature"}
        save_json({"info": info, "scenes": scenes}, root / "scenes" / f"CLEVR_{part}_scenes.json")


Draw = Callable[[Sprite, Frame, Generator], None]


def _creature(plan: Creature) -> Draw:
    return lambda sprite, frame, rng: draw_creature(sprite, frame, plan, rng)


def _bird(plan: Bird) -> Draw:
    return lambda sprite, frame, rng: draw_bird(sprite, frame, plan, rng)


def _car(plan: Car) -> Draw:
    return lambda sprite, frame, rng: draw_car(sprite, frame, plan, rng)


def portrait(
    rng: Generator, side: int, draw: Draw, spread: float = 0.0
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """One object before a cluttered background.

    Args:
        rng: of this picture.
        side: of a square picture of the same area, in pixels.
        draw: paints the object into a frame.
        spread: of the ground's colour between pictures.

    Returns:
        (H, W, 3) uint8, and the object's box: left, top, right, bottom in pixels, the last two exclusive.

    """
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    height, width = round(side / aspect**0.5), round(side * aspect**0.5)
    centre = (width / 2 + side * rng.uniform(-SHIFT, SHIFT), height / 2 + side * rng.uniform(-SHIFT, SHIFT))
    frame = Frame.place(height, width, centre, side * rng.uniform(*OBJECT_SIZE), rng.uniform(-TURN, TURN))
    sprite = Sprite(height, width)
    draw(sprite, frame, rng)
    picture = photograph(rng, sprite.over(background(rng, height, width, spread)))
    rows, columns = np.flatnonzero(sprite.mask().any(axis=1)), np.flatnonzero(sprite.mask().any(axis=0))
    return picture, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def save_jpeg(picture: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W, 3) uint8 as JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "JPEG", quality=JPEG_QUALITY)


def save_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Write (H, W) or (H, W, C) uint8 as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, "PNG")


def save_json(content: Any, path: Path) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def save_mat(content: dict[str, NDArray[Any]], path: Path) -> None:
    """Write a MATLAB 5 file whose header says what it is and not, as scipy's does, when it was written."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, content)
    header = b"MATLAB 5.0 MAT-file, generated by dseq-jepa".ljust(116)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + buffer.getvalue()[len(header) :])

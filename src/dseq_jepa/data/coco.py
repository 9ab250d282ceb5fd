"""COCO's annotation files: pictures, objects and categories of a split, checked record by record.

    python -c 'from dseq_jepa.data.coco import read_coco; print(read_coco("data/coco", "val").categories)'

`read_coco` is what `dseq-jepa data check` and detection training both call, so training never meets a record that the
check has not seen. Every error names the file and the record. Categories are numbered 1..K in the order of their
official ids (which have gaps); 0 is background.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.decode import BadImage, upright_size
from dseq_jepa.data.layouts import Part, missing_on_disk, read_json, require_good_files
from dseq_jepa.errors import UserError

SLACK = 1.0
"""Pixels that a polygon or box may reach beyond its image: official annotations are rounded."""


@dataclass(frozen=True)
class Category:
    """A kind of object."""

    id: int
    """Official, with gaps."""
    name: str


@dataclass(frozen=True)
class CocoImage:
    """One picture as the annotation file describes it."""

    id: int
    file: str
    """Relative to the data set's root."""
    height: int
    width: int


class Objects(Sequence[list[dict[str, Any]]]):
    """The annotations of every picture, packed into one block of bytes.

    A million small dictionaries would be copied into every loading process as soon as it touches them.
    """

    def __init__(self, per_image: Sequence[list[dict[str, Any]]]) -> None:
        texts = [json.dumps(objects, separators=(",", ":")).encode() for objects in per_image]
        self._ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self._ends[index - 1]) if index else 0
        return json.loads(self._bytes[begin : int(self._ends[index])].tobytes())


@dataclass(frozen=True, eq=False)
class CocoPart:
    """One split."""

    root: Path
    annotations: Path
    """The file that everything was read from."""
    images: tuple[CocoImage, ...]
    """In the order of their ids."""
    objects: Objects
    """Annotations of every picture, crowds included."""
    categories: tuple[Category, ...]
    """In the order of their ids; label k is the k-th, from 1."""
    trainable: NDArray[np.int64]
    """Positions of the pictures that have an object which is no crowd."""

    @property
    def labels(self) -> dict[int, int]:
        """Official category id to label, 1..K."""
        return {category.id: label for label, category in enumerate(self.categories, start=1)}


def annotation_file(root: Path, part: Part) -> Path:
    """Where COCO 2017 keeps a split's annotations."""
    return root / "annotations" / f"instances_{part}2017.json"


def read_coco(root: Path, part: Part) -> CocoPart:
    """A split of COCO, every record checked; the pictures themselves are not opened.

    Raises:
        UserError: naming the file and the first record that is wrong, or a picture that is not on disk.

    """
    path = annotation_file(root, part)
    content = read_json(path)
    for section in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(section), list):
            raise UserError(f"{path}: not a COCO instances file: it has no list of {section}")
    categories = _categories(path, content["categories"])
    images = _images(path, content["images"], part)
    _require_on_disk(path, root, images.values())
    per_image: dict[int, list[dict[str, Any]]] = {identity: [] for identity in images}
    seen: set[int] = set()
    for record in content["annotations"]:
        _check_annotation(path, record, images, categories, seen)
        per_image[record["image_id"]].append(
            {key: record[key] for key in ("id", "category_id", "bbox", "area", "iscrowd", "segmentation")}
        )
    order = sorted(images)
    trainable = [i for i, key in enumerate(order) if any(not record["iscrowd"] for record in per_image[key])]
    if not trainable:
        raise UserError(
            f"{path}: has no object that is no crowd, so there is nothing to learn and no AP; restore the official file"
        )
    return CocoPart(
        root=root,
        annotations=path,
        images=tuple(images[key] for key in order),
        objects=Objects([per_image[key] for key in order]),
        categories=tuple(categories[key] for key in sorted(categories)),
        trainable=np.asarray(trainable, dtype=np.int64),
    )


def check_pictures(part: CocoPart) -> None:
    """Read the header of every picture of a split.

    Raises:
        UserError: naming the first picture that is not as large as its record says, and how many more there are.

    """
    require_good_files(lambda index: _problem(part, part.images[index]), len(part.images))


def _problem(part: CocoPart, image: CocoImage) -> str | None:
    try:
        width, height = upright_size(part.root / image.file)
    except BadImage as error:
        return str(error)
    if (width, height) == (image.width, image.height):
        return None
    return (
        f"{part.root / image.file}: {width} x {height} pixels, but image {image.id} of {part.annotations.name} has "
        f"{image.width} x {image.height}"
    )


def require_same_categories(train: CocoPart, val: CocoPart) -> None:
    """Refuse splits that number their categories differently.

    Raises:
        UserError: naming both files and the first category that differs.

    """
    for first, second in zip(train.categories, val.categories, strict=False):
        if first != second:
            raise UserError(
                f"{val.annotations}: category {second.id} ({second.name}) where {train.annotations.name} has "
                f"{first.id} ({first.name}); both splits need the same categories"
            )
    if len(train.categories) != len(val.categories):
        raise UserError(
            f"{val.annotations}: {len(val.categories)} categories where {train.annotations.name} has "
            f"{len(train.categories)}; both splits need the same"
        )


def _refuse(path: Path, record: str, problem: str) -> NoReturn:
    raise UserError(f"{path}: {record}: {problem}; restore the official file or correct this record")


def _categories(path: Path, records: Sequence[Any]) -> dict[int, Category]:
    if not records:
        raise UserError(f"{path}: has no categories; restore the official file")
    categories: dict[int, Category] = {}
    for position, record in enumerate(records):
        where = f"categories[{position}]"
        identity = _identity(path, where, record)
        name = record.get("name")
        if not isinstance(name, str) or not name.strip():
            _refuse(path, f"category {identity}", f"its name is empty ({name!r})")
        if identity in categories:
            _refuse(path, f"category {identity}", f"the id is used twice, by {categories[identity].name} and by {name}")
        categories[identity] = Category(identity, name)
    return categories


def _images(path: Path, records: Sequence[Any], part: Part) -> dict[int, CocoImage]:
    if not records:
        raise UserError(f"{path}: has no images; restore the official file")
    images: dict[int, CocoImage] = {}
    for position, record in enumerate(records):
        identity = _identity(path, f"images[{position}]", record)
        if identity < 0:
            _refuse(path, f"image {identity}", "its id is negative")
        name, size = record.get("file_name"), (record.get("height"), record.get("width"))
        if not isinstance(name, str) or not name:
            _refuse(path, f"image {identity}", f"expected a file_name, got {name!r}")
        if not all(_whole(side) and side > 0 for side in size):
            _refuse(path, f"image {identity} ({name})", f"height and width are {size[0]!r} and {size[1]!r}")
        if identity in images:
            _refuse(path, f"image {identity}", f"the id is used twice, by {images[identity].file} and by {name}")
        images[identity] = CocoImage(identity, f"{part}2017/{name}", *size)
    return images


def _identity(path: Path, where: str, record: Any) -> int:
    identity = record.get("id") if isinstance(record, dict) else None
    if not isinstance(identity, int) or isinstance(identity, bool):
        _refuse(path, where, f"expected an object with a whole number as id, got {str(record)[:80]!r}")
    return identity


def _require_on_disk(path: Path, root: Path, images: Collection[CocoImage]) -> None:
    if missing := missing_on_disk(root, (image.file for image in images)):
        first = next(image for image in images if image.file == missing[0])
        raise UserError(
            f"{path}: image {first.id}: {root / first.file}: listed but not on disk ({len(missing):,} such files); "
            "restore them from the archive"
        )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_annotation(
    path: Path,
    record: Any,
    images: Mapping[int, CocoImage],
    categories: Mapping[int, Category],
    seen: set[int],
) -> None:
    """Refuse an annotation that training or evaluation would stumble over; `seen` receives its id."""
    identity = _identity(path, f"annotations[{len(seen)}]", record)
    where = f"annotation {identity}"
    if identity < 1:
        _refuse(path, where, "its id is below 1, and COCO's evaluation takes 0 for an object that nothing found")
    if identity in seen:
        _refuse(path, where, "the id is used twice")
    seen.add(identity)
    for key in ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"):
        if key not in record:
            _refuse(path, where, f"has no {key}")
    for key in ("image_id", "category_id"):
        if not _whole(record[key]):
            _refuse(path, where, f"its {key} is {str(record[key])[:60]}, expected a whole number")
    image = images.get(record["image_id"])
    if image is None:
        _refuse(path, where, f"names image {record['image_id']!r}, which this file does not list")
    if record["category_id"] not in categories:
        _refuse(path, where, f"names category {record['category_id']!r}, which this file does not list")
    if record["iscrowd"] not in (0, 1):
        _refuse(path, where, f"iscrowd is {record['iscrowd']!r}, expected 0 or 1")
    if not _numbers([record["area"]]) or record["area"] < 0:
        _refuse(path, where, f"its area is {record['area']!r}, expected square pixels")
    where = f"{where} of image {image.id} ({image.file}, {image.width} x {image.height})"
    _check_box(path, where, record["bbox"], image)
    if isinstance(record["segmentation"], dict):
        _check_runs(path, where, record["segmentation"], image)
    else:
        _check_polygons(path, where, record["segmentation"], image)


def _check_box(path: Path, where: str, box: Any, image: CocoImage) -> None:
    if not isinstance(box, list) or len(box) != 4 or not _numbers(box) or min(box[2:]) < 0:
        _refuse(path, where, f"its bbox is {box!r}, expected left, top, width and height")
    left, top, width, height = box
    if min(left, top) < -SLACK or left + width > image.width + SLACK or top + height > image.height + SLACK:
        _refuse(path, where, f"its bbox {box} reaches outside the image")


def _check_polygons(path: Path, where: str, polygons: Any, image: CocoImage) -> None:
    if not isinstance(polygons, list) or not polygons:
        _refuse(path, where, f"its segmentation is {str(polygons)[:60]}, expected polygons or run lengths")
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not _numbers(polygon):
            _refuse(path, where, f"a polygon is {str(polygon)[:60]}, expected x and y of at least three points")
        right, bottom = max(polygon[0::2]), max(polygon[1::2])
        if min(polygon) < -SLACK or right > image.width + SLACK or bottom > image.height + SLACK:
            corner = f"x {min(polygon[0::2]):g} to {right:g}, y {min(polygon[1::2]):g} to {bottom:g}"
            _refuse(path, where, f"a polygon reaches outside the image ({corner})")


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _check_runs(path: Path, where: str, segmentation: dict[str, Any], image: CocoImage) -> None:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [image.height, image.width]:
        _refuse(path, where, f"its run lengths are for height and width {size!r}")
    try:
        runs = run_lengths(counts)
    except ValueError as error:
        _refuse(path, where, f"bad run lengths: {error}")
    if any(run < 0 for run in runs):
        _refuse(path, where, "bad run lengths: one is negative")
    if sum(runs) != image.height * image.width:
        pixels = image.height * image.width
        _refuse(path, where, f"bad run lengths: they cover {sum(runs):,} pixels, the image has {pixels:,}")


def run_lengths(counts: Any) -> list[int]:
    """COCO's runs, column by column, zeros first: a list as it is, or its compressed text decoded.

    The text holds signed numbers in base 32, least significant digit first, five bits to a character from "0" on, the
    sixth bit saying that more follow; from the third run on, the difference to the run before last (COCO's maskApi).

    Raises:
        ValueError: it is neither.

    """
    if isinstance(counts, list):
        if not all(_whole(run) for run in counts):
            raise ValueError("one is not a whole number")
        return counts
    if not isinstance(counts, str):
        raise ValueError(f"expected a list or a text, got {type(counts).__name__}")
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"the character {character!r} does not occur in them")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("the text ends within a number")
    return runs

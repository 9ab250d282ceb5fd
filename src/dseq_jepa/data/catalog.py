"""The data sets: official counts, splits with labels, and the check that says what is missing and where to get it.

    dseq-jepa data check --config configs/demo.yaml
    python -c 'from dseq_jepa.data import catalog; print(catalog.ENTRIES["cub"].tree)'

How each layout's files are read is in layouts.py. `check` writes the manifest that jobs depend on: counts and a
fingerprint of names, sizes, annotation files and sampled content, so that results name the data they came from.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.ade20k import check_pairs, read_pairs
from dseq_jepa.data.coco import check_pictures, read_coco, require_same_categories
from dseq_jepa.data.layouts import LAYOUTS, Part, Target
from dseq_jepa.data.names import Names
from dseq_jepa.data.settings import DatasetSettings, Layout
from dseq_jepa.errors import UserError

SAMPLED_FILES = 256
SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class Entry:
    """What is known of a data set before looking at the disk."""

    title: str
    train_images: int
    val_images: int
    classes: int
    home: str
    """Where to get it, in words and an address."""
    tree: str
    """The layout that is expected, one path a line."""
    annotations: tuple[str, ...] = ()
    """Files whose whole content belongs to the fingerprint."""


@dataclass(frozen=True, eq=False)
class Split:
    """One split of one data set: pictures and labels. A picture's id is its position."""

    root: Path
    paths: Names
    """Relative to the root."""
    labels: NDArray[np.int64]
    """One per picture, 0..K-1, in the order of the official ids."""
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every image id: 0..N-1."""
        return np.arange(len(self), dtype=np.int64)

    def path(self, image_id: int) -> Path:
        """The file of an image."""
        return self.root / self.paths[image_id]


ENTRIES: dict[Layout, Entry] = {
    "imagenet": Entry(
        "ImageNet-1K (ILSVRC 2012)",
        1_281_167,
        50_000,
        1000,
        "https://image-net.org/download-images (registration; sort the validation pictures into class folders)",
        "train/<wnid>/<wnid>_<number>.JPEG\nval/<wnid>/ILSVRC2012_val_<number>.JPEG",
    ),
    "inat21": Entry(
        "iNaturalist 2021",
        2_686_843,
        100_000,
        10_000,
        "https://github.com/visipedia/inat_comp/tree/master/2021 (train, val and their JSON archives)",
        "train/<number>_<kingdom>_..._<species>/<uuid>.jpg\nval/<number>_<kingdom>_..._<species>/<uuid>.jpg\n"
        "train.json (optional; decides where present)\nval.json (optional)",
        ("train.json", "val.json"),
    ),
    "cub": Entry(
        "Caltech-UCSD Birds-200-2011",
        5_994,
        5_794,
        200,
        "https://www.vision.caltech.edu/datasets/cub_200_2011/ (CUB_200_2011.tgz)",
        "images/<number>.<Class>/<file>.jpg\nimages.txt\nimage_class_labels.txt\ntrain_test_split.txt\nclasses.txt",
        ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
    ),
    "cars": Entry(
        "Stanford Cars",
        8_144,
        8_041,
        196,
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (cars_train, cars_test, car_devkit and "
        "cars_test_annos_withlabels.mat, which goes into devkit/)",
        "cars_train/<number>.jpg\ncars_test/<number>.jpg\ndevkit/cars_train_annos.mat\n"
        "devkit/cars_test_annos_withlabels.mat\ndevkit/cars_meta.mat",
        ("devkit/cars_train_annos.mat", "devkit/cars_test_annos_withlabels.mat", "devkit/cars_meta.mat"),
    ),
    "clevr": Entry(
        "CLEVR v1.0",
        70_000,
        15_000,
        8,
        "https://cs.stanford.edu/people/jcjohns/clevr/ (CLEVR_v1.0.zip)",
        "images/train/CLEVR_train_<number>.png\nimages/val/CLEVR_val_<number>.png\n"
        "scenes/CLEVR_train_scenes.json\nscenes/CLEVR_val_scenes.json",
        ("scenes/CLEVR_train_scenes.json", "scenes/CLEVR_val_scenes.json"),
    ),
    "coco": Entry(
        "MS-COCO 2017",
        118_287,
        5_000,
        80,
        "https://cocodataset.org/#download (2017 train, val and annotations)",
        "train2017/<number>.jpg\nval2017/<number>.jpg\nannotations/instances_train2017.json\n"
        "annotations/instances_val2017.json",
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    "ade20k": Entry(
        "ADE20K SceneParse150",
        20_210,
        2_000,
        150,
        "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
        "images/training/<name>.jpg\nimages/validation/<name>.jpg\nannotations/training/<name>.png\n"
        "annotations/validation/<name>.png",
    ),
}
"""One entry per layout."""


def load_split(settings: DatasetSettings, split: Part, target: Target = "class") -> Split:
    """Pictures and labels of a split.

    Args:
        settings: layout, root and expected counts.
        split: train or val (the official test split of CUB and Cars is their val).
        target: class; for CLEVR count or distance.

    Raises:
        UserError: a file is missing or not official, a count differs from the settings, or the target is not one of
            this layout's.

    """
    targets = {"clevr": ("count", "distance"), "coco": (), "ade20k": ()}.get(settings.layout, ("class",))
    if target not in targets:
        raise UserError(
            f"{settings.root}: layout {settings.layout} has no target {target!r}; "
            f"{'valid: ' + ', '.join(targets) if targets else 'it has no label per picture'}"
        )
    listing = LAYOUTS[settings.layout](settings.root, split, target)
    require_images(settings, split, len(listing.names))
    if target != "distance":  # CLEVR's other target has six classes whatever `classes` says of the count
        _require_count(settings.root, "classes", settings.classes, len(listing.class_names))
    return Split(settings.root, listing.names, listing.labels, listing.class_names)


def check(name: str, settings: DatasetSettings, *, full: bool = False) -> dict[str, Any]:
    """Check a data set on disk and describe it.

    Args:
        name: its key in the configuration, for messages and the manifest.
        settings: layout, root and expected counts.
        full: hash the whole content of every file, not a sample.

    Returns:
        A JSON-ready manifest: counts, whether they are the official ones, and the fingerprint.

    Raises:
        UserError: what is wrong, the layout that is expected and where to get the data.

    """
    entry = ENTRIES[settings.layout]
    try:
        if not settings.root.is_dir():
            raise UserError(f"{settings.root}: no such folder")
        parts, classes = _read_all(settings)
    except UserError as error:
        raise UserError(_report(name, settings, str(error))) from None
    counts = {part: len(names) for part, names in parts.items()}
    official = {"train": entry.train_images, "val": entry.val_images}
    files, annotations = _files(settings, parts)
    fingerprint, size = _fingerprint(settings.root, files, annotations, full=full)
    if not full and settings.fingerprint not in (None, fingerprint):
        raise UserError(
            f"data.{name}.fingerprint: {settings.root} has {fingerprint}, the configuration says "
            f"{settings.fingerprint}; restore the files that changed or correct the fingerprint"
        )
    return {
        "schema": 1,
        "name": name,
        "layout": settings.layout,
        "title": entry.title,
        "root": str(settings.root),
        "images": counts,
        "classes": classes,
        "official": {"images": official, "classes": entry.classes},
        "complete": counts == official and classes == entry.classes,
        "bytes": size,
        "fingerprint": fingerprint,
        "hashed": "everything" if full else f"names, sizes, annotations and a sample of {SAMPLED_FILES} files",
    }


def files_of(settings: DatasetSettings) -> list[str]:
    """Every file of a data set that the package reads, relative to its root.

    Raises:
        UserError: the layout is not the official one.

    """
    files, annotations = _files(settings, _read_all(settings)[0])
    return files + annotations


def fingerprint_of(settings: DatasetSettings) -> str:
    """Identity of a data set's content, the one that `check` writes into the manifest.

    Raises:
        UserError: the layout is not the official one.

    """
    return _fingerprint(settings.root, *_files(settings, _read_all(settings)[0]), full=False)[0]


def sizes_of(root: Path, names: Sequence[str]) -> list[int]:
    """Sizes of files in bytes, -1 for one that is not there.

    Several at a time, for a network file system answers slowly but to many at once.
    """
    prefix = f"{root}{os.sep}"
    chunks = [names[start : start + 1000] for start in range(0, len(names), 1000)]
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda chunk: [_size(prefix + name) for name in chunk], chunks)
        return [size for sizes in found for size in sizes]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return -1


def _files(settings: DatasetSettings, parts: dict[Part, Names]) -> tuple[list[str], list[str]]:
    """Pictures and masks; annotation files that are there."""
    pictures = [name for names in parts.values() for name in names]
    known = ENTRIES[settings.layout].annotations
    return pictures + _masks(settings, parts), [file for file in known if (settings.root / file).exists()]


def _read_all(settings: DatasetSettings) -> tuple[dict[Part, Names], int]:
    """Names of both splits and the number of classes."""
    if settings.layout in ("coco", "ade20k"):
        read = _read_coco if settings.layout == "coco" else _read_ade20k
        (train_names, val_names), classes = read(settings.root)
        require_images(settings, "train", len(train_names))
        require_images(settings, "val", len(val_names))
        _require_count(settings.root, "classes", settings.classes, classes)
        if settings.layout == "ade20k":
            check_pairs(read_pairs(settings.root, "train"))
            check_pairs(read_pairs(settings.root, "val"))
        return {"train": train_names, "val": val_names}, classes
    target: Target = "count" if settings.layout == "clevr" else "class"
    train, val = load_split(settings, "train", target), load_split(settings, "val", target)
    return {"train": train.paths, "val": val.paths}, len(train.class_names)


def _read_coco(root: Path) -> tuple[tuple[Names, Names], int]:
    train, val = read_coco(root, "train"), read_coco(root, "val")
    require_same_categories(train, val)
    for part in (train, val):
        check_pictures(part)
    train_names, val_names = (Names(sorted(image.file for image in part.images)) for part in (train, val))
    return (train_names, val_names), len(train.categories)


def _read_ade20k(root: Path) -> tuple[tuple[Names, Names], int]:
    return (read_pairs(root, "train").pictures, read_pairs(root, "val").pictures), ENTRIES["ade20k"].classes


def _masks(settings: DatasetSettings, parts: dict[Part, Names]) -> list[str]:
    if settings.layout != "ade20k":
        return []
    return [mask for part in parts for mask in read_pairs(settings.root, part).masks]


def require_images(settings: DatasetSettings, part: Part, found: int) -> None:
    """Refuse a split whose number of pictures is not the configured one.

    Raises:
        UserError: naming root, key and both numbers.

    """
    expected = settings.train_images if part == "train" else settings.val_images
    _require_count(settings.root, f"{part}_images", expected, found)


def _require_count(root: Path, key: str, expected: int | None, found: int) -> None:
    if expected is not None and expected != found:
        raise UserError(
            f"{root}: found {found:,} where the configuration says {key}: {expected}; "
            "restore the missing files or correct the number"
        )


def _report(name: str, settings: DatasetSettings, problem: str) -> str:
    entry = ENTRIES[settings.layout]
    tree = "\n".join(f"        {line}" for line in entry.tree.splitlines())
    return (
        f"data.{name} ({entry.title}): {problem}\n"
        f"    expected under {settings.root}/ (official: {entry.train_images:,} training and {entry.val_images:,} "
        f"validation pictures, {entry.classes:,} classes):\n{tree}\n"
        f"    get it from: {entry.home}"
    )


def _fingerprint(root: Path, names: list[str], annotations: list[str], *, full: bool) -> tuple[str, int]:
    """A hash that moves when a picture or a label does, and the total size in bytes."""
    names = sorted(names)
    digest = hashlib.sha256()
    sizes = sizes_of(root, names)
    if -1 in sizes:
        raise UserError(f"{root / names[sizes.index(-1)]}: no such file, though the annotations name it; restore it")
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    for name in annotations:
        _hash_whole(digest, root / name)
    if full:
        for name in names:
            _hash_whole(digest, root / name)
    else:
        count = min(SAMPLED_FILES, len(names))
        for index in range(count):
            _hash_ends(digest, root / names[index * len(names) // count])
    return digest.hexdigest(), sum(sizes)


def _hash_whole(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def _hash_ends(digest: "hashlib._Hash", path: Path) -> None:
    with path.open("rb") as file:
        digest.update(file.read(SAMPLED_BYTES))
        file.seek(max(0, path.stat().st_size - SAMPLED_BYTES))
        digest.update(file.read(SAMPLED_BYTES))

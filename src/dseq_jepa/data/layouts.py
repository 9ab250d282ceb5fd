"""How each data set's official files name pictures and labels.

    python -c 'from dseq_jepa.data.layouts import read_cub; help(read_cub)'

One reader per layout. Labels are contiguous, 0..K-1, in the order of the official class ids that occur in the training
set; on the complete data sets that is the official id (iNat21) or the official id minus one (CUB, Cars).
Folders are listed with os.scandir and never stat'ed file by file: ImageNet's 1.28 million names take seconds.
"""

import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dseq_jepa.data.names import Names
from dseq_jepa.errors import UserError

Part = Literal["train", "val"]
Target = Literal["class", "count", "distance"]

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Lower-case endings of files that class folders may hold as pictures; other files there are ignored."""
CLEVR_FEWEST, CLEVR_MOST = 3, 10
CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
"""Upper ends, inclusive, of the first five distance classes (VTAB)."""


@dataclass(frozen=True)
class Listing:
    """Pictures and labels of one split, as the official files state them."""

    names: Names
    """Relative to the root, sorted or in the official order."""
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


def read_imagenet(root: Path, part: Part, target: Target) -> Listing:
    """ImageNet-1K: `train/<wnid>/*.JPEG`, `val/<wnid>/*.JPEG`; the class is the folder."""
    return _read_folders(root, part)


def read_inat21(root: Path, part: Part, target: Target) -> Listing:
    """INaturalist 2021: species folders, and `train.json` / `val.json` beside them, which decide where present."""
    annotations = root / f"{part}.json"
    return _read_inat_json(root, annotations) if annotations.exists() else _read_folders(root, part)


def read_cub(root: Path, part: Part, target: Target) -> Listing:
    """CUB-200-2011: images.txt, image_class_labels.txt, train_test_split.txt (1 = train), classes.txt."""
    names, classes = _table(root / "images.txt"), _table(root / "image_class_labels.txt")
    is_train, titles = _table(root / "train_test_split.txt"), _table(root / "classes.txt")
    for name, table in (("image_class_labels.txt", classes), ("train_test_split.txt", is_train)):
        for image in names.keys() - table.keys():
            raise UserError(f"{root / name}: image {image} of images.txt has no line here; restore the official file")
    official = {image: _integer(root / "image_class_labels.txt", classes[image]) for image in names}
    known = sorted({official[image] for image in names if is_train[image] == "1"})
    wanted = [image for image in names if (is_train[image] == "1") == (part == "train")]
    class_names = [titles.get(str(identity), str(identity)) for identity in known]
    return _listing(
        root,
        Names(f"images/{names[image]}" for image in wanted),
        _contiguous([official[image] for image in wanted], known, root / "image_class_labels.txt"),
        class_names,
    )


def read_cars(root: Path, part: Part, target: Target) -> Listing:
    """Stanford Cars: devkit/*.mat and cars_train/, cars_test/ (the test labels are a separate download)."""
    files = {"train": "cars_train_annos.mat", "val": "cars_test_annos_withlabels.mat"}
    folders = {"train": "cars_train", "val": "cars_test"}
    train_ids, train_names = _cars_annotations(root / "devkit" / files["train"])
    ids, names = (train_ids, train_names) if part == "train" else _cars_annotations(root / "devkit" / files[part])
    known = sorted(set(train_ids))
    titles = [str(entry.item()) for entry in _mat(root / "devkit" / "cars_meta.mat", "class_names")]
    if known[-1] > len(titles) or known[0] < 1:
        raise UserError(
            f"{root / 'devkit' / 'cars_meta.mat'}: names {len(titles)} classes, but class {known[-1]} occurs"
        )
    return _listing(
        root,
        Names(f"{folders[part]}/{name}" for name in names),
        _contiguous(ids, known, root / "devkit" / files[part]),
        [titles[identity - 1] for identity in known],
    )


def read_clevr(root: Path, part: Part, target: Target) -> Listing:
    """CLEVR v1.0: scenes/CLEVR_<split>_scenes.json; count: 3..10 objects, distance: nearest object's depth, binned."""
    path = root / "scenes" / f"CLEVR_{part}_scenes.json"
    try:
        scenes = [(scene["image_filename"], scene["objects"]) for scene in read_json(path)["scenes"]]
        values = [len(objs) if target == "count" else min(o["pixel_coords"][2] for o in objs) for _, objs in scenes]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not a CLEVR scenes file ({type(error).__name__}: {error})") from None
    names = Names(f"images/{part}/{name}" for name, _ in scenes)
    if target == "distance":
        labels = np.searchsorted(CLEVR_DISTANCES, values, side="left")
        return _listing(root, names, labels, _distance_names())
    for name, value in zip(names, values, strict=True):
        if not CLEVR_FEWEST <= value <= CLEVR_MOST:
            raise UserError(f"{path}: {name} has {value} objects, CLEVR has {CLEVR_FEWEST} to {CLEVR_MOST}")
    class_names = [f"{count} objects" for count in range(CLEVR_FEWEST, CLEVR_MOST + 1)]
    return _listing(root, names, np.asarray(values) - CLEVR_FEWEST, class_names)


LAYOUTS: dict[str, Callable[[Path, Part, Target], Listing]] = {
    "imagenet": read_imagenet,
    "inat21": read_inat21,
    "cub": read_cub,
    "cars": read_cars,
    "clevr": read_clevr,
}
"""Layouts that have a label per picture."""


def folders_in(path: Path) -> list[str]:
    """Sorted names of the visible folders in a folder.

    Raises:
        UserError: there is no such folder.

    """
    return sorted(entry.name for entry in _scan(path) if not entry.name.startswith(".") and entry.is_dir())


def pictures_in(path: Path) -> list[str]:
    """Sorted names of the pictures in a folder.

    Raises:
        UserError: there is no such folder.

    """
    return sorted(
        entry.name for entry in _scan(path) if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
    )


def require_on_disk(root: Path, names: Iterable[str]) -> None:
    """Refuse a list of pictures of which some are not there.

    Raises:
        UserError: naming the first missing file and the number of them.

    """
    if missing := missing_on_disk(root, names):
        raise UserError(
            f"{root / missing[0]}: listed but not on disk ({len(missing):,} such files); restore them from the archive"
        )


def require_good_files(problem: Callable[[int], str | None], count: int) -> None:
    """Look at files by their numbers, several at a time, for a network file system answers slowly but to many at once.

    Raises:
        UserError: the first problem, and how many more there are.

    """
    with ThreadPoolExecutor(16) as pool:
        problems = [found for found in pool.map(problem, range(count)) if found is not None]
    if problems:
        others = f" (and {len(problems) - 1:,} more such files)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{others}; restore them from the archive")


def missing_on_disk(root: Path, names: Iterable[str]) -> list[str]:
    """The pictures that are not there; every folder is listed once."""
    seen: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in seen:
            seen[folder] = {entry.name for entry in os.scandir(root / folder)} if (root / folder).is_dir() else set()
        if file not in seen[folder]:
            missing.append(name)
    return missing


def _scan(path: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{path}: expected a folder of the data set here ({(error.strerror or '').lower()})") from None


def _read_folders(root: Path, part: Part) -> Listing:
    classes = folders_in(root / "train")
    if not classes:
        raise UserError(f"{root / 'train'}: expected one folder per class, found none")
    folders = classes if part == "train" else folders_in(root / part)
    if not folders:
        raise UserError(
            f"{root / part}: expected one folder per class, found none; the official validation archive unpacks flat, "
            "sort its pictures into class folders"
        )
    labels_F = _contiguous(folders, classes, root / part)
    pictures = [pictures_in(root / part / folder) for folder in folders]
    for folder, files in zip(folders, pictures, strict=True):
        if not files:
            raise UserError(f"{root / part / folder}: a class folder without pictures ({', '.join(SUFFIXES)})")
    names = Names(f"{part}/{folder}/{file}" for folder, files in zip(folders, pictures, strict=True) for file in files)
    return Listing(names, np.repeat(labels_F, [len(files) for files in pictures]), tuple(classes))


def _read_inat_json(root: Path, path: Path) -> Listing:
    """Classes are the species folders of train/ (their names open with the official id); the JSON says which pictures.

    The JSON's category of every picture must agree with its folder, or one of the two is not the official one.
    """
    content = read_json(path)
    classes = folders_in(root / "train")
    try:
        category = {entry["image_id"]: entry["category_id"] for entry in content["annotations"]}
        pictures = sorted((entry["file_name"], category[entry["id"]]) for entry in content["images"])
        folders = [name.split("/")[-2] for name, _ in pictures]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path}: not an iNat21 annotation file ({type(error).__name__}: {error})") from None
    folder_of: dict[int, str] = {}
    for folder, (name, identity) in zip(folders, pictures, strict=True):
        if folder_of.setdefault(identity, folder) != folder:
            raise UserError(f"{path}: category {identity} has {name}, but also pictures in {folder_of[identity]}/")
    if len(set(folder_of.values())) != len(folder_of):
        raise UserError(f"{path}: two categories share a species folder; restore the official file")
    labels_N = _contiguous(folders, classes, path)
    return _listing(root, Names(name for name, _ in pictures), labels_N, classes)


def _cars_annotations(path: Path) -> tuple[list[int], list[str]]:
    records = _mat(path, "annotations")
    if records.dtype.names is None or not {"class", "fname"} <= set(records.dtype.names):
        raise UserError(f"{path}: its annotations have no class; the test set needs cars_test_annos_withlabels.mat")
    return [int(record["class"].item()) for record in records], [str(record["fname"].item()) for record in records]


def _mat(path: Path, key: str) -> NDArray[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or '').lower()})") from None
    try:
        return np.asarray(loadmat(io.BytesIO(data))[key]).reshape(-1)
    except (MatReadError, OSError, ValueError, LookupError, TypeError, NotImplementedError, zlib.error) as error:
        raise UserError(f"{path}: not the official development kit's file ({error})") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: it is missing or not JSON.

    """
    try:
        with path.open("rb") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or '').lower()})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); restore the official file") from None


def _table(path: Path) -> dict[str, str]:
    """Lines of `<id> <rest>`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or '').lower()})") from None
    rows = (line.strip().partition(" ") for line in lines if line.strip())
    return {key: value.strip() for key, _, value in rows}


def _integer(path: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{path}: expected a class number, found {text!r}") from None


def _contiguous(values: Sequence[Any], known: Sequence[Any], where: Path) -> NDArray[np.int64]:
    """Positions of class ids or folders among those of the training set."""
    position = {value: index for index, value in enumerate(known)}
    for value in values:
        if value not in position:
            raise UserError(f"{where}: class {value} does not occur in the training set of {len(known)} classes")
    return np.asarray([position[value] for value in values], dtype=np.int64)


def _distance_names() -> list[str]:
    edges = [f"{edge:g}" for edge in CLEVR_DISTANCES]
    return [
        f"<= {edges[0]}",
        *(f"{low} to {high}" for low, high in itertools.pairwise(edges)),
        f"> {edges[-1]}",
    ]


def _listing(root: Path, names: Names, labels_N: NDArray[Any], class_names: Sequence[str]) -> Listing:
    require_on_disk(root, names)
    return Listing(names, np.asarray(labels_N, dtype=np.int64), tuple(class_names))

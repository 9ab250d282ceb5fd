"""ADE20K SceneParse150: pictures and their label maps, pair by pair.

    python -c 'from dseq_jepa.data.ade20k import read_pairs; print(len(read_pairs("data/ADEChallengeData2016", "val")))'

A mask is an 8-bit PNG as large as its picture: 0 is "other", which nothing is trained or judged on, 1 to 150 are the
classes of `NAMES`. `check_pairs` reads every mask once, before hours of training.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dseq_jepa.data.decode import BadImage, upright_size
from dseq_jepa.data.layouts import Part, pictures_in, require_good_files
from dseq_jepa.data.names import Names
from dseq_jepa.errors import UserError

FOLDERS: dict[Part, str] = {"train": "training", "val": "validation"}
IGNORED = 255
"""Of a pixel that belongs to no class, once classes are numbered from 0."""
NAMES = tuple(
    """wall|building|sky|floor|tree|ceiling|road|bed|windowpane|grass|cabinet|sidewalk|person|earth|door|table|mountain
    |plant|curtain|chair|car|water|painting|sofa|shelf|house|sea|mirror|rug|field|armchair|seat|fence|desk|rock|wardrobe
    |lamp|bathtub|railing|cushion|base|box|column|signboard|chest of drawers|counter|sand|sink|skyscraper|fireplace
    |refrigerator|grandstand|path|stairs|runway|case|pool table|pillow|screen door|stairway|river|bridge|bookcase|blind
    |coffee table|toilet|flower|book|hill|bench|countertop|stove|palm|kitchen island|computer|swivel chair|boat|bar
    |arcade machine|hovel|bus|towel|light|truck|tower|chandelier|awning|streetlight|booth|television|airplane
    |dirt track|apparel|pole|land|bannister|escalator|ottoman|bottle|buffet|poster|stage|van|ship|fountain
    |conveyer belt|canopy|washer|plaything|swimming pool|stool|barrel|basket|waterfall|tent|bag|minibike|cradle|oven
    |ball|food|step|tank|trade name|microwave|pot|animal|bicycle|lake|dishwasher|screen|blanket|sculpture|hood|sconce
    |vase|traffic light|tray|ashcan|fan|pier|crt screen|plate|monitor|bulletin board|shower|radiator|glass|clock
    |flag""".replace("\n    |", "|").split("|")
)
"""The 150 classes in the order of their ids, 1 to 150."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures and masks of one split, relative to the root, in the same order."""

    root: Path
    pictures: Names
    masks: Names

    def __len__(self) -> int:
        return len(self.pictures)


def read_pairs(root: str | Path, part: Part) -> Pairs:
    """The pictures of a split with their masks, by name; no file is opened.

    Raises:
        UserError: there are none, a picture has no mask, or a mask no picture.

    """
    root, folder = Path(root), FOLDERS[part]
    pictures = pictures_in(root / "images" / folder)
    if not pictures:
        raise UserError(f"{root / 'images' / folder}: expected pictures here, found none")
    found = {file for file in pictures_in(root / "annotations" / folder) if file.lower().endswith(".png")}
    masks = [f"{file.rsplit('.', 1)[0]}.png" for file in pictures]
    missing = [picture for picture, mask in zip(pictures, masks, strict=True) if mask not in found]
    if missing:
        raise UserError(
            f"{root}/images/{folder}/{missing[0]}: has no mask annotations/{folder}/{missing[0].rsplit('.', 1)[0]}.png "
            f"({len(missing):,} such pictures); restore the masks from the archive"
        )
    if lonely := sorted(found - set(masks)):
        raise UserError(
            f"{root}/annotations/{folder}/{lonely[0]}: a mask without its picture in images/{folder} "
            f"({len(lonely):,} such masks); restore the pictures from the archive"
        )
    return Pairs(
        root, Names(f"images/{folder}/{file}" for file in pictures), Names(f"annotations/{folder}/{m}" for m in masks)
    )


def read_mask(path: Path) -> NDArray[np.uint8]:
    """(H, W) classes from 0 to 149, and IGNORED.

    Raises:
        BadImage: the file cannot be read, has no 8-bit labels, or one above 150.

    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
            mode, label_HW = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadImage(f"{path}: not a readable PNG ({error}; {len(data):,} bytes found)") from None
    if mode not in ("L", "P"):
        raise BadImage(f"{path}: expected a mask of 8-bit labels, found a picture of mode {mode}")
    if (above := int(label_HW.max(initial=0))) > len(NAMES):
        row, column = np.argwhere(label_HW == above)[0].tolist()
        raise BadImage(
            f"{path}: label {above} at row {row}, column {column}; SceneParse150 has 0 (other) to {len(NAMES)}"
        )
    return np.asarray(label_HW, np.uint8) - np.uint8(1)  # 0 wraps round to 255


def check_pairs(pairs: Pairs) -> None:
    """Read every mask and every picture's header.

    Raises:
        UserError: naming the first bad file, what is wrong with it, and how many more there are.

    """
    require_good_files(lambda index: _problem(pairs, index), len(pairs))


def _problem(pairs: Pairs, index: int) -> str | None:
    picture, mask = pairs.root / pairs.pictures[index], pairs.root / pairs.masks[index]
    try:
        height, width = read_mask(mask).shape
        expected = upright_size(picture)
    except BadImage as error:
        return str(error)
    if (width, height) != expected:
        return f"{mask}: {width} x {height} pixels, but {pairs.pictures[index]} has {expected[0]} x {expected[1]}"
    return None

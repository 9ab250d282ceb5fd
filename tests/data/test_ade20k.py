"""ADE20K's layout: masks, and what is said about broken ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dseq_jepa.data.ade20k import IGNORED, NAMES, check_pairs, read_mask, read_pairs
from dseq_jepa.data.catalog import check
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.errors import UserError

REAL = Path(os.environ.get("DSEQ_REAL_DATA", Path(__file__).parents[2] / "../shared/data"))


def mask_of(root: Path, name: str = "training/b.png") -> Path:
    return root / "annotations" / name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("training", "validation"):
        for name in "abc":
            for path in (tmp_path / "images" / folder / f"{name}.jpg", mask_of(tmp_path, f"{folder}/{name}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (7, 5)).save(tmp_path / "images" / folder / f"{name}.jpg")
            Image.fromarray(np.full((5, 7), 3, np.uint8)).save(mask_of(tmp_path, f"{folder}/{name}.png"))
    return tmp_path


def test_the_classes_are_the_official_ones():
    assert len(NAMES) == len(set(NAMES)) == 150
    assert (NAMES[0], NAMES[2], NAMES[20], NAMES[149]) == ("wall", "sky", "car", "flag")


def test_0_is_ignored_and_1_to_150_are_counted_from_0(tmp_path: Path):
    Image.fromarray(np.array([[0, 1, 150]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[IGNORED, 0, 149]]


def test_a_mask_with_a_palette_is_read_by_its_numbers(tmp_path: Path):
    image = Image.fromarray(np.array([[0, 7, 3]], np.uint8), "P")
    image.putpalette(list(range(30)))
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[IGNORED, 6, 2]]


def label_151(root: Path) -> None:
    label_HW = np.full((5, 7), 3, np.uint8)
    label_HW[2, 4] = 151
    Image.fromarray(label_HW).save(mask_of(root))


def another_size(root: Path) -> None:
    Image.fromarray(np.full((7, 5), 3, np.uint8)).save(mask_of(root))


def turned_picture(root: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (7, 5)).save(root / "images/training/b.jpg", exif=exif)


def truncated(root: Path) -> None:
    noise_HW = np.random.default_rng(0).integers(0, 150, (5, 7)).astype(np.uint8)
    Image.fromarray(noise_HW).save(mask_of(root))
    mask_of(root).write_bytes(mask_of(root).read_bytes()[:50])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "label above 150": (label_151, r"training/b\.png: label 151 at row 2, column 4; SceneParse150 has 0 .* to 150"),
    "another size": (another_size, r"training/b\.png: 5 x 7 pixels, but images/training/b\.jpg has 7 x 5"),
    "a picture that stands upright": (turned_picture, r"b\.png: 7 x 5 pixels, but images/training/b\.jpg has 5 x 7"),
    "colours": (lambda root: Image.new("RGB", (7, 5)).save(mask_of(root)), r"b\.png: expected a mask of 8-bit labels"),
    "truncated": (truncated, r"training/b\.png: not a readable PNG"),
    "no mask": (lambda root: mask_of(root).unlink(), r"training/b\.jpg: has no mask annotations/training/b\.png"),
    "no picture": (lambda root: (root / "images/training/b.jpg").unlink(), r"training/b\.png: a mask without its pict"),
    "no picture file": (
        lambda root: (root / "images/training/b.jpg").write_bytes(b"x"), r"images/training/b\.jpg: not a readable pict"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pair_is_named(root: Path, case: str):
    spoil, sentence = BROKEN[case]
    settings = DatasetSettings(layout="ade20k", root=root)
    assert check("ade", settings)["images"] == {"train": 3, "val": 3}
    spoil(root)
    with pytest.raises(UserError, match=sentence):
        check("ade", settings)


def test_all_broken_pairs_are_counted_and_the_first_is_named(root: Path):
    for name in "bc":
        shutil.copy(root / "images/training/a.jpg", mask_of(root, f"training/{name}.png"))
    with pytest.raises(UserError, match=r"training/b\.png: .*\(and 1 more such files\)"):
        check_pairs(read_pairs(root, "train"))


@pytest.mark.parametrize(
    ("pack", "counts", "classes"),
    [
        ("ADEChallengeData2016", (2, 2), None),
        ("camvid_ade_layout", (100, 32), {2, 3, 5, 7, 12, 13, 21, 33, 44, 94, 128}),
    ],
)
def test_real_pairs_are_read(pack: str, counts: tuple[int, int], classes: set[int] | None):
    if not (REAL / pack).is_dir():
        pytest.skip(f"no {REAL / pack}; set DSEQ_REAL_DATA")
    manifest = check("ade", DatasetSettings(layout="ade20k", root=REAL / pack))
    assert tuple(manifest["images"].values()) == counts
    pairs = read_pairs(REAL / pack, "val")
    found = {int(k) + 1 for mask in pairs.masks for k in np.unique(read_mask(pairs.root / mask)) if k != IGNORED}
    assert found == classes if classes else found <= set(range(1, 151))

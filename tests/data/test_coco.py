"""COCO's annotation files: what is read, and what is refused before any training."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coder

from dseq_jepa.data.catalog import check
from dseq_jepa.data.coco import Category, read_coco, run_lengths
from dseq_jepa.data.settings import DatasetSettings
from dseq_jepa.errors import UserError
from tests.evaluation.shapes import CATEGORIES, crowd, make_shapes

REAL = Path(os.environ.get("DSEQ_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture
def shapes(tmp_path: Path) -> DatasetSettings:
    return make_shapes(tmp_path / "coco")


def changed(data: DatasetSettings, change: Callable[[dict[str, Any]], object], part: str = "val") -> Path:
    path = data.root / "annotations" / f"instances_{part}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_split_is_read_in_the_order_of_its_ids_with_labels_from_one(shapes: DatasetSettings) -> None:
    changed(shapes, lambda content: [content[key].reverse() for key in content], "train")
    part = read_coco(shapes.root, "train")
    assert [image.id for image in part.images] == list(range(100, 108))
    assert part.images[1].file == "train2017/000000000101.jpg"
    assert (part.images[1].height, part.images[1].width) == (64, 40)
    assert part.categories == tuple(Category(entry["id"], entry["name"]) for entry in CATEGORIES)
    assert part.labels == {3: 1, 7: 2, 90: 3}
    assert sorted(one["id"] for one in part.objects[2]) == [1020, 1021, 1029]
    assert part.objects[7] == []
    assert part.trainable.tolist() == list(range(7))  # the last picture has no object
    with pytest.raises(IndexError):
        part.objects[8]


def test_a_picture_with_nothing_but_a_crowd_is_not_trained_on(shapes: DatasetSettings) -> None:
    def only_crowds(content: dict[str, Any]) -> None:
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 102 or one["iscrowd"]]

    changed(shapes, only_crowds, "train")
    assert read_coco(shapes.root, "train").trainable.tolist() == [0, 1, 3, 4, 5, 6]


def put(section: str, index: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[section][index].update(values)


def repeat(section: str) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[section].append(content[section][0])


BAD: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no such image": (put("annotations", 0, image_id=55), "annotation 1080: names image 55, which this file does not"),
    "no such category": (put("annotations", 0, category_id=4), "annotation 1080: names category 4, which this file"),
    "image in a list": (put("annotations", 0, image_id=[108]), r"annotation 1080: its image_id is \[108\], expected"),
    "category in a list": (put("annotations", 0, category_id=[3]), r"1080: its category_id is \[3\], expected"),
    "crowd in a list": (put("annotations", 0, iscrowd=[0]), r"1080: iscrowd is \[0\], expected 0 or 1"),
    "area in a list": (put("annotations", 0, area=[9]), r"1080: its area is \[9\], expected square pixels"),
    "empty category": (put("categories", 1, name=" "), "category 7: its name is empty"),
    "no categories": (lambda content: content["categories"].clear(), "has no categories"),
    "category twice": (repeat("categories"), "category 3: the id is used twice, by red box and by red box"),
    "image twice": (repeat("images"), "image 108: the id is used twice"),
    "annotation twice": (repeat("annotations"), "annotation 1080: the id is used twice"),
    "polygon outside": (
        put("annotations", 0, segmentation=[[0, 0, 70, 0, 70, 9]]),
        r"annotation 1080 of image 108 \(val2017/000000000108.jpg, 64 x 48\): a polygon reaches outside the image "
        r"\(x 0 to 70, y 0 to 9\)",
    ),
    "polygon before": (put("annotations", 0, segmentation=[[-5, 0, 7, 0, 7, 9]]), "1080 .* reaches outside the image"),
    "two points": (put("annotations", 0, segmentation=[[0, 0, 7, 0]]), "1080 .* at least three points"),
    "no polygon": (put("annotations", 0, segmentation=[]), "1080 .* expected polygons or run lengths"),
    "not a number": (put("annotations", 0, segmentation=[[0, 0, 7, 0, "x", 9]]), "1080 .* a polygon is"),
    "box outside": (put("annotations", 0, bbox=[60, 3, 20, 4]), "1080 .* its bbox .* reaches outside the image"),
    "box of three": (put("annotations", 0, bbox=[60, 3, 20]), "1080 .* expected left, top, width and height"),
    "short runs": (
        put("annotations", 0, segmentation={"size": [48, 64], "counts": [10, 5]}),
        "1080 .*: bad run lengths: they cover 15 pixels, the image has 3,072",
    ),
    "negative run": (
        put("annotations", 0, segmentation={"size": [48, 64], "counts": [-5, 3077]}), "1080 .*: one is negative",
    ),
    "runs of another size": (
        put("annotations", 0, segmentation={"size": [64, 48], "counts": [3072]}), r"height and width \[64, 48\]",
    ),
    "text that is no run": (
        put("annotations", 0, segmentation={"size": [48, 64], "counts": "a~ b"}), "1080 .*: the character '~'",
    ),
    "no category key": (lambda content: content["annotations"][0].pop("category_id"), "1080: has no category_id"),
    "crowd of two": (put("annotations", 0, iscrowd=2), "1080: iscrowd is 2, expected 0 or 1"),
    "no height": (put("images", 0, height=0), r"image 108 \(000000000108.jpg\): height and width are 0 and 64"),
    "no name": (put("images", 0, file_name=""), "image 108: expected a file_name"),
    "negative image": (put("images", 0, id=-1), "image -1: its id is negative"),
    "annotation 0": (put("annotations", 0, id=0), "annotation 0: its id is below 1, and COCO's evaluation takes 0 for"),
    "nothing to find": (lambda content: content["annotations"].clear(), "has no object that is no crowd"),
    "id in words": (put("images", 0, id="first"), r"images\[0\]: expected an object with a whole number as id"),
    "no list": (lambda content: content.update(annotations={}), "it has no list of annotations"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_one_error_with_file_and_record(shapes: DatasetSettings, kind: str) -> None:
    check("coco", shapes)
    change, sentence = BAD[kind]
    path = changed(shapes, change)
    with pytest.raises(UserError, match=sentence) as refused:
        check("coco", shapes)
    assert str(path) in str(refused.value)


def test_a_picture_of_another_size_is_named_with_its_record(shapes: DatasetSettings) -> None:
    """Turned pictures have the size of what `decode` makes of them."""
    path = shapes.root / "val2017" / "000000000109.jpg"  # 40 x 64
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (64, 40)).save(path, exif=turned)
    check("coco", shapes)
    Image.new("RGB", (64, 40)).save(path)
    sentence = f"{path}: 64 x 40 pixels, but image 109 of instances_val2017.json has 40 x 64;"
    with pytest.raises(UserError, match=re.escape(sentence)):
        check("coco", shapes)
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"000000000109\.jpg: not a readable picture"):
        check("coco", shapes)


def test_a_missing_picture_is_named_with_its_record(shapes: DatasetSettings) -> None:
    path = shapes.root / "train2017" / "000000000103.jpg"
    path.unlink()
    with pytest.raises(UserError, match=rf"instances_train2017.json: image 103: {path}: listed but not on disk"):
        check("coco", shapes)


def test_rounding_at_the_border_is_no_error(shapes: DatasetSettings) -> None:
    changed(shapes, put("annotations", 0, segmentation=[[-0.3, 0, 64.4, 0, 64.4, 48.5]]))
    check("coco", shapes)


def test_splits_with_different_categories_are_refused(shapes: DatasetSettings) -> None:
    changed(shapes, put("categories", 1, name="teal box"))
    with pytest.raises(UserError, match=r"instances_val2017.json: category 7 \(teal box\) where .* has 7 \(blue box\)"):
        check("coco", shapes)


def test_run_lengths_of_both_codes_are_pycocotools() -> None:
    draw = np.random.default_rng(0)
    for i in range(30):
        mask_HW = np.asfortranarray(draw.random((5 + 9 * i, 40)) < draw.random(), dtype=np.uint8)
        counts = run_lengths(coder.encode(mask_HW)["counts"].decode())
        flat = np.repeat(np.arange(len(counts)) % 2, counts)
        assert np.array_equal(flat.reshape(40, -1).T, mask_HW)
    assert run_lengths(crowd(1, 1, (1, 0, 1, 2), 2, 3)["segmentation"]["counts"]) == [2, 2, 2]
    for broken in ("P", 7, [1.5]):
        with pytest.raises(ValueError, match=r"ends within|expected a list|whole number"):
            run_lengths(broken)


def test_the_real_pack_passes() -> None:
    root = REAL / "coco2017"
    if not root.is_dir():
        pytest.skip(f"{root} is not there; set DSEQ_REAL_DATA")
    part = read_coco(root, "train")
    assert (len(part.images), sum(map(len, part.objects)), len(part.categories)) == (60, 492, 80)
    assert sum(one["iscrowd"] for objects in part.objects for one in objects) == 8
    assert part.labels[90] == 80

"""Generated data sets: the same bytes every time, official layouts, honest labels, classes that colour cannot tell."""

import hashlib
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from skimage.draw import polygon2mask

from dseq_jepa.data.layouts import LAYOUTS
from dseq_jepa.data.miniature import MARKER, make_layout, make_miniature
from dseq_jepa.data.miniature.ade20k import ID, SCENES, Scene, draw_scene
from dseq_jepa.data.miniature.clevr import draw_scene as draw_clevr
from dseq_jepa.data.miniature.coco import CATEGORIES, annotation, draw_picture
from dseq_jepa.data.miniature.labelled import CARS_CLASSES, CUB_CLASSES, INAT21_CLASSES, Task
from dseq_jepa.data.miniature.masks import Mask, counts, outlines
from dseq_jepa.data.miniature.objects import Bird, Car, Creature
from dseq_jepa.data.settings import Layout, MiniatureSettings
from dseq_jepa.errors import UserError

TRAIN: dict[Layout, int] = {"imagenet": 12, "inat21": 20, "cub": 20, "cars": 20, "clevr": 24, "coco": 8, "ade20k": 8}
VAL: dict[Layout, int] = {"imagenet": 8, "inat21": 20, "cub": 10, "cars": 10, "clevr": 24, "coco": 4, "ade20k": 4}
SETTINGS = MiniatureSettings(seed=3, image_size=40, train_images=TRAIN, val_images=VAL, classes=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("miniature")
    make_miniature(root, SETTINGS)
    return root


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def decoded(runs: list[int], height: int, width: int) -> Mask:
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def rasterised(polygons: list[list[float]], height: int, width: int) -> Mask:
    """Pixels whose centres lie inside a polygon; scikit-image puts centres at whole numbers, COCO at halves."""
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        mask |= polygon2mask((height, width), np.array(polygon).reshape(-1, 2)[:, ::-1] - 0.5)
    return mask


def test_same_seed_gives_the_same_bytes_in_any_order(root: Path, tmp_path: Path):
    time.sleep(max(0.0, 1.1 - time.time() % 1))  # a file that held the time would differ
    backwards = SETTINGS.model_copy(
        update={"train_images": dict(reversed(TRAIN.items())), "val_images": dict(reversed(VAL.items()))}
    )
    make_miniature(tmp_path, backwards)
    assert digests(tmp_path) == digests(root)


def test_another_seed_gives_other_pictures(root: Path, tmp_path: Path):
    make_layout("imagenet", tmp_path / "imagenet", SETTINGS.model_copy(update={"seed": 4}))
    first, second = digests(root / "imagenet"), digests(tmp_path / "imagenet")
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] == second[name]]


def test_no_picture_occurs_twice(root: Path):
    pictures = [value for name, value in digests(root).items() if name.lower().endswith(("jpg", "jpeg"))]
    assert len(set(pictures)) == len(pictures)


def test_a_small_set_takes_less_than_three_seconds(tmp_path: Path):
    start = time.process_time()
    make_miniature(tmp_path, SETTINGS)
    assert time.process_time() - start < 3


@pytest.mark.parametrize("layout", ["imagenet", "inat21", "cub", "cars"])
def test_readers_find_every_picture_and_equally_many_of_each_class(root: Path, layout: Layout):
    classes = {"imagenet": 4, "inat21": INAT21_CLASSES, "cub": CUB_CLASSES, "cars": CARS_CLASSES}[layout]
    for part, expected in (("train", TRAIN), ("val", VAL)):
        listing = LAYOUTS[layout](root / layout, part, "class")
        assert len(listing.names) == expected[layout]
        assert set(Counter(listing.labels.tolist()).values()) == {expected[layout] // classes}
        assert len(listing.class_names) == len(set(listing.class_names)) == classes
        for name in listing.names:
            with Image.open(root / layout / name) as picture:
                assert picture.format == "JPEG"
                assert picture.size[0] * picture.size[1] == pytest.approx(40 * 40, rel=0.05)


def test_clevr_labels_cover_all_classes_equally_and_agree_with_the_objects(root: Path):
    for part in ("train", "val"):
        for target, classes in (("count", 8), ("distance", 6)):
            labels = LAYOUTS["clevr"](root / "clevr", part, target).labels
            assert Counter(labels.tolist()) == dict.fromkeys(range(classes), 24 // classes)
    scenes = json.loads((root / "clevr/scenes/CLEVR_train_scenes.json").read_text())["scenes"]
    for scene in scenes:
        for thing in scene["objects"]:
            assert thing.keys() == {"shape", "size", "material", "color", "rotation", "3d_coords", "pixel_coords"}
        for name in ("left", "right", "front", "behind"):
            assert len(scene["relationships"][name]) == len(scene["objects"])
            assert np.linalg.norm(scene["directions"][name]) == pytest.approx(1)
        for i, others in enumerate(scene["relationships"]["behind"]):
            depths = [thing["pixel_coords"][2] for thing in scene["objects"]]
            assert all(depths[j] > depths[i] - 0.5 for j in others)


def test_clevr_objects_are_where_the_scene_says_and_larger_when_nearer(root: Path):
    scenes = json.loads((root / "clevr/scenes/CLEVR_val_scenes.json").read_text())["scenes"]
    colourful = {"red", "blue", "green", "purple", "cyan", "yellow"}
    hits = []
    for scene in scenes:
        with Image.open(root / "clevr/images/val" / scene["image_filename"]) as picture:
            assert picture.mode == "RGBA"
            pixels = np.asarray(picture.convert("HSV")).astype(int)
        nearest = min(scene["objects"], key=lambda thing: thing["pixel_coords"][2])
        column, row, _ = nearest["pixel_coords"]
        if nearest["color"] in colourful:
            hits.append(pixels[row, column, 1] > 80)
    assert len(hits) > 8
    assert np.mean(hits) > 0.9


def test_inat21_files_follow_the_official_schema(root: Path):
    for part in ("train", "val"):
        content = json.loads((root / f"inat21/{part}.json").read_text())
        assert {"info", "images", "categories", "annotations", "licenses"} <= content.keys()
        for category in content["categories"]:
            ranks = [category[rank] for rank in ("kingdom", "phylum", "class", "order", "family", "genus")]
            name = "_".join([f"{category['id']:05d}", *ranks, category["specific_epithet"]])
            assert category["image_dir_name"] == name
            assert (root / "inat21" / part / name).is_dir()


def test_cars_annotations_have_the_official_structure(root: Path):
    kit = root / "cars/devkit"
    assert loadmat(kit / "cars_meta.mat")["class_names"].shape == (1, CARS_CLASSES)
    annotations = loadmat(kit / "cars_train_annos.mat")["annotations"]
    assert annotations.dtype.names == ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    for record in annotations[0]:
        with Image.open(root / "cars/cars_train" / record["fname"].item()) as picture:
            assert 1 <= record["bbox_x1"].item() < record["bbox_x2"].item() <= picture.width
            assert 1 <= record["bbox_y1"].item() < record["bbox_y2"].item() <= picture.height


def test_cub_boxes_lie_in_the_pictures(root: Path):
    names = dict(line.split() for line in (root / "cub/images.txt").read_text().splitlines())
    for line in (root / "cub/bounding_boxes.txt").read_text().splitlines():
        identity, *box = line.split()
        left, top, width, height = map(float, box)
        with Image.open(root / "cub/images" / names[identity]) as picture:
            assert 0 <= left < left + width <= picture.width
            assert 0 <= top < top + height <= picture.height
            assert width * height > 0.15 * picture.width * picture.height


@pytest.mark.parametrize("seed", range(60))
def test_masks_survive_both_codes(seed: int):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 14, 2)
    mask = rng.random((height, width)) < rng.uniform(0.2, 0.9)
    assert np.array_equal(decoded(counts(mask), height, width), mask)
    assert np.array_equal(rasterised(outlines(mask), height, width), mask)


@pytest.mark.parametrize("index", range(8))
def test_coco_annotations_rasterise_to_what_was_drawn(index: int):
    picture, objects = draw_picture(np.random.default_rng(index), 64, index)
    height, width = picture.shape[:2]
    assert sum(mask.astype(int) for mask, _, _ in objects).max() == 1  # every pixel belongs to one object at most
    for mask, category, crowd in objects:
        entry = annotation(mask, category, crowd, 1, 1)
        code = entry["segmentation"]
        again = decoded(code["counts"], height, width) if crowd else rasterised(code, height, width)
        assert np.array_equal(again, mask)
        assert entry["area"] == mask.sum()
        left, top, wide, high = map(int, entry["bbox"])
        assert mask[top : top + high, left : left + wide].sum() == mask.sum()
        assert mask[top].any()
        assert mask[top + high - 1].any()
        assert mask[:, left].any()
        assert mask[:, left + wide - 1].any()


def test_coco_files_have_polygons_and_crowds_with_known_categories(root: Path):
    identities: list[int] = []
    for part in ("train", "val"):
        content = json.loads((root / f"coco/annotations/instances_{part}2017.json").read_text())
        assert {entry["id"] for entry in content["categories"]} == set(CATEGORIES)
        images = {image["id"]: image for image in content["images"]}
        for image in images.values():
            with Image.open(root / f"coco/{part}2017" / image["file_name"]) as picture:
                assert picture.size == (image["width"], image["height"])
        kinds = Counter(entry["iscrowd"] for entry in content["annotations"])
        assert kinds[1] == len(images) // 4
        assert kinds[0] >= len(images)
        assert {entry["image_id"] for entry in content["annotations"]} == set(images)
        identities += [entry["id"] for entry in content["annotations"]]
    assert len(set(identities)) == len(identities)


def test_ade_scenes_colour_and_label_the_same_pixels():
    scene = Scene(20, 30)
    inside = scene.frame.x_HW > 0.2
    scene.lay(inside, np.float32([0.1, 0.2, 0.3]), ID["water"])
    assert np.array_equal(scene.label_HW == ID["water"], inside)
    assert np.array_equal(scene.colour_HWC.any(axis=-1), inside)
    scene.shape(scene.frame.disc((-0.5, 0.0), 0.3), np.float32([0.9, 0.9, 0.9]), "tree")
    assert np.array_equal(scene.label_HW > 0, scene.colour_HWC.any(axis=-1))


@pytest.mark.parametrize("name", SCENES)
def test_ade_labels_end_where_colours_change(name: str):
    picture, labels = draw_scene(np.random.default_rng(1), 96, name)
    step = np.abs(np.diff(picture.astype(float), axis=1)).max(axis=-1)
    border = labels[:, 1:] != labels[:, :-1]
    assert step[border].mean() > 3 * step[~border].mean()


def test_ade_files_hold_official_ids(root: Path):
    rows = [line.split("\t") for line in (root / "ade20k/objectInfo150.txt").read_text().splitlines()]
    assert rows[0] == ["Idx", "Ratio", "Train", "Val", "Name"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 151))
    official = {1: "wall", 3: "sky", 5: "tree", 7: "road", 13: "person", 21: "car", 83: "light", 150: "flag"}
    assert {index: rows[index][4] for index in official} == official
    scenes = dict(line.split() for line in (root / "ade20k/sceneCategories.txt").read_text().splitlines())
    seen: Counter[int] = Counter()
    for folder in ("training", "validation"):
        for path in sorted((root / "ade20k/annotations" / folder).iterdir()):
            assert path.stem in scenes
            with (
                Image.open(path) as labels,
                Image.open(root / "ade20k/images" / folder / f"{path.stem}.jpg") as picture,
            ):
                assert labels.mode == "L"
                assert labels.size == picture.size
                if folder == "training":
                    seen.update(np.unique(labels).tolist())
    assert {index: int(rows[index][2]) for index in range(1, 151)} == {index: seen[index] for index in range(1, 151)}
    assert len(seen) > 12


def test_plans_are_all_different():
    for kind, number in ((Creature, 125), (Bird, 60), (Car, 45)):
        assert len({kind.numbered(index) for index in range(number)}) == number


def test_only_generated_folders_are_replaced(tmp_path: Path):
    folder = tmp_path / "imagenet"
    make_layout("imagenet", folder, SETTINGS)
    (folder / "train" / "stale").mkdir()
    make_layout("imagenet", folder, SETTINGS)
    assert not (folder / "train" / "stale").exists()
    (folder / MARKER).unlink()
    with pytest.raises(UserError, match="not generated"):
        make_layout("imagenet", folder, SETTINGS)
    assert (folder / "train").is_dir()


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("cub", {"train_images": {"cub": CUB_CLASSES - 1}}, "train_images.cub: 9 pictures cannot show 10 classes"),
        ("cars", {"val_images": {}}, "val_images.cars: 0 pictures"),
        ("imagenet", {"classes": 126}, "only 125"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(tmp_path: Path, layout: Layout, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        make_layout(layout, tmp_path / layout, SETTINGS.model_copy(update=change))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", ["imagenet", "cub", "cars"])
def test_the_mean_colour_of_a_picture_does_not_tell_its_class(tmp_path: Path, layout: Layout):
    """A least-squares classifier on the means of the colour channels stays near chance, one in ten."""
    settings = MiniatureSettings(
        seed=0, image_size=32, train_images={layout: 200}, val_images={layout: 200}, classes=10
    )
    make_layout(layout, tmp_path / layout, settings)
    features, labels = {}, {}
    for part in ("train", "val"):
        listing = LAYOUTS[layout](tmp_path / layout, part, "class")
        means = [np.asarray(Image.open(tmp_path / layout / name)).mean(axis=(0, 1)) / 255 for name in listing.names]
        features[part], labels[part] = np.column_stack([means, np.ones(200)]), listing.labels
    weights = np.linalg.lstsq(features["train"], np.eye(10)[labels["train"]], rcond=None)[0]
    assert ((features["val"] @ weights).argmax(axis=1) == labels["val"]).mean() < 0.18


def test_a_scene_that_finds_no_room_under_its_first_camera_is_drawn_anew() -> None:
    task = Task(seed=0, image_size=80, pictures={"train": 800}, classes=10)
    picture, scene = draw_clevr(task.rng("clevr", "train", 605), 64, 96, 605)
    assert picture.shape == (64, 96, 3)
    assert 3 <= len(scene["objects"]) <= 10

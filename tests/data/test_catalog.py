"""Official layouts are read as their makers describe them, and whatever is amiss is one clear error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from dseq_jepa.data.catalog import ENTRIES, check, load_split
from dseq_jepa.data.decode import decode
from dseq_jepa.data.names import Names
from dseq_jepa.data.settings import DatasetSettings, Layout
from dseq_jepa.errors import UserError

REAL = Path(os.environ.get("DSEQ_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def put(root: Path, name: str, value: int = 0) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path)


def imagenet(root: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for wnid in ("n01440764", "n02085782"):
            for i in range(count):
                put(root, f"{part}/{wnid}/{wnid}_{i}.JPEG")
    (root / "train" / "n01440764" / "notes.txt").write_text("not a picture")
    (root / "train" / ".cache").mkdir()


def inat21(root: Path) -> None:
    """Folders only."""
    for part, count in (("train", 3), ("val", 1)):
        for number, species in enumerate(
            ("Animalia_Aves_Turdus_merula", "Plantae_Rosa_canina", "Fungi_Amanita_muscaria")
        ):
            for i in range(count):
                put(root, f"{part}/{number:05d}_{species}/{part}{number}{i}.jpg")


def inat21_json(root: Path) -> None:
    """With train.json and val.json, whose image ids are shuffled and which leave one file out."""
    inat21(root)
    for part in ("train", "val"):
        files = sorted(path.relative_to(root).as_posix() for path in root.glob(f"{part}/*/*.jpg"))[part == "train" :]
        images = [{"id": 1000 - i, "file_name": name} for i, name in enumerate(files)]
        annotations = [
            {"id": i, "image_id": image["id"], "category_id": int(image["file_name"].split("/")[1][:5])}
            for i, image in enumerate(reversed(images))
        ]
        categories = [{"id": i, "name": f"species {i}"} for i in range(3)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{part}.json").write_text(json.dumps(content))


def cub(root: Path) -> None:
    """Classes 1, 2 and 7 of a list of ten, image ids with gaps, split 2:1."""
    rows = [(10 * i + c, c, i) for c in (1, 2, 7) for i in range(3)]
    for image, c, _ in rows:
        put(root, f"images/{c:03d}.Bird_{c}/Bird_{image}.jpg")
    (root / "images.txt").write_text("".join(f"{n} {c:03d}.Bird_{c}/Bird_{n}.jpg\n" for n, c, _ in rows))
    (root / "image_class_labels.txt").write_text("".join(f"{n} {c}\n" for n, c, _ in rows))
    (root / "train_test_split.txt").write_text("".join(f"{n} {int(i < 2)}\n" for n, _, i in rows))
    (root / "classes.txt").write_text("".join(f"{c} {c:03d}.Bird_{c}\n" for c in range(1, 11)))


def cars(root: Path) -> None:
    """Classes 3 and 190 of 196."""
    fields = [("bbox_x1", object), ("bbox_y1", object), ("bbox_x2", object), ("bbox_y2", object)]
    fields += [("class", object), ("fname", object)]
    (root / "devkit").mkdir(parents=True)
    for folder, file, ids in (
        ("cars_train", "cars_train_annos", [190, 3, 190, 3]),
        ("cars_test", "cars_test_annos_withlabels", [3, 190]),
    ):
        rows = [(1, 1, 4, 4, identity, f"{i + 1:05d}.jpg") for i, identity in enumerate(ids)]
        savemat(root / "devkit" / f"{file}.mat", {"annotations": np.array(rows, dtype=fields)[None]})
        for row in rows:
            put(root, f"{folder}/{row[-1]}")
    names = np.empty((1, 196), dtype=object)
    names[0] = [f"Car {i + 1}" for i in range(196)]
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})


def clevr(root: Path) -> None:
    """Nearest objects at and around the bin edges."""
    (root / "scenes").mkdir(parents=True)
    for part in ("train", "val"):
        scenes = []
        for i, nearest in enumerate([7.0, 8.0, 8.01, 9.5, 10.0, 10.5, 12.0, 9.0]):
            name = f"CLEVR_{part}_{i:06d}.png"
            put(root, f"images/{part}/{name}")
            depths = [nearest, *np.linspace(13, 20, i + 2)]
            objects = [{"pixel_coords": [10, 10, float(depth)]} for depth in reversed(depths)]
            scenes.append({"image_filename": name, "image_index": i, "objects": objects})
        (root / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"info": {}, "scenes": scenes}))


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 81)]
    for part, count in (("train", 3), ("val", 2)):
        images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 4, "width": 5} for i in range(count)]
        for image in images:
            put(root, f"{part}2017/{image['file_name']}")
        corners = {"bbox": [1, 1, 2, 2], "area": 4, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
        thing = {"id": 1, "image_id": 0, "category_id": 1, "iscrowd": 0, **corners}
        content = {"images": images, "annotations": [thing], "categories": categories}
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))


def ade20k(root: Path) -> None:
    for folder, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            put(root, f"images/{folder}/ADE_{i}.jpg")
            mask = root / f"annotations/{folder}/ADE_{i}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (5, 4), 7 + i).save(mask)


MAKERS: dict[str, tuple[Layout, Callable[[Path], None], tuple[int, int], int]] = {
    "imagenet": ("imagenet", imagenet, (6, 4), 2),
    "inat21": ("inat21", inat21, (9, 3), 3),
    "inat21_json": ("inat21", inat21_json, (8, 3), 3),
    "cub": ("cub", cub, (6, 3), 3),
    "cars": ("cars", cars, (4, 2), 2),
    "clevr": ("clevr", clevr, (8, 8), 8),
    "coco": ("coco", coco, (3, 2), 80),
    "ade20k": ("ade20k", ade20k, (3, 2), 150),
}


def made(tmp_path: Path, kind: str, **expected: int) -> DatasetSettings:
    layout, make, _, _ = MAKERS[kind]
    root = tmp_path / kind
    make(root)
    return DatasetSettings(layout=layout, root=root, **expected)


def labelled(settings: DatasetSettings, split: Any, target: Any = "class") -> dict[str, int]:
    loaded = load_split(settings, split, target)
    assert loaded.labels.dtype == np.int64
    assert len(loaded) == len(loaded.labels) == len(loaded.paths) == len(loaded.ids)
    return dict(zip(loaded.paths, loaded.labels.tolist(), strict=True))


def test_imagenet_classes_are_the_folders_and_other_files_are_ignored(tmp_path: Path) -> None:
    settings = made(tmp_path, "imagenet")
    train, val = labelled(settings, "train"), labelled(settings, "val")
    assert len(train) == 6
    assert train["train/n02085782/n02085782_1.JPEG"] == 1
    assert val["val/n01440764/n01440764_0.JPEG"] == 0
    assert load_split(settings, "val").class_names == ("n01440764", "n02085782")
    assert list(train) == sorted(train)


def test_imagenet_val_with_fewer_classes_keeps_the_labels_of_train(tmp_path: Path) -> None:
    settings = made(tmp_path, "imagenet")
    shutil.rmtree(settings.root / "val" / "n01440764")
    assert set(labelled(settings, "val").values()) == {1}


def test_imagenet_val_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, "imagenet")
    shutil.rmtree(settings.root / "train" / "n01440764")
    with pytest.raises(UserError, match="val: class n01440764 does not occur in the training set"):
        load_split(settings, "val")


def test_a_flat_imagenet_val_is_explained(tmp_path: Path) -> None:
    settings = made(tmp_path, "imagenet")
    shutil.rmtree(settings.root / "val")
    put(settings.root, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match="sort its pictures into class folders"):
        load_split(settings, "val")


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, "imagenet")
    (settings.root / "train" / "n09999999").mkdir()
    with pytest.raises(UserError, match="n09999999: a class folder without pictures"):
        load_split(settings, "train")


def test_inat21_reads_folders_where_there_is_no_json(tmp_path: Path) -> None:
    settings = made(tmp_path, "inat21")
    assert labelled(settings, "val")["val/00002_Fungi_Amanita_muscaria/val20.jpg"] == 2
    assert load_split(settings, "train").class_names[1] == "00001_Plantae_Rosa_canina"


def test_inat21_json_decides_which_images_and_agrees_with_the_folders(tmp_path: Path) -> None:
    settings = made(tmp_path, "inat21_json")
    train = labelled(settings, "train")
    assert len(train) == 8
    assert "train/00000_Animalia_Aves_Turdus_merula/train00.jpg" not in train
    assert all(int(name.split("/")[1][:5]) == label for name, label in train.items())


def test_inat21_json_that_contradicts_the_folders_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, "inat21_json")
    path = settings.root / "train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"train\.json: category 0 has"):
        load_split(settings, "train")


def test_cub_uses_the_official_split_and_contiguous_labels_in_official_order(tmp_path: Path) -> None:
    settings = made(tmp_path, "cub")
    train, val = labelled(settings, "train"), labelled(settings, "val")
    assert (len(train), len(val)) == (6, 3)
    assert train["images/007.Bird_7/Bird_7.jpg"] == 2
    assert val == {f"images/{c:03d}.Bird_{c}/Bird_{20 + c}.jpg": label for label, c in enumerate((1, 2, 7))}
    assert load_split(settings, "val").class_names == ("001.Bird_1", "002.Bird_2", "007.Bird_7")


def test_cub_class_that_only_the_test_set_has_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, "cub")
    path = settings.root / "image_class_labels.txt"
    path.write_text(path.read_text().replace("27 7", "27 8"))
    with pytest.raises(UserError, match="class 8 does not occur in the training set of 3 classes"):
        load_split(settings, "val")


def test_cars_labels_are_contiguous_over_the_official_ids_that_occur(tmp_path: Path) -> None:
    settings = made(tmp_path, "cars")
    assert list(labelled(settings, "train").values()) == [1, 0, 1, 0]
    assert labelled(settings, "val") == {"cars_test/00001.jpg": 0, "cars_test/00002.jpg": 1}
    assert load_split(settings, "val").class_names == ("Car 3", "Car 190")


def test_cars_test_annotations_without_labels_are_explained(tmp_path: Path) -> None:
    settings = made(tmp_path, "cars")
    unlabelled = np.array([(1, "00001.jpg")], dtype=[("bbox_x1", object), ("fname", object)])
    savemat(settings.root / "devkit" / "cars_test_annos_withlabels.mat", {"annotations": unlabelled})
    with pytest.raises(UserError, match="needs cars_test_annos_withlabels"):
        load_split(settings, "val")


def test_clevr_counts_objects_and_bins_the_nearest_one_with_closed_upper_ends(tmp_path: Path) -> None:
    settings = made(tmp_path, "clevr")
    assert list(labelled(settings, "train", "count").values()) == [0, 1, 2, 3, 4, 5, 6, 7]
    # 7.0 and 8.0 | 8.01 | 9.5 closes 9.0-9.5 | 10.0 closes 9.5-10.0 | 10.5, 12.0 | 9.0 closes 8.5-9.0
    assert list(labelled(settings, "val", "distance").values()) == [0, 0, 1, 3, 4, 5, 5, 2]
    assert load_split(settings, "val", "distance").class_names == (
        "<= 8",
        "8 to 8.5",
        "8.5 to 9",
        "9 to 9.5",
        "9.5 to 10",
        "> 10",
    )


def test_clevr_scene_with_an_impossible_count_is_refused(tmp_path: Path) -> None:
    settings = made(tmp_path, "clevr")
    path = settings.root / "scenes" / "CLEVR_train_scenes.json"
    content = json.loads(path.read_text())
    del content["scenes"][0]["objects"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"CLEVR_train_000000\.png has 2 objects, CLEVR has 3 to 10"):
        load_split(settings, "train", "count")


@pytest.mark.parametrize(
    ("kind", "target"), [("imagenet", "count"), ("clevr", "class"), ("coco", "class"), ("ade20k", "class")]
)
def test_a_target_that_the_layout_lacks_is_refused(tmp_path: Path, kind: str, target: Any) -> None:
    with pytest.raises(UserError, match=f"has no target '{target}'"):
        load_split(made(tmp_path, kind), "train", target)


@pytest.mark.parametrize("kind", ["cub", "cars", "clevr", "coco", "inat21_json"])
def test_a_listed_file_that_is_not_on_disk_is_named(tmp_path: Path, kind: str) -> None:
    settings = made(tmp_path, kind)
    victim = sorted(settings.root.rglob("*.png" if kind == "clevr" else "*.jpg"))[-1]
    victim.unlink()
    with pytest.raises(UserError, match=rf"{victim.name}: listed but not on disk \(1 such files\)"):
        check("data", settings)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("key", ["train_images", "val_images", "classes"])
def test_a_count_that_differs_from_the_settings_is_refused(tmp_path: Path, kind: str, key: str) -> None:
    with pytest.raises(UserError, match=rf"found \d+ where the configuration says {key}: 77"):
        check("data", made(tmp_path, kind, **{key: 77}))


@pytest.mark.parametrize("kind", MAKERS)
def test_check_counts_and_the_pictures_can_be_read(tmp_path: Path, kind: str) -> None:
    _, _, (train, val), classes = MAKERS[kind]
    settings = made(tmp_path, kind, train_images=train, val_images=val, classes=classes)
    manifest = check("data", settings)
    assert manifest["images"] == {"train": train, "val": val}
    assert manifest["classes"] == classes
    assert not manifest["complete"]
    assert json.loads(json.dumps(manifest)) == manifest
    if kind not in ("coco", "ade20k"):
        split = load_split(settings, "train", "count" if kind == "clevr" else "class")
        assert decode(split.path(0).read_bytes(), "first").shape == (4, 5, 3)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("full", [False, True])
def test_the_fingerprint_moves_with_content_names_and_labels_and_not_with_the_place(
    tmp_path: Path, kind: str, full: bool
) -> None:
    settings = made(tmp_path, kind)
    first = check("data", settings, full=full)["fingerprint"]
    moved = settings.model_copy(update={"root": settings.root.rename(tmp_path / "moved")})
    assert check("other name", moved, full=full)["fingerprint"] == first
    picture = sorted(path for path in moved.root.rglob("*.*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[-1]
    content = picture.read_bytes()
    picture.write_bytes(content[:-3] + b"\1" + content[-2:])
    assert check("data", moved, full=full)["fingerprint"] != first
    picture.write_bytes(content)
    assert check("data", moved, full=full)["fingerprint"] == first
    for annotation in ENTRIES[settings.layout].annotations[-1:]:
        if (moved.root / annotation).exists():
            content = (moved.root / annotation).read_bytes()  # a .mat opens with free text, the others may end in space
            changed = b"#" + content[1:] if annotation.endswith(".mat") else content + b" "
            (moved.root / annotation).write_bytes(changed)
            assert check("data", moved, full=full)["fingerprint"] != first


@pytest.mark.parametrize("layout", ENTRIES)
@pytest.mark.parametrize("empty", [False, True])
def test_missing_data_say_what_where_and_whence(tmp_path: Path, layout: Layout, empty: bool) -> None:
    root = tmp_path / "sets" / layout
    if empty:
        root.mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        check("mine", DatasetSettings(layout=layout, root=root))
    message, entry = str(caught.value), ENTRIES[layout]
    assert message.startswith(f"data.mine ({entry.title}): {root}")
    assert f"{entry.train_images:,} training" in message
    assert entry.home in message
    assert all(line in message for line in entry.tree.splitlines())


@pytest.mark.parametrize("kind", ["inat21_json", "cub", "cars", "clevr", "coco"])
def test_a_broken_annotation_file_is_named(tmp_path: Path, kind: str) -> None:
    settings = made(tmp_path, kind)
    for annotation in ENTRIES[settings.layout].annotations:
        content = (settings.root / annotation).read_bytes()
        (settings.root / annotation).write_bytes(content[: len(content) // 2])
        if annotation != "classes.txt":  # a shorter list of titles is no contradiction
            with pytest.raises(UserError, match=annotation):
                check("data", settings)
        (settings.root / annotation).write_bytes(content)


def test_names_are_a_sequence_of_any_strings() -> None:
    words = ["a/b.jpg", "", "ü/é.png", os.fsdecode(b"\xff\xfe.jpg"), "z"]
    names = Names(words)
    assert list(names) == words
    assert (names[-1], names[1:3], len(names)) == ("z", words[1:3], 5)
    with pytest.raises(IndexError):
        names[5]


@pytest.mark.parametrize(
    ("pack", "layout", "train", "val", "classes"),
    [
        ("tiny_imagenet", "imagenet", 10_000, 2_000, 40),
        ("CUB_200_2011", "cub", 200, 146, 10),
        ("CUB_200_2011_crops", "cub", 300, 180, 20),
        ("stanford_cars", "cars", 340, 160, 20),
        ("CLEVR_v1.0", "clevr", 8, 4, 8),
        ("coco2017", "coco", 60, 24, 80),
        ("ADEChallengeData2016", "ade20k", 2, 2, 150),
    ],
)
def test_real_packs(pack: str, layout: Layout, train: int, val: int, classes: int) -> None:
    root = REAL / pack
    if not root.is_dir():
        pytest.skip(f"{root} is not there; set DSEQ_REAL_DATA")
    settings = DatasetSettings(layout=layout, root=root, train_images=train, val_images=val, classes=classes)
    manifest = check(pack, settings)
    assert manifest["images"] == {"train": train, "val": val}
    assert manifest["classes"] == classes


def test_real_labels() -> None:
    """Facts that the packs' own files state, read by another route."""
    if not (REAL / "stanford_cars").is_dir():
        pytest.skip(f"{REAL} is not there; set DSEQ_REAL_DATA")
    cars_val = load_split(DatasetSettings(layout="cars", root=REAL / "stanford_cars"), "val")
    assert (np.bincount(cars_val.labels) == 8).all()
    birds = load_split(DatasetSettings(layout="cub", root=REAL / "CUB_200_2011"), "train")
    folders = sorted(path.name for path in (REAL / "CUB_200_2011" / "images").iterdir())
    assert all(folders[label] == name.split("/")[1] for name, label in zip(birds.paths, birds.labels, strict=True))
    scenes = json.loads((REAL / "CLEVR_v1.0" / "scenes" / "CLEVR_val_scenes.json").read_text())["scenes"]
    clevr_val = load_split(DatasetSettings(layout="clevr", root=REAL / "CLEVR_v1.0"), "val", "count")
    assert clevr_val.labels.tolist() == [len(scene["objects"]) - 3 for scene in scenes]
    wnids = load_split(DatasetSettings(layout="imagenet", root=REAL / "tiny_imagenet"), "val")
    assert all(wnids.class_names[label] in name for name, label in zip(wnids.paths, wnids.labels, strict=True))

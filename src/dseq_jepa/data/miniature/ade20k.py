"""ADE20K SceneParse150 in miniature: streets, parks and rooms with a label for every pixel.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # writes all miniature data sets

`Scene.lay` colours pixels and labels them in one call, so labels are exact by construction. Ids are the official ones.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from dseq_jepa.data.ade20k import NAMES
from dseq_jepa.data.miniature.drawing import Colour, Floats, Frame, Map, Sprite, clouds, hsv, photograph
from dseq_jepa.data.miniature.labelled import Part, Task, save_jpeg, save_png
from dseq_jepa.data.miniature.objects import Car, draw_ball, draw_car, draw_person

FOLDERS: dict[Part, tuple[str, str]] = {"train": ("training", "ADE_train"), "val": ("validation", "ADE_val")}

OTHER = 0
"""The label of what belongs to no class; a loose ball."""
ID = {name: index + 1 for index, name in enumerate(NAMES)}


class Scene:
    """A picture and its labels, laid down together."""

    def __init__(self, height: int, width: int) -> None:
        self.colour_HWC = np.zeros((height, width, 3), np.float32)
        self.label_HW = np.zeros((height, width), np.uint8)
        self.frame = Frame.place(height, width, (width / 2, height / 2), height / 2)
        """x and y in half heights from the middle."""

    def lay(self, inside_HW: NDArray[np.bool_], colour: Colour, label: int) -> None:
        """Give pixels a colour, (3,) or (H, W, 3), and a label."""
        self.colour_HWC[inside_HW] = colour if colour.ndim == 1 else colour[inside_HW]
        self.label_HW[inside_HW] = label

    def shape(self, distance_HW: Map, colour: Colour, name: str) -> None:
        """Lay a shaded shape."""
        sprite = Sprite(*self.label_HW.shape)
        sprite.paint(distance_HW, colour)
        self.sprite(sprite, ID[name])

    def sprite(self, sprite: Sprite, label: int) -> None:
        """Lay an object painted elsewhere."""
        self.label_HW[sprite.stamp(self.colour_HWC)] = label

    def textured(self, rng: Generator, colour: Colour, strength: float, cells: int) -> Floats:
        """(H, W, 3): a colour with soft spots."""
        return np.asarray(colour + strength * clouds(rng, *self.label_HW.shape, cells)[..., None], np.float32)


def write_ade20k(root: Path, task: Task) -> None:
    """`images/`, `annotations/` (8 bit, 0 = other), objectInfo150.txt and sceneCategories.txt."""
    categories: list[str] = []
    shares = np.zeros(151)
    seen: dict[Part, NDArray[np.int64]] = {}
    for part, count in task.pictures.items():
        folder, prefix = FOLDERS[part]
        seen[part] = np.zeros(151, np.int64)
        for i in range(count):
            name = list(SCENES)[i % len(SCENES)]
            picture, label_HW = draw_scene(task.rng("ade20k", part, i), task.image_size, name)
            save_jpeg(picture, root / "images" / folder / f"{prefix}_{i + 1:08d}.jpg")
            save_png(label_HW, root / "annotations" / folder / f"{prefix}_{i + 1:08d}.png")
            categories.append(f"{prefix}_{i + 1:08d} {name}")
            pixels = np.bincount(label_HW.ravel(), minlength=151)
            shares += pixels / label_HW.size
            seen[part] += pixels > 0
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    shares[OTHER] = 0
    for index, name in enumerate(NAMES, start=1):
        ratio = shares[index] / shares.sum()
        lines.append(f"{index}\t{ratio:.4f}\t{seen['train'][index]}\t{seen['val'][index]}\t{name}")
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    (root / "sceneCategories.txt").write_text("\n".join(categories) + "\n")


def draw_scene(rng: Generator, side: int, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One scene of `SCENES`.

    Args:
        rng: of this picture.
        side: of a square picture of about the same area, in pixels.
        name: of the kind of scene.

    Returns:
        (H, W, 3) uint8 picture and (H, W) uint8 labels.

    """
    scene = Scene(round(side * 0.87), round(side * 1.15))
    SCENES[name](scene, rng)
    return photograph(rng, scene.colour_HWC), scene.label_HW


def _street(scene: Scene, rng: Generator) -> None:
    frame = scene.frame
    horizon = rng.uniform(-0.05, 0.15)
    _sky(scene, rng)
    left = -1.4
    while left < 1.4:
        width, top = rng.uniform(0.3, 0.6), rng.uniform(-0.9, -0.3)
        _house(scene, rng, left, left + width, top, horizon)
        left += width + (0.0 if rng.random() < 0.7 else rng.uniform(0.1, 0.4))
    ground = frame.y_HW > horizon
    scene.lay(ground, scene.textured(rng, hsv(0.1, 0.08, rng.uniform(0.6, 0.75)), 0.05, 30), ID["sidewalk"])
    kerb = horizon + rng.uniform(0.18, 0.3)
    scene.lay(frame.y_HW > kerb, scene.textured(rng, hsv(0.6, 0.08, rng.uniform(0.25, 0.4)), 0.04, 40), ID["road"])
    dashes = (np.abs(frame.y_HW - (kerb + 0.35)) < 0.025) & (np.mod(frame.x_HW + rng.random(), 0.5) < 0.28)
    scene.lay(dashes, hsv(0.13, 0.1, 0.9), ID["road"])
    for x in rng.uniform(-1.2, 1.2, rng.integers(0, 3)):
        _tree(scene, rng, float(x), horizon + 0.1, rng.uniform(0.25, 0.4))
    for x in rng.uniform(-1.1, 1.1, rng.integers(1, 3)):
        _object(scene, rng, "car", (float(x), kerb + rng.uniform(0.15, 0.4)), rng.uniform(0.3, 0.42))
    for x in rng.uniform(-1.1, 1.1, rng.integers(1, 4)):
        _object(scene, rng, "person", (float(x), horizon + rng.uniform(-0.05, 0.15)), rng.uniform(0.2, 0.3))


def _park(scene: Scene, rng: Generator) -> None:
    frame = scene.frame
    horizon = rng.uniform(-0.2, 0.1)
    _sky(scene, rng)
    wave_HW = 0.3 * clouds(rng, 1, scene.label_HW.shape[1], 4)
    mountain = hsv(rng.uniform(0.55, 0.7), rng.uniform(0.15, 0.35), rng.uniform(0.45, 0.65))
    scene.lay(frame.y_HW > horizon - 0.3 + wave_HW, scene.textured(rng, mountain, 0.06, 12), ID["mountain"])
    grass = hsv(rng.uniform(0.22, 0.33), rng.uniform(0.45, 0.7), rng.uniform(0.45, 0.7))
    scene.lay(frame.y_HW > horizon, scene.textured(rng, grass, 0.07, 45), ID["grass"])
    pond = frame.ellipse((rng.uniform(-0.7, 0.7), horizon + 0.55), (rng.uniform(0.35, 0.6), rng.uniform(0.12, 0.2)))
    scene.lay(pond < 0, scene.textured(rng, hsv(0.56, 0.5, rng.uniform(0.55, 0.8)), 0.04, 8), ID["water"])
    for x in np.sort(rng.uniform(-1.2, 1.2, rng.integers(2, 5))):
        _tree(scene, rng, float(x), horizon + rng.uniform(0.05, 0.25), rng.uniform(0.35, 0.55))
    for x in rng.uniform(-1.0, 1.0, rng.integers(0, 3)):
        _object(scene, rng, "person", (float(x), horizon + rng.uniform(0.1, 0.5)), rng.uniform(0.22, 0.35))
    _ball(scene, rng, (rng.uniform(-1, 1), rng.uniform(0.6, 0.85)))


def _bedroom(scene: Scene, rng: Generator) -> None:
    floor = _room(scene, rng)
    x = rng.uniform(-0.35, 0.35)
    wood, cover = (
        hsv(0.07, 0.5, rng.uniform(0.35, 0.6)),
        hsv(rng.random(), rng.uniform(0.3, 0.6), rng.uniform(0.6, 0.9)),
    )
    frame = scene.frame
    scene.shape(frame.box((x, floor - 0.12), (0.6, 0.3), 0.05), wood, "bed")
    scene.shape(frame.box((x, floor + 0.22), (0.6, 0.26), 0.08), cover, "bed")
    for side in (-1, 1):
        scene.shape(frame.box((x + side * 0.28, floor - 0.08), (0.22, 0.1), 0.08), hsv(0.1, 0.05, 0.95), "pillow")
    _lamp(scene, rng, x - 0.85, floor)


def _living_room(scene: Scene, rng: Generator) -> None:
    floor = _room(scene, rng)
    frame = scene.frame
    x = rng.uniform(-0.35, 0.35)
    rug = hsv(rng.random(), rng.uniform(0.3, 0.6), rng.uniform(0.5, 0.8))
    scene.shape(frame.ellipse((x, floor + 0.42), (0.8, 0.22)), rug, "rug")
    cloth = hsv(rng.random(), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.8))
    scene.shape(frame.box((x, floor - 0.1), (0.62, 0.24), 0.08), cloth, "sofa")
    scene.shape(frame.box((x, floor + 0.12), (0.66, 0.14), 0.05), cloth * np.float32(0.9), "sofa")
    for side in (-1, 1):
        scene.shape(frame.box((x + side * 0.64, floor + 0.04), (0.1, 0.22), 0.06), cloth, "sofa")
    wood = hsv(0.07, 0.55, rng.uniform(0.3, 0.5))
    for side in (-1, 1):
        scene.shape(frame.box((x + side * 0.3, floor + 0.5), (0.035, 0.16), 0.01), wood, "table")
    scene.shape(frame.box((x, floor + 0.36), (0.42, 0.05), 0.02), wood, "table")
    _lamp(scene, rng, x + 0.95, floor)
    if rng.random() < 0.5:
        _ball(scene, rng, (x - 0.9, floor + 0.5))


SCENES: dict[str, Callable[[Scene, Generator], None]] = {
    "street": _street,
    "park": _park,
    "bedroom": _bedroom,
    "living_room": _living_room,
}
"""Kinds of scenes by ADE20K's name, in turn."""


def _sky(scene: Scene, rng: Generator) -> None:
    top, low = hsv(rng.uniform(0.54, 0.62), rng.uniform(0.3, 0.6), 0.95), hsv(0.1, 0.08, 0.95)
    fade_HW1 = np.clip(0.5 + 0.6 * scene.frame.y_HW, 0, 1)[..., None]
    cloud_HW1 = np.clip(clouds(rng, *scene.label_HW.shape, 5), 0, 1)[..., None]
    colour_HWC = top + fade_HW1 * (low - top)
    scene.lay(np.ones(scene.label_HW.shape, bool), colour_HWC + 0.6 * cloud_HW1 * (0.97 - colour_HWC), ID["sky"])


def _house(scene: Scene, rng: Generator, left: float, right: float, top: float, ground: float) -> None:
    """A front with a grid of windows; windows of a facade belong to the building, as in ADE20K."""
    frame = scene.frame
    colour = hsv(rng.uniform(0.0, 0.15), rng.uniform(0.15, 0.5), rng.uniform(0.45, 0.8))
    front = (frame.x_HW >= left) & (frame.x_HW < right) & (frame.y_HW > top) & (frame.y_HW <= ground)
    scene.lay(front, scene.textured(rng, colour, 0.03, 30), ID["building"])
    lit = hsv(0.13, 0.4, 0.95) if rng.random() < 0.3 else hsv(0.58, 0.35, rng.uniform(0.25, 0.45))
    across, up = np.mod(frame.x_HW - left, 0.17) / 0.17, np.mod(frame.y_HW - top, 0.22) / 0.22
    panes = front & (across > 0.3) & (across < 0.8) & (up > 0.3) & (up < 0.8) & (frame.x_HW < right - 0.04)
    scene.lay(panes, lit, ID["building"])


def _tree(scene: Scene, rng: Generator, x: float, ground: float, size: float) -> None:
    frame = scene.frame
    leaf = hsv(rng.uniform(0.2, 0.38), rng.uniform(0.5, 0.8), rng.uniform(0.3, 0.55))
    scene.shape(frame.limb((x, ground), (x, ground - size), 0.16 * size, 0.1 * size), hsv(0.07, 0.6, 0.35), "tree")
    crown = frame.lobes((x, ground - 1.4 * size), 0.62 * size, 0.14, int(rng.integers(5, 9)), rng.uniform(0, 6))
    scene.shape(crown, leaf, "tree")


def _object(scene: Scene, rng: Generator, name: str, centre: tuple[float, float], size: float) -> None:
    height, width = scene.label_HW.shape
    pixel = (width / 2 + centre[0] * height / 2, height / 2 + centre[1] * height / 2)
    frame = Frame.place(height, width, pixel, size * height / 2, mirror=bool(rng.random() < 0.5))
    sprite = Sprite(height, width)
    if name == "car":
        draw_car(sprite, frame, Car.numbered(int(rng.integers(15))), rng)
    else:
        draw_person(sprite, frame, rng)
    scene.sprite(sprite, ID[name])


def _ball(scene: Scene, rng: Generator, centre: tuple[float, float]) -> None:
    height, width = scene.label_HW.shape
    pixel = (width / 2 + centre[0] * height / 2, height / 2 + centre[1] * height / 2)
    sprite = Sprite(height, width)
    draw_ball(sprite, Frame.place(height, width, pixel, 0.09 * height), rng)
    scene.sprite(sprite, OTHER)


def _room(scene: Scene, rng: Generator) -> float:
    """Walls, ceiling, floor, a window with a curtain and a painting; returns where the floor starts."""
    frame = scene.frame
    floor, ceiling = rng.uniform(0.2, 0.35), rng.uniform(-0.9, -0.75)
    wall = hsv(rng.random(), rng.uniform(0.08, 0.3), rng.uniform(0.65, 0.9))
    scene.lay(np.ones(scene.label_HW.shape, bool), scene.textured(rng, wall, 0.03, 4), ID["wall"])
    scene.lay(frame.y_HW < ceiling, scene.textured(rng, hsv(0.1, 0.04, 0.93), 0.02, 3), ID["ceiling"])
    plank_HW = 1 - 0.15 * (np.mod(frame.x_HW / (0.6 + frame.y_HW), 0.3) < 0.04)
    boards = hsv(rng.uniform(0.05, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.65))
    scene.lay(frame.y_HW > floor, np.asarray(plank_HW[..., None] * boards, np.float32), ID["floor"])
    side = 1 if rng.random() < 0.5 else -1
    x, y = side * rng.uniform(0.55, 0.8), (floor + ceiling) / 2 - 0.05
    scene.shape(frame.box((x, y), (0.3, 0.3), 0.01), hsv(0.56, rng.uniform(0.2, 0.5), 0.95), "windowpane")
    scene.shape(frame.box((x, y), (0.02, 0.3), 0.005), hsv(0.1, 0.05, 0.95), "windowpane")
    cloth = hsv(rng.random(), rng.uniform(0.4, 0.7), rng.uniform(0.5, 0.8))
    for edge in (-1, 1):
        scene.shape(frame.box((x + edge * 0.34, y + 0.05), (0.1, 0.42), 0.03), cloth, "curtain")
    canvas = hsv(rng.random(), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.9))
    scene.shape(frame.box((-side * rng.uniform(0.3, 0.6), y - 0.05), (0.22, 0.16), 0.01), canvas, "painting")
    return floor


def _lamp(scene: Scene, rng: Generator, x: float, floor: float) -> None:
    frame = scene.frame
    scene.shape(frame.limb((x, floor + 0.2), (x, floor - 0.55), 0.025), hsv(0, 0, 0.25), "lamp")
    shade = [(x - 0.08, floor - 0.85), (x + 0.08, floor - 0.85), (x + 0.17, floor - 0.5), (x - 0.17, floor - 0.5)]
    scene.shape(frame.polygon(shade, 0.01), hsv(0.13, rng.uniform(0.2, 0.5), 0.98), "lamp")

"""Drawing with signed distances: smooth shapes, local patterns, cluttered backgrounds, hard masks.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # draws all miniature data sets

A shape is a map of signed distances (negative inside); a pixel's coverage follows from its distance in pixels, so edges
are smooth without supersampling. Lengths in a frame are in units of the object's half size; x points forward, y down.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
"""Of any width; what is large is float32."""
Map = Floats
Colour = Floats
Point = tuple[float, float]

SCHEMES = 5
"""Pairs of opposite hues that classes use."""
HUE_SPREAD = 0.05
"""Standard deviation of a scheme's hues in half turns; schemes are 0.2 apart."""
CHROMA = (0.4, 0.48)
"""Distance of a colour from grey."""
GREY = (0.49, 0.53)
"""Grey of a colour; the same law for all parts, for brightness tells nothing either."""
GROUND = (0.5, 0.51, 0.475)
"""Colour of the ground. It is the same everywhere: whatever a whole picture shares, self-supervision learns first, and
with a random ground it learnt little else in the few hundred steps of a demo."""
GROUND_NOISE = 0.045
SCRAPS = (10, 18)
"""Fewest and most coloured distractors behind the object."""
SCRAP_SIZE = (0.07, 0.18)
"""Half size in half sides of the picture."""
SCRAP_SATURATION = (0.3, 0.9)
SCRAP_VALUE = (0.3, 0.7)
SCRAP_OPACITY = 0.9
LIGHT = (0.98, 1.02)
"""Brightness of the light on the whole picture."""
GRAIN = 0.02
"""Standard deviation of the sensor noise; pixel values lie in [0, 1]."""


@dataclass(frozen=True)
class Frame:
    """Pixel coordinates seen from an object: where it stands, its size and its turn."""

    x_HW: Map
    y_HW: Map
    scale: float
    """Pixels per unit of the frame."""

    @staticmethod
    def place(
        height: int, width: int, centre: Point, scale: float, angle: float = 0.0, mirror: bool = False
    ) -> "Frame":
        """A frame at pixel `centre` (x, y), `scale` pixels a unit, turned by `angle` radians, perhaps facing left."""
        dx_HW = (np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5 - centre[0])) / np.float32(scale)
        dy_HW = (np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5 - centre[1])) / np.float32(scale)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x_HW, y_HW = cos * dx_HW + sin * dy_HW, cos * dy_HW - sin * dx_HW
        return Frame(-x_HW if mirror else x_HW, y_HW, scale)

    def ellipse(self, centre: Point, radii: Point, angle: float = 0.0) -> Map:
        """Distances, in pixels, to an ellipse (first order; exact on the outline)."""
        x_HW, y_HW = self.turned(centre, angle)
        k0_HW = np.sqrt((x_HW / radii[0]) ** 2 + (y_HW / radii[1]) ** 2)
        k1_HW = np.sqrt((x_HW / radii[0] ** 2) ** 2 + (y_HW / radii[1] ** 2) ** 2)
        return self._pixels(k0_HW * (k0_HW - 1) / (k1_HW + 1e-6))

    def disc(self, centre: Point, radius: float) -> Map:
        """Distances, in pixels, to a disc."""
        return self._pixels(np.hypot(self.x_HW - centre[0], self.y_HW - centre[1]) - radius)

    def box(self, centre: Point, half: Point, rounding: float = 0.05, angle: float = 0.0) -> Map:
        """Distances, in pixels, to a rectangle with rounded corners."""
        x_HW, y_HW = self.turned(centre, angle)
        x_HW, y_HW = np.abs(x_HW) - (half[0] - rounding), np.abs(y_HW) - (half[1] - rounding)
        outside_HW = np.hypot(np.maximum(x_HW, 0), np.maximum(y_HW, 0))
        return self._pixels(outside_HW + np.minimum(np.maximum(x_HW, y_HW), 0) - rounding)

    def limb(self, start: Point, end: Point, thick: float, thin: float | None = None) -> Map:
        """Distances, in pixels, to a round stroke whose radius goes from `thick` to `thin`."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        x_HW, y_HW = self.x_HW - start[0], self.y_HW - start[1]
        t_HW = np.clip((x_HW * dx + y_HW * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
        radius_HW = thick + ((thick if thin is None else thin) - thick) * t_HW
        return self._pixels(np.hypot(x_HW - t_HW * dx, y_HW - t_HW * dy) - radius_HW)

    def polygon(self, corners: Sequence[Point], rounding: float = 0.0) -> Map:
        """Distances, in pixels, to a simple polygon, grown by `rounding`."""
        squared_HW = np.full(self.x_HW.shape, np.inf, np.float32)
        inside_HW = np.zeros(self.x_HW.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
            x_HW, y_HW = self.x_HW - ax, self.y_HW - ay
            dx, dy = bx - ax, by - ay
            t_HW = np.clip((x_HW * dx + y_HW * dy) / (dx * dx + dy * dy + 1e-9), 0, 1)
            squared_HW = np.minimum(squared_HW, (x_HW - t_HW * dx) ** 2 + (y_HW - t_HW * dy) ** 2)
            if dy:
                inside_HW ^= ((y_HW >= 0) != (y_HW - dy >= 0)) & (x_HW < y_HW * (dx / dy))
        distance_HW = np.sqrt(squared_HW)
        return self._pixels(np.where(inside_HW, -distance_HW, distance_HW) - rounding)

    def lobes(self, centre: Point, radius: float, depth: float, count: int, phase: float = 0.0) -> Map:
        """Distances, in pixels (first order), to a disc with `count` lobes of relative height `depth`."""
        x_HW, y_HW = self.x_HW - centre[0], self.y_HW - centre[1]
        wave_HW = np.cos(count * np.arctan2(y_HW, x_HW) + np.float32(phase))
        return self._pixels(np.hypot(x_HW, y_HW) - radius * (1 + depth * wave_HW))

    def turned(self, centre: Point, angle: float) -> tuple[Map, Map]:
        """Coordinates around `centre`, turned by `angle` radians."""
        x_HW, y_HW = self.x_HW - np.float32(centre[0]), self.y_HW - np.float32(centre[1])
        if not angle:
            return x_HW, y_HW
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cos * x_HW + sin * y_HW, cos * y_HW - sin * x_HW

    def around(self, centre: Point, reach: float) -> tuple["Frame", tuple[slice, slice]]:
        """The part of an upright frame within `reach` of a point, and where it lies in the picture."""
        rows = np.searchsorted(self.y_HW[:, 0], (centre[1] - reach, centre[1] + reach))
        columns = np.searchsorted(self.x_HW[0], (centre[0] - reach, centre[0] + reach))
        window = slice(*rows), slice(*columns)
        return Frame(self.x_HW[window], self.y_HW[window], self.scale), window

    def _pixels(self, distance_HW: Map) -> Map:
        return np.asarray(distance_HW * np.float32(self.scale), np.float32)


def pattern(frame: Frame, kind: str, period: float, phase: float, centre: Point = (0.0, 0.0)) -> Map:
    """Where a marking lies: 1 on it, 0 beside it, smooth over a pixel; about half of the area for every kind.

    Args:
        frame: of the part.
        kind: bars (across the body), bands (along it), spots, rings or checks.
        period: length of one repeat in units of the frame.
        phase: shift in repeats.
        centre: of the rings.

    """
    x_HW, y_HW = frame.x_HW / np.float32(period) + phase, frame.y_HW / np.float32(period) + phase
    turn = np.float32(2 * np.pi)
    match kind:
        case "bars":
            wave_HW = np.cos(turn * x_HW)
        case "bands":
            wave_HW = np.cos(turn * y_HW)
        case "spots":
            wave_HW = np.cos(turn * 0.8 * x_HW) + np.cos(turn * 0.8 * y_HW) - 0.2
        case "rings":
            radius_HW = np.hypot(frame.x_HW - centre[0], frame.y_HW - centre[1])
            wave_HW = np.cos(turn * (radius_HW / np.float32(period) + phase))
        case "checks":
            wave_HW = 2 * np.cos(turn * 0.7 * x_HW) * np.cos(turn * 0.7 * y_HW)
        case _:
            raise ValueError(f"no pattern is called {kind!r}")
    sharpness = period * frame.scale / (2 * np.pi)
    return np.asarray(np.clip(0.5 + wave_HW * sharpness, 0, 1), np.float32)


class Sprite:
    """A picture with coverage, painted part by part from back to front (premultiplied colours)."""

    def __init__(self, height: int, width: int) -> None:
        self.colour_HWC = np.zeros((height, width, 3), np.float32)
        self.alpha_HW = np.zeros((height, width), np.float32)

    def paint(self, distance_HW: Map, colour: Colour, shading: float = 0.35) -> None:
        """Lay a part over what is there.

        Args:
            distance_HW: signed distances in pixels.
            colour: (3,) or (H, W, 3) in [0, 1].
            shading: how much the rim is darkened; it gives parts a round look and an outline.

        """
        near_HW = distance_HW < 0.5
        rows, columns = np.flatnonzero(near_HW.any(axis=1)), np.flatnonzero(near_HW.any(axis=0))
        if not len(rows):
            return
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        distance_HW = distance_HW[window]
        cover_HW = np.clip(0.5 - distance_HW, 0, 1)
        rim = np.float32(0.045 * max(self.alpha_HW.shape))
        shade_HW = 1 - np.float32(shading) * np.clip(1 + distance_HW / rim, 0, 1) ** 2
        self.colour_HWC[window] *= (1 - cover_HW)[..., None]
        self.colour_HWC[window] += (cover_HW * shade_HW)[..., None] * (colour if colour.ndim == 1 else colour[window])
        self.alpha_HW[window] += cover_HW * (1 - self.alpha_HW[window])

    def over(self, picture_HWC: Floats) -> Floats:
        """The sprite laid over a picture, with smooth edges."""
        return self.colour_HWC + (1 - self.alpha_HW)[..., None] * picture_HWC

    def mask(self) -> NDArray[np.bool_]:
        """The pixels that belong to the sprite: at least half covered."""
        return self.alpha_HW >= 0.5

    def stamp(self, picture_HWC: Floats) -> NDArray[np.bool_]:
        """Overwrite exactly the pixels of `mask` in the picture; returns the mask."""
        mask_HW = self.mask()
        picture_HWC[mask_HW] = self.colour_HWC[mask_HW] / self.alpha_HW[mask_HW, None]
        return mask_HW


def mixed(colour: Colour, other: Colour, where_HW: Map) -> Floats:
    """(H, W, 3): `other` where the map is 1, `colour` where it is 0."""
    return colour + where_HW[..., None] * (other - colour)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour in [0, 1] from hue (in turns, any number), saturation and value."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def palette(rng: Generator, scheme: int | None = None, grey: tuple[float, float] = GREY) -> list[Colour]:
    """Four colours of one object: the first and third of one hue, the others of the opposite hue.

    A scheme is a pair of opposite hues. Which of the two comes first is tossed for each object, so that over many
    objects the mean colour of every scheme is the same grey.

    Args:
        rng: of the picture.
        scheme: 0 to SCHEMES - 1; any pair of opposite hues unless given.
        grey: darkest and lightest grey of a colour.

    """
    turn = np.pi * (rng.random() if scheme is None else scheme / SCHEMES + rng.normal(0, HUE_SPREAD))
    axis = np.cos(turn) * np.array([2, -1, -1]) / 6**0.5 + np.sin(turn) * np.array([0, 1, -1]) / 2**0.5
    axis *= rng.uniform(*CHROMA) * rng.choice((-1, 1))
    return [np.clip(rng.uniform(*grey) + side * axis, 0, 1).astype(np.float32) for side in (1, -1, 1, -1)]


def background(rng: Generator, height: int, width: int, spread: float = 0.0) -> Floats:
    """(H, W, 3) in [0, 1]: mottled ground strewn with coloured scraps; tells nothing about the object.

    `spread` is how far each channel of the ground may be off its usual colour.
    """
    frame = Frame.place(height, width, (width / 2, height / 2), max(height, width) / 2)
    ground = np.array(GROUND) + spread * rng.uniform(-1, 1, 3)
    picture_HWC = np.full((height, width, 3), ground, np.float32)
    for cells in (6, 12, 24):
        picture_HWC += GROUND_NOISE * clouds(rng, height, width, cells)[..., None]
    for _ in range(int(rng.integers(SCRAPS[0], SCRAPS[1] + 1))):
        _scatter(rng, picture_HWC, frame)
    return picture_HWC


def _scatter(rng: Generator, picture_HWC: Floats, frame: Frame) -> None:
    """One scrap of any kind and colour, anywhere."""
    centre, size = (rng.uniform(-1, 1), rng.uniform(-1, 1)), rng.uniform(*SCRAP_SIZE)
    turn = rng.uniform(0, np.pi)
    frame, window = frame.around(centre, 2.2 * size)
    match int(rng.integers(4)):
        case 0:
            distance_HW = frame.ellipse(centre, (size, size * rng.uniform(0.4, 1)), turn)
        case 1:
            distance_HW = frame.box(centre, (size, size * rng.uniform(0.3, 1)), 0.03, turn)
        case 2:
            far = (centre[0] + 2 * size * np.cos(turn), centre[1] + 2 * size * np.sin(turn))
            distance_HW = frame.limb(centre, far, rng.uniform(0.02, 0.05))
        case _:
            distance_HW = frame.lobes(centre, size * 0.8, 0.25, int(rng.integers(3, 7)), turn)
    cover_HW = np.clip(0.5 - distance_HW, 0, 1) * np.float32(SCRAP_OPACITY)
    colour = hsv(rng.random(), rng.uniform(*SCRAP_SATURATION), rng.uniform(*SCRAP_VALUE))
    picture_HWC[window] += cover_HW[..., None] * (colour - picture_HWC[window])


def clouds(rng: Generator, height: int, width: int, cells: int) -> Map:
    """(H, W) smooth noise in [-1, 1] with about `cells` bumps per side."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32)
    return _rows(_rows(grid, height).T, width).T


def _rows(grid: Map, length: int) -> Map:
    """Interpolate the first axis of a grid to `length` samples with smooth steps."""
    position = np.linspace(0, len(grid) - 1, length, dtype=np.float32)
    low = np.minimum(position.astype(np.intp), len(grid) - 2)
    t = position - low
    t = (t * t * (3 - 2 * t))[:, None]
    return np.asarray(grid[low] * (1 - t) + grid[low + 1] * t, np.float32)


def photograph(rng: Generator, picture_HWC: Floats) -> NDArray[np.uint8]:
    """Light and sensor noise of the whole picture; (H, W, 3) uint8."""
    light = np.float32(rng.uniform(*LIGHT))
    noise_HWC = rng.standard_normal(picture_HWC.shape, dtype=np.float32) * np.float32(GRAIN)
    return np.asarray(np.clip((picture_HWC * light + noise_HWC) * 255 + 0.5, 0, 255), np.uint8)

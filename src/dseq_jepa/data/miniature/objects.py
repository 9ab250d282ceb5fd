"""What is drawn: creatures, birds and cars put together from parts, one plan per class.

    python -m dseq_jepa data make-miniature --config configs/demo.yaml       # draws all miniature data sets

A plan says which parts a class has and in which pair of opposite hues it comes; which part has which of the two, size,
place, pose and light are drawn per picture. Every choice is shared by several classes, so that a class is known by its
combination. All objects face forward
(+x) and fit into about [-1, 1] of their frame.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from dseq_jepa.data.miniature.drawing import SCHEMES, Colour, Frame, Map, Sprite, hsv, mixed, palette, pattern

BODIES = ("oval", "box", "drop", "round", "lobed")
LIMBS = ("legs", "fins", "wings", "tentacles", "spikes")
HEADS = ("ears", "horns", "beak", "antennae", "crest")
MARKINGS = ("bars", "spots", "bands", "rings", "checks")
BEAKS = ("cone", "dagger", "hook", "spoon")
TAILS = ("fan", "fork", "streamer")
ROOFS = ("sedan", "hatchback", "coupe", "van", "pickup")
WHEELS = ("spokes", "disc", "ring")
FRONTS = ("round-lamp", "grille", "bumper")

ANY_GREY = (0.25, 0.75)
"""Of birds and cars: their parts differ so little in size that equal greys would tell them apart by mean brightness."""
PERIOD = 0.42
"""One repeat of a creature's marking in units of its half size."""


@dataclass(frozen=True)
class Creature:
    """Parts of a creature."""

    body: str
    limbs: str
    head: str
    marking: str
    scheme: int

    @staticmethod
    def numbered(index: int) -> "Creature":
        """Creature 0 to 124: all differ, and any five in a row from a multiple of five differ in every part."""
        lap, turn = divmod(index, 5)
        third, second = divmod(lap, 5)
        return Creature(
            BODIES[turn],
            LIMBS[(turn + second) % 5],
            HEADS[(2 * turn + second + third) % 5],
            MARKINGS[(3 * turn + 2 * second + third) % 5],
            (4 * turn + 3 * second + third) % SCHEMES,
        )


@dataclass(frozen=True)
class Bird:
    """Local details of a bird; the body plan is the same for all."""

    beak: str
    wing: str
    tail: str
    crest: bool
    scheme: int

    @staticmethod
    def numbered(index: int) -> "Bird":
        """Bird 0 to 59: all differ."""
        lap = index // 12
        return Bird(
            BEAKS[index % 4],
            MARKINGS[(index + index // 5 + lap) % 5],
            TAILS[index % 3],
            bool((index // 2 + lap) % 2),
            (2 * index + index // 5) % SCHEMES,
        )


@dataclass(frozen=True)
class Car:
    """Local details of a car seen from its side."""

    roof: str
    wheel: str
    front: str
    scheme: int

    @staticmethod
    def numbered(index: int) -> "Car":
        """Car 0 to 44: all differ."""
        return Car(
            ROOFS[index % 5], WHEELS[index % 3], FRONTS[(index + index // 15) % 3], (2 * index + index // 5) % SCHEMES
        )


def draw_creature(sprite: Sprite, frame: Frame, plan: Creature, rng: Generator) -> None:
    """Paint a creature: limbs, body with its marking, head with its ornament, eye."""
    main, mark, limb, extra = palette(rng, plan.scheme)
    if plan.limbs != "wings":
        _limbs(sprite, frame, plan.limbs, limb, rng)
    body_HW = _body(frame, plan.body)
    marked_HW = pattern(frame, plan.marking, PERIOD * rng.uniform(0.9, 1.1), rng.random(), (-0.1, 0.08))
    sprite.paint(body_HW, mixed(main, mark, marked_HW))
    if plan.limbs == "wings":
        _limbs(sprite, frame, plan.limbs, limb, rng)
    _head(sprite, frame, plan.head, main, extra)


def _body(frame: Frame, kind: str) -> Map:
    match kind:
        case "oval":
            return frame.ellipse((-0.12, 0.08), (0.62, 0.36))
        case "box":
            return frame.box((-0.12, 0.08), (0.55, 0.36), 0.08)
        case "drop":
            return frame.polygon([(0.34, -0.3), (0.34, 0.4), (-0.78, 0.14)], 0.06)
        case "round":
            return frame.disc((-0.1, 0.06), 0.48)
        case _:
            return frame.lobes((-0.1, 0.06), 0.46, 0.22, 5, 0.3)


def _limbs(sprite: Sprite, frame: Frame, kind: str, colour: Colour, rng: Generator) -> None:
    match kind:
        case "legs":
            step = rng.uniform(-0.06, 0.06)
            for x in (-0.5, -0.3, 0.06, 0.26):
                sprite.paint(frame.limb((x, 0.2), (x + step, 0.85), 0.085, 0.07), colour)
                sprite.paint(frame.ellipse((x + step + 0.06, 0.88), (0.13, 0.07)), colour)
            sprite.paint(frame.limb((-0.6, 0.0), (-0.9, -0.35), 0.06, 0.03), colour)
        case "fins":
            sprite.paint(frame.polygon([(-0.5, 0.08), (-1.0, -0.34), (-0.86, 0.08), (-1.0, 0.5)], 0.03), colour)
            sprite.paint(frame.polygon([(0.1, -0.2), (-0.45, -0.15), (-0.4, -0.72)], 0.03), colour)
            sprite.paint(frame.polygon([(0.05, 0.3), (-0.35, 0.3), (-0.4, 0.8)], 0.03), colour)
        case "wings":
            lift = rng.uniform(-0.15, 0.15)
            sprite.paint(frame.ellipse((-0.32, -0.42), (0.25, 0.5), -0.35 + lift), colour)
            sprite.paint(frame.ellipse((-0.52, -0.1), (0.18, 0.36), -1.0 + lift), colour)
        case "tentacles":
            for i, x in enumerate((-0.5, -0.25, 0.0, 0.25)):
                bend = 0.16 * (-1) ** i + rng.uniform(-0.05, 0.05)
                sprite.paint(frame.limb((x, 0.25), (x + bend, 0.62), 0.085, 0.07), colour)
                sprite.paint(frame.limb((x + bend, 0.62), (x - bend, 0.98), 0.07, 0.035), colour)
        case _:
            for angle in np.linspace(-2.9, -0.5, 6):
                cos, sin = float(np.cos(angle)), float(np.sin(angle))
                root = (-0.12 + 0.4 * cos, 0.08 + 0.25 * sin)
                tip = (-0.12 + 0.92 * cos, 0.08 + 0.8 * sin)
                side = (-0.09 * sin, 0.09 * cos)
                corners = [(root[0] + side[0], root[1] + side[1]), tip, (root[0] - side[0], root[1] - side[1])]
                sprite.paint(frame.polygon(corners, 0.02), colour)


def _head(sprite: Sprite, frame: Frame, kind: str, skin: Colour, extra: Colour) -> None:
    x, y, r = 0.52, -0.3, 0.27
    match kind:
        case "ears":
            sprite.paint(frame.ellipse((x - 0.16, y - 0.32), (0.11, 0.25), -0.35), extra)
            sprite.paint(frame.ellipse((x + 0.14, y - 0.32), (0.11, 0.25), 0.35), extra)
        case "horns":
            for side in (-1, 1):
                sprite.paint(frame.limb((x + side * 0.12, y - 0.15), (x + side * 0.34, y - 0.36), 0.085, 0.06), extra)
                sprite.paint(frame.limb((x + side * 0.34, y - 0.36), (x + side * 0.28, y - 0.62), 0.06, 0.02), extra)
        case "beak":
            sprite.paint(frame.polygon([(x + 0.1, y - 0.16), (x + 0.62, y + 0.06), (x + 0.1, y + 0.2)], 0.03), extra)
        case "antennae":
            for side in (-1, 1):
                tip = (x + 0.1 + side * 0.2, y - 0.6)
                sprite.paint(frame.limb((x + side * 0.08, y - 0.15), tip, 0.035), extra)
                sprite.paint(frame.disc(tip, 0.1), extra)
        case _:
            for i in range(4):
                sprite.paint(frame.limb((x, y), (x - 0.42 + 0.17 * i, y - 0.5 + 0.03 * i), 0.1, 0.05), extra)
    sprite.paint(frame.disc((x, y), r), skin)
    _eye(sprite, frame, (x + 0.08, y - 0.04), 0.085)


def _eye(sprite: Sprite, frame: Frame, centre: tuple[float, float], radius: float) -> None:
    sprite.paint(frame.disc(centre, radius), hsv(0, 0, 0.97), 0.0)
    sprite.paint(frame.disc((centre[0] + 0.25 * radius, centre[1]), 0.55 * radius), hsv(0, 0, 0.05), 0.0)


def draw_bird(sprite: Sprite, frame: Frame, plan: Bird, rng: Generator) -> None:
    """Paint a perching bird; only beak, wing, tail and crest follow the plan."""
    main, mark, other, dark = palette(rng, plan.scheme, ANY_GREY)
    for x in (-0.1, 0.08):
        sprite.paint(frame.limb((x, 0.4), (x + 0.03, 0.85), 0.035), dark)
        sprite.paint(frame.limb((x - 0.02, 0.86), (x + 0.14, 0.88), 0.035), dark)
    _tail(sprite, frame, plan.tail, other)
    sprite.paint(frame.ellipse((-0.05, 0.14), (0.5, 0.36), -0.45), main)
    if plan.crest:
        sprite.paint(frame.polygon([(0.45, -0.55), (0.02, -0.98), (0.22, -0.4)], 0.03), dark)
    _beak(sprite, frame, plan.beak, dark)
    sprite.paint(frame.disc((0.38, -0.38), 0.27), main)
    wing_HW = frame.ellipse((-0.18, 0.14), (0.44, 0.25), -0.45)
    marked_HW = pattern(frame, plan.wing, 0.24 * rng.uniform(0.9, 1.1), rng.random(), (-0.18, 0.14))
    sprite.paint(wing_HW, mixed(other, mark, marked_HW))
    _eye(sprite, frame, (0.44, -0.42), 0.08)


def _tail(sprite: Sprite, frame: Frame, kind: str, colour: Colour) -> None:
    match kind:
        case "fan":
            sprite.paint(frame.polygon([(-0.3, 0.26), (-0.98, 0.36), (-0.78, 0.84)], 0.04), colour)
        case "fork":
            sprite.paint(frame.limb((-0.35, 0.3), (-1.0, 0.32), 0.1, 0.03), colour)
            sprite.paint(frame.limb((-0.35, 0.34), (-0.8, 0.82), 0.1, 0.03), colour)
        case _:
            sprite.paint(frame.limb((-0.3, 0.28), (-1.0, 0.66), 0.08, 0.06), colour)


def _beak(sprite: Sprite, frame: Frame, kind: str, colour: Colour) -> None:
    match kind:
        case "cone":
            sprite.paint(frame.polygon([(0.55, -0.55), (0.88, -0.34), (0.55, -0.18)], 0.02), colour)
        case "dagger":
            sprite.paint(frame.limb((0.55, -0.38), (1.12, -0.3), 0.07, 0.025), colour)
        case "hook":
            sprite.paint(frame.limb((0.55, -0.44), (0.82, -0.4), 0.1, 0.08), colour)
            sprite.paint(frame.limb((0.82, -0.4), (0.84, -0.1), 0.08, 0.02), colour)
        case _:
            sprite.paint(frame.limb((0.55, -0.36), (0.85, -0.3), 0.05, 0.05), colour)
            sprite.paint(frame.disc((0.92, -0.28), 0.13), colour)


def draw_car(sprite: Sprite, frame: Frame, plan: Car, rng: Generator) -> None:
    """Paint a car from its side; roof line, wheels and front follow the plan."""
    paint, trim, _, _ = palette(rng, plan.scheme, ANY_GREY)
    glass, chrome = hsv(0.55, 0.25, rng.uniform(0.35, 0.9)), hsv(0, 0, rng.uniform(0.45, 0.95))
    dark = hsv(0, 0, 0.12)
    sprite.paint(frame.polygon(_ROOF_LINES[plan.roof], 0.05), trim)
    sprite.paint(frame.polygon(_WINDOWS[plan.roof], 0.0), glass, 0.1)
    sprite.paint(frame.box((_PILLARS[plan.roof], -0.22), (0.03, 0.2), 0.01), trim, 0.0)
    sprite.paint(frame.box((0.0, 0.15), (0.96, 0.2), 0.09), paint)
    sprite.paint(frame.box((0.0, 0.27), (0.9, 0.035), 0.02), trim, 0.0)
    _front(sprite, frame, plan.front, chrome, dark)
    for x in (-0.55, 0.55):
        _wheel(sprite, frame, plan.wheel, (x, 0.38), rng.random(), chrome, dark)


_ROOF_LINES: dict[str, list[tuple[float, float]]] = {
    "sedan": [(-0.68, 0.0), (-0.36, -0.4), (0.2, -0.4), (0.52, 0.0)],
    "hatchback": [(-0.9, 0.0), (-0.78, -0.42), (0.16, -0.42), (0.52, 0.0)],
    "coupe": [(-0.92, 0.0), (-0.05, -0.36), (0.2, -0.36), (0.6, 0.0)],
    "van": [(-0.92, 0.0), (-0.9, -0.62), (0.45, -0.62), (0.8, 0.0)],
    "pickup": [(-0.1, 0.0), (-0.06, -0.44), (0.34, -0.44), (0.6, 0.0)],
}
_WINDOWS: dict[str, list[tuple[float, float]]] = {
    "sedan": [(-0.54, -0.05), (-0.32, -0.34), (0.17, -0.34), (0.4, -0.05)],
    "hatchback": [(-0.78, -0.05), (-0.7, -0.35), (0.13, -0.35), (0.4, -0.05)],
    "coupe": [(-0.6, -0.05), (-0.03, -0.3), (0.17, -0.3), (0.45, -0.05)],
    "van": [(-0.1, -0.12), (-0.1, -0.52), (0.4, -0.52), (0.6, -0.12)],
    "pickup": [(-0.02, -0.06), (0.0, -0.37), (0.3, -0.37), (0.46, -0.06)],
}
_PILLARS = {"sedan": -0.06, "hatchback": -0.25, "coupe": 0.05, "van": 0.14, "pickup": 0.12}


def _front(sprite: Sprite, frame: Frame, kind: str, chrome: Colour, dark: Colour) -> None:
    match kind:
        case "round-lamp":
            sprite.paint(frame.disc((0.82, 0.06), 0.13), hsv(0.14, 0.5, 1.0), 0.2)
        case "grille":
            sprite.paint(frame.box((0.84, 0.12), (0.13, 0.15), 0.02), chrome, 0.0)
            for y in (0.03, 0.12, 0.21):
                sprite.paint(frame.box((0.84, y), (0.1, 0.022), 0.01), dark, 0.0)
        case _:
            sprite.paint(frame.box((0.9, 0.26), (0.2, 0.08), 0.04), dark)


def _wheel(
    sprite: Sprite, frame: Frame, kind: str, centre: tuple[float, float], turn: float, chrome: Colour, dark: Colour
) -> None:
    sprite.paint(frame.disc(centre, 0.26), dark, 0.0)
    match kind:
        case "spokes":
            sprite.paint(frame.lobes(centre, 0.12, 0.6, 5, 2 * np.pi * turn), chrome, 0.0)
        case "disc":
            sprite.paint(frame.disc(centre, 0.19), chrome, 0.1)
        case _:
            sprite.paint(frame.disc(centre, 0.19), chrome, 0.0)
            sprite.paint(frame.disc(centre, 0.12), dark, 0.0)
            sprite.paint(frame.disc(centre, 0.05), chrome, 0.0)


def draw_person(sprite: Sprite, frame: Frame, rng: Generator) -> None:
    """Paint a person from the front: shoes, legs, arms, shirt, head, hair."""
    shirt, _, hair, trousers = palette(rng)
    skin = hsv(rng.uniform(0.05, 0.09), rng.uniform(0.25, 0.6), rng.uniform(0.45, 0.95))
    swing = rng.uniform(-0.12, 0.12)
    for side in (-1, 1):
        foot = (side * 0.16 + swing, 0.88)
        sprite.paint(frame.limb((side * 0.11, 0.3), foot, 0.12, 0.09), trousers)
        sprite.paint(frame.ellipse((foot[0] + side * 0.05, 0.92), (0.13, 0.07)), hsv(0, 0, 0.1))
        sprite.paint(frame.limb((side * 0.24, -0.34), (side * 0.42 - swing, 0.16), 0.085, 0.07), shirt)
        sprite.paint(frame.disc((side * 0.43 - swing, 0.22), 0.085), skin)
    sprite.paint(frame.box((0.0, -0.05), (0.27, 0.4), 0.12), shirt)
    sprite.paint(frame.disc((0.0, -0.7), 0.25), hair)
    sprite.paint(frame.ellipse((0.02, -0.64), (0.19, 0.22)), skin)
    for side in (-1, 1):
        sprite.paint(frame.disc((0.02 + side * 0.08, -0.67), 0.035), hsv(0, 0, 0.08), 0.0)


def draw_ball(sprite: Sprite, frame: Frame, rng: Generator) -> None:
    """Paint a ball with two seams."""
    main, seam, _, _ = palette(rng)
    seam_HW = np.minimum(np.abs(frame.disc((-1.0, 0.0), 0.8)), np.abs(frame.disc((1.0, 0.0), 0.8)))
    marked_HW = np.clip(0.08 * frame.scale - seam_HW + 0.5, 0, 1)
    sprite.paint(frame.disc((0.0, 0.0), 0.75), mixed(main, seam, marked_HW))
    sprite.paint(frame.disc((-0.28, -0.3), 0.12), hsv(0, 0, 1), 0.0)


def draw_bottle(sprite: Sprite, frame: Frame, rng: Generator) -> None:
    """Paint a bottle with a cap and a label."""
    glass, label, cap, _ = palette(rng)
    sprite.paint(frame.box((0.0, -0.62), (0.13, 0.3), 0.04), glass)
    sprite.paint(frame.box((0.0, 0.3), (0.34, 0.62), 0.16), glass)
    sprite.paint(frame.polygon([(-0.13, -0.5), (0.13, -0.5), (0.31, -0.15), (-0.31, -0.15)], 0.02), glass)
    sprite.paint(frame.box((0.0, -0.92), (0.17, 0.1), 0.03), cap)
    sprite.paint(frame.box((0.0, 0.3), (0.335, 0.25), 0.02), label, 0.1)

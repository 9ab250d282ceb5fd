"""Curves of a journal as MLflow gets them: at most 10,000 points a metric, the same ones however often one looks.

    for point in thinned(metrics, steps=375_000, ended=True): print(point.name, point.step, point.value)

One point at a fixed stride of steps, plus the last one when the run has ended. The stride comes from the planned steps
in the journal's first line, so it is the same while a run goes on and after a resume.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_POINTS = 10_000
_LONGEST_NAME = 250
_NOT_ALLOWED = re.compile(r"[^\w.\- :/]")


class Point(NamedTuple):
    """One value of a curve."""

    name: str
    step: int
    time_ms: int
    value: float


def stride_of(interval: int, last_step: int) -> int:
    """Steps between mirrored points of a metric that is logged every `interval` steps up to `last_step`.

    The interval times 1, 2, 4, ...: the first that leaves room for the last point.
    """
    stride = max(1, interval)
    while last_step // stride + 1 >= MAX_POINTS:
        stride *= 2
    return stride


def thinned(metrics: list[dict[str, Any]], steps: int | None, ended: bool) -> Iterator[Point]:
    """The journal's points, thinned. Which ones is decided by earlier lines only, and so never changes later."""
    last_step = max([steps or 0, *(line["step"] for line in metrics)])
    curves: dict[str, _Curve] = {}
    for line in metrics:
        time_ms, step = round(line["t"] * 1000), line["step"]
        for name, value in line["values"].items():
            curve = curves.setdefault(name, _Curve(first=step))
            point = Point(name, step, time_ms, value)
            if curve.takes(step, last_step):
                curve.last = None
                yield named(point)
            else:
                curve.last = point
    if ended:
        yield from (named(curve.last) for curve in curves.values() if curve.last)


@dataclass
class _Curve:
    """What was taken of a metric; its second point shows how often it is logged."""

    first: int
    stride: int = 0
    taken: set[int] = field(default_factory=set)
    last: Point | None = None

    def takes(self, step: int, last_step: int) -> bool:
        """The first point of each stride, counted from the metric's first step."""
        if not self.stride and step > self.first:
            self.stride = stride_of(step - self.first, last_step)
        window = (step - self.first) // self.stride if self.stride else 0
        if window in self.taken:
            return False
        self.taken.add(window)
        return True


def named(point: Point) -> Point:
    """A point whose name MLflow takes."""
    name = allowed(point.name)
    return point if name == point.name else point._replace(name=name)


def allowed(name: str) -> str:
    """A name within MLflow's rules; one that is too long keeps its end apart by a hash."""
    name = _NOT_ALLOWED.sub("_", name).strip("/") or "_"
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 9] + "_" + hashlib.sha256(name.encode()).hexdigest()[:8]

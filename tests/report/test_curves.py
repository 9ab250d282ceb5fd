"""Charts put values where they belong, whatever the values are."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from dseq_jepa.report.curves import chart, curves_of, number
from dseq_jepa.thinning import Point


def places(text: str) -> list[list[tuple[float, float]]]:
    """The points of every line, in pixels."""
    lines = re.findall(r'points="([^"]+)"', text)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]  # type: ignore[misc]


def test_the_ends_of_the_axes_are_the_ends_of_the_values() -> None:
    (line,) = places(chart("loss", {"loss": [(0, 4.0), (5, 1.0), (10, 2.0)]}))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x0 < x1 < x2
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 < y2 < y1  # up is small
    assert y1 - y0 == pytest.approx(3 * (y1 - y2), abs=0.3)


@pytest.mark.parametrize(
    "curve",
    [
        [(1, 0.5)],
        [(1, 0.5), (2, 0.5)],
        [(1, math.nan), (2, 1.0)],
        [(1, -1.7e308), (2, 1.7e308)],
        [(1, math.inf)],
        [],
    ],
)
def test_every_curve_gives_a_valid_picture_inside_its_frame(curve: list[tuple[float, float]]) -> None:
    text = chart("a & b", {"x<y": curve})
    ElementTree.fromstring(text)
    assert "nan" not in text.lower().replace("finance", "")
    for line in places(text):
        assert all(0 <= x <= 240 and 0 <= y <= 130 for x, y in line)


def test_values_that_are_not_finite_are_counted() -> None:
    assert "2 values are not finite" in chart("loss", {"loss": [(1, math.nan), (2, math.inf), (3, 1.0)]})


def test_a_long_curve_keeps_its_last_point() -> None:
    text = chart("loss", {"loss": [(i, float(i)) for i in range(10_001)]})
    assert "ends at loss 10,000" in text
    (line,) = places(text)
    assert len(line) < 300
    assert line[-1] == (232.0, 8.0)


def test_points_become_curves_in_the_order_of_steps() -> None:
    points = [Point("b", 2, 0, 1.0), Point("a", 3, 0, 3.0), Point("a", 1, 0, 2.0)]
    assert curves_of(points) == {"b": [(2, 1.0)], "a": [(1, 2.0), (3, 3.0)]}


@pytest.mark.parametrize(
    ("value", "text"), [(450.0, "450"), (0.01234, "0.0123"), (1.5e-5, "1.5e-05"), (12_000.0, "12,000"), (1e9, "1e+09")]
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text

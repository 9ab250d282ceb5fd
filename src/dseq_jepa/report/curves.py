"""Learning curves as small multiples: inline SVG whose lines take the page's colours, light or dark.

chart("loss", {"loss": [(10, 0.3), (20, 0.2)]})
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from dseq_jepa.thinning import Point

Curve = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 240, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 18
_MOST_POINTS = 240


def curves_of(points: Iterable[Point]) -> dict[str, list[tuple[float, float]]]:
    """Points by metric, in the order of steps."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        curves.setdefault(point.name, []).append((point.step, point.value))
    return {name: sorted(curve) for name, curve in curves.items()}


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """A figure with one line per curve; values that are not finite are left out and counted below.

    Args:
        title: above the chart.
        curves: (step, value) pairs by name; several get a legend. An empty figure says so.

    """
    finite = {name: [(x, y) for x, y in curve if math.isfinite(y)] for name, curve in curves.items()}
    lost = sum(len(curve) for curve in curves.values()) - sum(len(curve) for curve in finite.values())
    shown = {name: _thinned(curve) for name, curve in finite.items() if curve}
    parts = [f'<figure class="chart"><figcaption>{escape(title)}</figcaption>']
    parts.append(_svg(title, shown) if shown else "<p>no values</p>")
    if len(shown) > 1:
        items = (f'<li class="line{i % 8}">{escape(name)}</li>' for i, name in enumerate(shown))
        parts.append(f'<ul class="legend">{"".join(items)}</ul>')
    if lost:
        parts.append(f"<p>{lost} value{'s are' if lost > 1 else ' is'} not finite</p>")
    return "".join([*parts, "</figure>"])


def _thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most _MOST_POINTS points, the last one among them."""
    stride = math.ceil(len(curve) / _MOST_POINTS)
    return [*curve[:-1:stride], curve[-1]] if stride > 1 else list(curve)


def _svg(title: str, curves: Mapping[str, Curve]) -> str:
    xs = [x for curve in curves.values() for x, _ in curve]
    ys = [y for curve in curves.values() for _, y in curve]
    across, up = _Scale(xs, _LEFT, _WIDTH - _RIGHT), _Scale(ys, _HEIGHT - _BOTTOM, _TOP)
    last = ", ".join(f"{name} {number(curve[-1][1])}" for name, curve in curves.items())
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(f"{title}: ends at {last}")}">',
        f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>',
        *(
            f'<text x="{_LEFT - 4}" y="{up(y) + 3:.1f}" text-anchor="end">{number(y)}</text>'
            for y in (up.low, up.high)
            if up.high > up.low or y == up.low
        ),
        f'<text x="{_LEFT}" y="{_HEIGHT - 5}">{number(across.low)}</text>',
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{number(across.high)}</text>',
    ]
    for i, (name, curve) in enumerate(curves.items()):
        places = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve)
        hint = f"<title>{escape(name)}: {number(curve[0][1])} to {number(curve[-1][1])}</title>"
        if len(curve) > 1:
            parts.append(f'<polyline class="line{i % 8}" points="{places}">{hint}</polyline>')
        else:
            x, y = places.split(",")
            parts.append(f'<circle class="line{i % 8}" cx="{x}" cy="{y}" r="2.5">{hint}</circle>')
    return "".join([*parts, "</svg>"])


class _Scale:
    """Maps values onto pixels; a single value lies in the middle."""

    def __init__(self, values: Iterable[float], begin: float, end: float) -> None:
        values = list(values)
        self.low, self.high = min(values), max(values)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self._begin + self._end) / 2
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)  # halves: the span may not be finite
        return self._begin + share * (self._end - self._begin)


def number(value: float) -> str:
    """Short: 450, 0.0123, 1.5e-05."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}"

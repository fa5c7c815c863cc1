"""Learning curves as SVG, in a few tenths of a millisecond; their colours are those of the page."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cnn_lightning.draw import short

LEFT, RIGHT, TOP, BOTTOM = 46, 332, 12, 180
"""The sides of the area of the curves, in a drawing of 340 by 210 units."""
POINTS = 400
"""The most points of a curve."""


class Curve(NamedTuple):
    """A name, and pairs of an epoch and a value."""

    name: str
    points: Sequence[tuple[int, float]]


class Tick(NamedTuple):
    """A place on an axis, and the text there."""

    place: float
    text: str


class Line(NamedTuple):
    """A curve in the drawing: its name with the last value, the coordinates, and the last point."""

    name: str
    places: str
    last: tuple[float, float]


class Chart(NamedTuple):
    """What the template draws.

    Args:
        title: What is shown.
        alt: A description for who doesn't see it.
        lines: The curves.
        across: Ticks of the epochs.
        up: Ticks of the values.
    """

    title: str
    alt: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]


def chart(title: str, curves: Sequence[Curve], percent: bool = False) -> Chart | None:
    """The drawing of curves over the epochs; None if there is no value.

    Args:
        title: What is shown.
        curves: The curves; no value may be larger than 1e100.
        percent: Whether values are fractions, shown in per cent.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return None
    epochs = [epoch for curve in drawn for epoch, _ in curve.points]
    values = [value for curve in drawn for _, value in curve.points]
    first, last = min(epochs), max(epochs)
    ticks = _ticks(min(values), max(values))
    low, high = min(*ticks, *values), max(*ticks, *values)

    def x(epoch: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (epoch - first) / max(1, last - first), 1)

    def y(value: float) -> float:
        height = (value - low) / (high - low) if high > low else 0.5
        return round(BOTTOM - (BOTTOM - TOP) * height, 1)

    lines = []
    for name, points in drawn:
        shown = points[:: -(-len(points) // POINTS)]
        shown = shown if shown[-1] == points[-1] else [*shown, points[-1]]
        places = " ".join(f"{x(epoch)},{y(value)}" for epoch, value in shown)
        lines.append(Line(f"{name} {_text(points[-1][1], percent)}", places, (x(points[-1][0]), y(points[-1][1]))))
    texts = [
        f"{curve.name} from {_text(curve.points[0][1], percent)} to {_text(curve.points[-1][1], percent)}"
        for curve in drawn
    ]
    across = [Tick(x(epoch), str(round(epoch))) for epoch in _ticks(first, last) if epoch == round(epoch)]
    up = [Tick(y(value), f"{value * 100:.4g} %" if percent else short(value)) for value in ticks]
    alt = f"{title}, epochs {first} to {last}: {', '.join(texts)}"
    return Chart(title, alt, lines, [tick for tick in across if LEFT <= tick.place <= RIGHT], up)


def _text(value: float, percent: bool) -> str:
    return f"{value:.1%}" if percent else short(value)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers inside the range, or the number itself if low is high."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 3))
    step *= next(factor for factor in (5, 2, 1) if factor * step <= (high - low) / 2.5)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]

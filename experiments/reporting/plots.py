"""Where things stand in a plot, in percent of its width and height; the templates draw them as SVG.

Percent, and no picture of fixed size: a plot fills a phone and a wide screen alike, with letters of one size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

MARGIN = 0.06
"""The share of a scale that is left free at both ends."""

MOST_POINTS = 150
"""Points of a curve that are drawn: more cannot be told apart on a screen."""


class Scale(NamedTuple):
    """An axis from ``low`` to ``high``."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value stands, in percent of the axis.

        Example:
            >>> Scale(10.0, 20.0).at(12.5)
            25.0
        """
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[float]:
        """Two to six round values.

        Example:
            >>> Scale(-0.11, 0.31).ticks(), Scale(0.0, 1.0).ticks()
            ([-0.1, 0.0, 0.1, 0.2, 0.3], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
        """
        power = 10.0 ** math.floor(math.log10(self.high - self.low))
        step = next(size for size in (power / 5, power / 2, power, 2 * power) if (self.high - self.low) / size < 6)
        places = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [round(place * step, 12) for place in places]


class Line(NamedTuple):
    """One line of a plot of intervals.

    Attributes:
        label: What it shows.
        kind: ``ours``, ``control`` or ``paper``: its color.
        mean: Where its mark stands; None where there is none.
        interval: Its ends; None where there is none.
        dots: Single values, such as one a seed.
        paper: Where the paper's mark stands, on the same line.
        told: The numbers in words.
    """

    label: str
    kind: str
    mean: float | None
    interval: Sequence[float] | None = None
    dots: Sequence[float] = ()
    paper: float | None = None
    told: str = ""


class Plot(NamedTuple):
    """Lines on one scale.

    Attributes:
        title: What is measured.
        scale: The axis of all lines.
        lines: From top to bottom.
        zero: Where no difference is, in percent of the axis; None where the axis is no difference.
        unit: What stands behind a tick.
    """

    title: str
    scale: Scale
    lines: Sequence[Line]
    zero: float | None = None
    unit: str = ""


class Curve(NamedTuple):
    """A training: its points, and where its stages begin.

    Attributes:
        points: (optimizer step counted over all stages, value).
        stages: (first step, name).
        steps: Of all stages.
    """

    points: Sequence[tuple[float, float]]
    stages: Sequence[tuple[float, str]]
    steps: float


class Panel(NamedTuple):
    """The trainings of one row, one a seed.

    Attributes:
        label: The row.
        kind: ``ours`` or ``control``.
        curves: The ``points`` of each as SVG writes them, in percent.
        stages: Where each begins, in percent, and its name; of the first training.
        told: Where it ends, in words.
    """

    label: str
    kind: str
    curves: Sequence[str]
    stages: Sequence[tuple[float, str]]
    told: str


class Curves(NamedTuple):
    """Panels on the same two axes, so that a longer training looks longer."""

    title: str
    across: Scale
    up: Scale
    panels: Sequence[Panel]


def spanning(values: Iterable[float | None], *, zero: bool = False) -> Scale:
    """The axis that holds all values, and zero where it is asked for, with a margin.

    Example:
        >>> spanning([2.0, None, 3.0], zero=True)
        Scale(low=-0.18, high=3.18)
    """
    found = [value for value in values if value is not None and math.isfinite(value)] + [0.0] * (zero or 0)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    reach = high - low or abs(high) or 1.0
    return Scale(low - MARGIN * reach, high + MARGIN * reach)


def plot(title: str, lines: Sequence[Line], *, zero: bool = False, unit: str = "") -> Plot | None:
    """Lines on the scale that holds all of them; None where no line has a mark."""
    if all(line.mean is None and line.paper is None for line in lines):
        return None
    ends = [end for line in lines for end in (line.mean, line.paper, *(line.interval or ()), *line.dots)]
    scale = spanning(ends, zero=zero)
    return Plot(title, scale, lines, scale.at(0.0) if zero else None, unit)


def curves(title: str, trainings: Mapping[tuple[str, str], Sequence[Curve]]) -> Curves | None:
    """Panels on common axes; None where nothing was measured.

    Args:
        title: What the curves show.
        trainings: By (row, kind) its trainings.
    """
    all_of = [one for found in trainings.values() for one in found if one.points]
    if not all_of:
        return None
    across = Scale(0.0, 1.02 * max(one.steps for one in all_of))
    up = spanning(value for one in all_of for _, value in one.points)
    panels = [
        Panel(
            label,
            kind,
            [_points(one, across, up) for one in found if one.points],
            [(across.at(first), name) for first, name in found[0].stages],
            " · ".join(format(one.points[-1][1], ".4g") for one in found if one.points),
        )
        for (label, kind), found in trainings.items()
        if any(one.points for one in found)
    ]
    return Curves(title, across, up, panels)


def steps_down(counts: Sequence[int]) -> str:
    """An area under sorted counts, the largest first, as SVG writes the points of a polygon in percent.

    Example:
        >>> steps_down([1, 4])
        '0,0 50,0 50,75 100,75 100,100 0,100'
    """
    sizes, most = sorted(counts, reverse=True), max(counts, default=0) or 1
    width = 100 / max(1, len(sizes))
    edges = [
        f"{place * width:.6g},{100 - 100 * size / most:.6g}"
        for left, size in enumerate(sizes)
        for place in (left, left + 1)
    ]
    return " ".join([*edges, "100,100", "0,100"])


def _points(curve: Curve, across: Scale, up: Scale) -> str:
    every = max(1, math.ceil(len(curve.points) / MOST_POINTS))
    kept = [*curve.points[:-1][::every], curve.points[-1]]
    return " ".join(f"{across.at(step):.5g},{100 - up.at(value):.5g}" for step, value in kept)

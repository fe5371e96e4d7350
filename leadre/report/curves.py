"""Pictures of a run: losses, hits on validation users, and how the codebooks are used."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colors, told apart by color-blind readers too."""

_MARKED_POINTS = 30
_PANELS_A_ROW = 4


class Curves(NamedTuple):
    """The metrics of one stage.

    Attributes:
        stage: The stage's name.
        rows: One mapping a logged step: ``step`` and any of the stage's metrics.
    """

    stage: str
    rows: Sequence[Mapping[str, float]]


def read_curves(stage: str, path: Path) -> Curves:
    """Read a ``metrics.jsonl``: one JSON object a line with ``step`` and any metrics.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no JSON object with a ``step``.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: a stage that trains a network writes it; run that stage first")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is no JSON: {line[:60]!r}; run the stage again") from error
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f"{path} line {number} has no step: {line[:60]!r}; run the stage again")
        rows.append(row)
    return Curves(stage=stage, rows=rows)


def draw_losses(curves: Sequence[Curves], path: Path) -> bool:
    """Draw every metric that ends in ``loss``, one panel a stage.

    Args:
        curves: The stages in their order; those without a loss get no panel.
        path: Where the PNG goes.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    told = [(stage, names) for stage in curves if (names := _names(stage, lambda name: name.endswith("loss")))]
    if not told:
        return False
    figure, panels = _panels(len(told))
    for panel, (stage, names) in zip(panels, told, strict=True):
        for name, color in zip(names, _colors(), strict=False):
            _plot(panel, _points(stage, name), label=name, color=color)
        _label(panel, title=stage.stage, x="optimizer step", y="loss")
        panel.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_hits(curves: Sequence[Curves], path: Path) -> bool:
    """Draw HR@K and NDCG@K on validation users, all stages side by side on one axis.

    Args:
        curves: The stages in their order; those without such a metric are left out.
        path: Where the PNG goes.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    told = [stage for stage in curves if _names(stage, _is_hit)]
    if not told:
        return False
    names = list(dict.fromkeys(name for stage in told for name in _names(stage, _is_hit)))
    figure = Figure(figsize=(max(6.0, 2.6 * len(told)), 4.2), layout="constrained")
    axes, start = figure.subplots(), 0.0
    for stage in told:
        for name, color in zip(names, _colors(), strict=False):
            points = [(start + step, value) for step, value in _points(stage, name)]
            _plot(axes, points, label=name.removeprefix("valid/") if stage is told[0] else "", color=color)
        end = start + max(row["step"] for row in stage.rows)
        axes.text((start + end) / 2, 1.01, stage.stage, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
        if stage is not told[-1]:
            axes.axvline(end, color="#999999", linewidth=0.8, linestyle=":")
        start = end
    _label(axes, title="", x="optimizer step, stage after stage", y="mean over validation users")
    axes.set_xlim(0, 1.02 * start)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return _save(figure, path)


def draw_codebooks(counts: Sequence[Sequence[int]], path: Path) -> bool:
    """Draw how often each code is used, the most used first, one panel a level (LEADRE A.1).

    Args:
        counts: For each level the number of ads of each code.
        path: Where the PNG goes.

    Returns:
        Whether there was anything to draw; without it no file is written.
    """
    levels = [sorted(level, reverse=True) for level in counts]
    if not any(sum(level) for level in levels):
        return False
    figure, panels = _panels(len(levels))
    for number, (panel, level) in enumerate(zip(panels, levels, strict=True)):
        panel.fill_between(range(len(level)), level, step="mid", color=COLORS[0], alpha=0.8, linewidth=0)
        used = sum(count > 0 for count in level) / len(level)
        title = f"level {number + 1}: {used:.0%} used\nperplexity {perplexity(level):.1f} of {len(level)}"
        _label(panel, title=title, x="codes, most used first", y="ads")
        panel.set_xlim(-0.5, len(level) - 0.5)
        panel.set_ylim(bottom=0)
    return _save(figure, path)


def perplexity(counts: Iterable[int]) -> float:
    """The effective number of codes, exp of the entropy of their shares; 0 where none is used.

    Example:
        >>> round(perplexity([3, 3, 0]), 6)
        2.0
    """
    used = [count for count in counts if count]
    total = sum(used)
    return math.exp(-sum(count / total * math.log(count / total) for count in used)) if used else 0.0


def _names(curves: Curves, wanted: Callable[[str], bool]) -> list[str]:
    return sorted({name for row in curves.rows for name in row if wanted(name)})


def _is_hit(name: str) -> bool:
    return name.startswith(("valid/hr@", "valid/ndcg@"))


def _points(curves: Curves, name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in curves.rows if name in row]


def _plot(axes: Axes, points: Sequence[tuple[float, float]], *, label: str, color: str) -> None:
    marker = "o" if len(points) <= _MARKED_POINTS else ""  # a curve of one point is no line, but can be seen
    axes.plot(
        [step for step, _ in points],
        [value for _, value in points],
        color=color,
        label=label,
        linewidth=1.4,
        marker=marker,
        markersize=3,
    )


def _label(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, _PANELS_A_ROW)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _colors() -> list[str]:
    return list(COLORS) * 3


def _save(figure: Figure, path: Path) -> bool:
    FigureCanvasAgg(figure)  # no window system and no global state
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return True

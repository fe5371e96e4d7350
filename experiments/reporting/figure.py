"""A study's picture: the compared scores of every row, a dot a seed, the mean and its interval."""

from pathlib import Path
from typing import Any

from experiments.result import RowResult, read_result

OURS, CONTROL, PAPER = "#2a6fb0", "#8a8a8a", "#c2571a"


def draw(folder: Path, store: Path) -> None:
    """Draw ``figure.png`` of a study's ``result.json``: one panel a compared score.

    Controls are gray; the paper's numbers, of other data, are triangles.

    Args:
        folder: Holds ``result.json``.
        store: Not looked at: all that is drawn is in that file.
    """
    from matplotlib.figure import Figure

    content = read_result(folder)
    rows = [row for row in content.rows if row.runs]
    scores = content.compared
    figure = Figure(figsize=(3 + 4.5 * len(scores), 1.4 + 0.45 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, scores, strict=True):
        for place, row in enumerate(rows):
            _draw_row(axes, place, row, score)
        axes.set_xlabel(score)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row.name + (" (control)" if row.control else "") for row in rows])
    panels[0].invert_yaxis()
    told = "a dot a training seed, the mean, its 95 % interval"
    if any(row.paper for row in rows):
        told += "; triangles: the paper, on its own data"
    figure.suptitle(f"{content.title}: {told}", fontsize="medium")
    figure.savefig(folder / "figure.png", dpi=150)


def _draw_row(axes: Any, place: int, row: RowResult, score: str) -> None:  # noqa: ANN401  # lazily imported
    values = [value for run in row.runs if (value := run.scores[score]) is not None]
    if not values:
        return
    color = CONTROL if row.control else OURS
    if interval := row.interval.get(score):
        axes.plot(interval, [place, place], color=color, linewidth=2, alpha=0.5)
    axes.scatter(values, [place] * len(values), s=20, color=color, alpha=0.6)
    axes.scatter([row.mean[score]], [place], s=140, marker="|", color=color)
    if score in row.paper:
        axes.scatter([row.paper[score]], [place], s=30, marker="v", color=PAPER)

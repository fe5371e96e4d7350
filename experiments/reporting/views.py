"""What a page shows of the numbers in ``result.json``: the table's cells, and plots of claims and of scores."""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.reporting import plots
from experiments.reporting.plots import Line, Plot
from experiments.reporting.words import percent, signed
from experiments.result import ClaimResult, Difference, RowResult, StudyResult
from leadre.report.table import decimals


class Cell(NamedTuple):
    """A number of the table.

    Attributes:
        ours: Our mean.
        change: Against the first row.
        paper: The paper's number.
        paper_change: Against the paper's first row.
        hover: Its interval, and the result behind each seed's.
        best: Whether no other row that is no control has more.
    """

    ours: str
    change: str
    paper: str
    paper_change: str
    hover: str
    best: bool


def claim_plot(result: StudyResult, claim: ClaimResult) -> Plot | None:
    """A claim's difference, its control's, and the paper's, on one axis; None where nothing was measured.

    The axis is per cent of the worse row's mean, since the paper tells no more; where that is unknown or no positive
    number, it is the score itself, and the paper is left out.
    """
    whole = _size(result, claim)
    lines = [_difference(f"{claim.better} − {claim.worse}", "ours", claim.difference, whole)]
    if claim.control:
        better, worse = claim.control
        label = f"control: {better} − {worse}"
        of_control = whole and (_mean(result, worse, claim.on) or whole)
        lines.append(_difference(label, "control", claim.control_difference, of_control))
    paper = claim.paper_change
    if whole and paper is not None:
        lines.append(Line("the paper, on its own data", "paper", None, paper=100 * paper, told=percent(paper)))
    return plots.plot(claim.on, lines, zero=True, unit=" %" if whole else "")


def cells(result: StudyResult, row: RowResult) -> list[Cell]:
    """A row of the table, one cell a column."""
    paper_of_first = result.rows[0].paper
    is_first = row is result.rows[0]
    found = []
    for column in result.columns:
        ours, paper, base = row.mean.get(column), row.paper.get(column), paper_of_first.get(column)
        rivals = [other.mean.get(column) for other in result.rows if not other.control]
        best = max((value for value in rivals if value is not None), default=None)
        found.append(
            Cell(
                decimals(ours),
                percent(row.change.get(column)),
                "" if paper is None else decimals(paper),
                "" if is_first or not base or paper is None else percent(paper / base - 1),
                _hover(row, column),
                ours is not None and ours == best and not row.control and len(rivals) > 1,
            )
        )
    return found


def charts(result: StudyResult, score: str) -> Iterator[Plot]:
    """A compared score of all rows; then, where the paper has it too, how it changes from the first row on."""
    lines = []
    for row in result.rows:
        mean, interval = row.mean.get(score), row.interval.get(score)
        if mean is None:
            continue
        dots = [value for run in row.runs if (value := run.scores.get(score)) is not None]
        told = decimals(mean) + (f" ({decimals(interval[0])} to {decimals(interval[1])})" if interval else "")
        lines.append(Line(row.name, kind_of(row), mean, interval, dots, told=told))
    if chart := plots.plot(score, lines):
        yield chart
    yield from _changes(result, score)


def kind_of(row: RowResult) -> str:
    """The color of a row."""
    return "control" if row.control else "ours"


def _changes(result: StudyResult, score: str) -> Iterator[Plot]:
    first, *others = result.rows
    base = first.paper.get(score)
    lines = []
    for row in others:
        ours, paper = row.change.get(score), row.paper.get(score)
        if not base or ours is None or paper is None:
            continue
        theirs = paper / base - 1
        told = f"{percent(ours)}, the paper {percent(theirs)}"
        lines.append(Line(row.name, kind_of(row), 100 * ours, paper=100 * theirs, told=told))
    if lines and (chart := plots.plot(f"{score}, change against {first.name}", lines, zero=True, unit=" %")):
        yield chart


def _difference(label: str, kind: str, found: Difference | None, whole: float | None) -> Line:
    """A line of a claim: a difference with its interval, as a share of ``whole`` in per cent where that is given."""
    if found is None:
        return Line(label, kind, None, told="not measured")
    size = 100 / whole if whole else 1.0
    mean, low, high = (size * end for end in (found.mean, found.low, found.high))
    in_words = (
        [percent(value / 100) for value in (mean, low, high)] if whole else [signed(v) for v in (mean, low, high)]
    )
    return Line(label, kind, mean, (low, high), told=f"{in_words[0]} ({in_words[1]} to {in_words[2]})")


def _size(result: StudyResult, claim: ClaimResult) -> float | None:
    """The worse row's mean where it is positive; a score that is no column is told by the difference and its share."""
    whole = _mean(result, claim.worse, claim.on)
    if whole is None and claim.difference and claim.our_change:
        whole = claim.difference.mean / claim.our_change
    return whole if whole is not None and whole > 0 else None


def _mean(result: StudyResult, row: str, score: str) -> float | None:
    return next((found.mean.get(score) for found in result.rows if found.name == row), None)


def _hover(row: RowResult, column: str) -> str:
    interval = row.interval.get(column)
    told = [f"interval {decimals(interval[0])} to {decimals(interval[1])}"] if interval else []
    seeds = (f"seed {run.seed}: {decimals(run.scores.get(column))}, {run.path}" for run in row.runs)
    return "\n".join([*told, *seeds])

"""The table of scores, on a console and as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

PAPER_COLUMNS = ("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8", "LTRR@4", "LTRR@8", "Diversity@8")
"""What the paper reports (LEADRE 5.1.2, 5.2.3)."""

VALUE = "Value@8"
"""What the lists truly earn, which only a simulated world knows: docs/ltr.md."""

RATES = {"Invalid": "invalid_rate", "Duplicate": "duplicate_rate"}
"""Columns of what must not be, and their names in ``scores.json``: the shares of a system's ads that are not in the
catalog, and that stand twice in a list."""

OURS = "LEADRE"
ORACLE = "oracle"
_ROOMY = 100
NOTHING = "–"
"""Stands where a system has no number."""


class Grid(NamedTuple):
    """A table of texts.

    Attributes:
        head: The columns' names; the first column holds the rows' names.
        rows: One text a column each.
        strong: The (row, column) places that stand out.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    strong: frozenset[tuple[int, int]] = frozenset()


def score_grid(scores: Mapping[str, Any]) -> Grid:
    """Lay out ``scores.json``: baselines, LEADRE, then the oracle of a synthetic world.

    The rates of wrong ads, where they are known, are the last columns. The best of each other column stands out, the
    oracle left aside: it knows the world's true probabilities.

    Args:
        scores: The content of ``scores.json``.

    Raises:
        ValueError: If no system is scored.
    """
    systems: Mapping[str, Mapping[str, float | None]] = scores.get("systems", {})
    if not systems:
        raise ValueError("scores holds no systems: give the content of scores.json")
    names = sorted(systems, key=lambda name: (name == ORACLE, name == OURS, name))
    columns = _columns(systems[names[0]])
    numbers = [[systems[name].get(column) for column in columns] for name in names]
    rates = {column: rate for column, rate in RATES.items() if rate in systems[names[0]]}
    rows = tuple(
        (plain_name(name), *map(decimals, row), *(share(systems[name].get(rate)) for rate in rates.values()))
        for name, row in zip(names, numbers, strict=True)
    )
    rivals = [place for place, name in enumerate(names) if name != ORACLE]
    strong = {(row, column + 1) for column in range(len(columns)) for row in _best(numbers, rivals, column)}
    strong |= {(place, 0) for place, name in enumerate(names) if name == OURS}
    return Grid(head=("", *columns, *rates), rows=rows, strong=frozenset(strong))


def show(scores: Mapping[str, Any], *, console: Console) -> None:
    """Print the table of scores with a line on the users below it."""
    gap = 0 if console.width < _ROOMY else 1
    console.print(rich_table(score_grid(scores), title="Scores on the test users", caption=caption(scores), gap=gap))


def caption(scores: Mapping[str, Any]) -> str:
    """Say over how many users the means are, who is left out, and what chance would give.

    Example:
        >>> caption({"users": 20, "excluded": {"no_test_target": 3}, "chance": {"HR@8": 0.02}})
        'Means over 20 users; left out: 3 no test target. By chance HR@8 is 0.0200.'
    """
    left_out = [f"{count} {plain_name(reason)}" for reason, count in scores.get("excluded", {}).items() if count]
    text = f"Means over {scores.get('users', 0)} users"
    text += f"; left out: {', '.join(left_out)}." if left_out else "."
    if scores.get("ltr_users"):
        text += f" LTRR over the {scores['ltr_users']} whose labels the other strategy did not learn from."
    name = headline(scores.get("chance", {}))
    return f"{text} By chance {name} is {decimals(scores['chance'][name])}." if name else text


def rich_table(grid: Grid, *, title: str, caption: str | None = None, gap: int = 1) -> Table:
    """A table for a terminal; texts are shown as they are, whatever brackets they hold.

    Args:
        grid: What it shows.
        title: The line above it.
        caption: What stands below it.
        gap: Spaces between columns, beside the one that is always there.
    """
    left: JustifyMethod = "left"
    table = Table(
        title=title,
        caption=caption,
        title_justify=left,
        caption_justify=left,
        box=box.SIMPLE_HEAD,
        padding=(0, gap, 0, 0),
        show_edge=False,
    )
    for place, name in enumerate(grid.head):
        head = _narrow(name)
        first = place == 0
        table.add_column(
            Text(head), justify=left if first else "right", no_wrap=not first, min_width=11 if first else None
        )
    for place, row in enumerate(grid.rows):
        styles = ("bold cyan" if (place, column) in grid.strong else "" for column in range(len(row)))
        table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    return table


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table; what stands out is bold.

    Example:
        >>> print(markdown(Grid(("", "HR@8"), (("ours", "0.5"),), frozenset({(0, 1)}))))
        |  | HR@8 |
        |---|---:|
        | ours | **0.5** |
    """
    lines = [_line(grid.head), "|---|" + "---:|" * (len(grid.head) - 1)]
    for place, row in enumerate(grid.rows):
        lines.append(_line([f"**{cell}**" if (place, i) in grid.strong else cell for i, cell in enumerate(row)]))
    return "\n".join(lines)


def headline(names: Mapping[str, Any]) -> str | None:
    """The hit rate to speak of: HR@8, or else the last one there is."""
    rates = [name for name in names if name.startswith("HR@")]
    return "HR@8" if "HR@8" in rates else rates[-1] if rates else None


def decimals(number: float | None) -> str:
    """Four digits as in the paper, two where there is one before the point, or a dash for no number.

    Example:
        >>> decimals(0.20618), decimals(31.4159), decimals(None)
        ('0.2062', '31.42', '–')
    """
    if number is None:
        return NOTHING
    return f"{number:.4f}" if abs(number) < 10 else f"{number:.2f}"


def share(number: float | None) -> str:
    """A rate in percent, or a dash for no number; a small one is not told as none.

    Example:
        >>> share(0.0), share(0.0123), share(0.00001), share(None)
        ('0%', '1.23%', '<.01%', '–')
    """
    if number is None:
        return NOTHING
    if 0 < number < 0.0001:
        return "<.01%"
    return f"{number:.2%}" if 0 < number < 0.1 else f"{number:.0%}"


def plain_name(name: str) -> str:
    """A name for readers: ``own_history`` is shown as ``own history``."""
    return name.replace("_", " ")


def _columns(system: Mapping[str, Any]) -> tuple[str, ...]:
    """The paper's columns, or all of their kind where a run cuts its lists elsewhere; then `VALUE` where known."""
    found: tuple[str, ...] = PAPER_COLUMNS
    if any(column not in system for column in found):
        found = tuple(name for name in system if name.split("@")[0] in {"HR", "NDCG", "LTRR", "Diversity"})
    return (*found, VALUE) if VALUE in system else found


def _narrow(name: str) -> str:
    """The head of a column, in lines no wider than its numbers."""
    for long, broken in (("Diversity", "Diver-\nsity"), ("Invalid", "In-\nvalid"), ("Duplicate", "Dupli-\ncate")):
        name = name.replace(long, broken)
    return name.replace(" ", "\n")


def _best(numbers: Sequence[Sequence[float | None]], rivals: Sequence[int], column: int) -> list[int]:
    """The rows with the largest number in a column, all of them on a tie; none where that is 0."""
    column_numbers = {row: number for row in rivals if (number := numbers[row][column])}
    return [row for row, number in column_numbers.items() if number == max(column_numbers.values())]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

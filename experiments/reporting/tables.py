"""A study's table: for a console, as ``table.md``, and as ``table.csv`` for other programs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leadre.report.table import NOTHING, Grid, decimals, markdown

Content = Mapping[str, Any]


def grid_of(content: Content) -> Grid:
    """One row a row: mean ± half the seeds' range, change from the first row, and the paper's number in brackets."""
    head = ("", *content["columns"], "steps", "M tokens")
    return Grid(head=head, rows=tuple(_row(row, content["columns"]) for row in content["rows"]))


def write_tables(folder: Path, content: Content) -> None:
    """Write ``table.md``, and ``table.csv`` with one line a row and seed and the key of its scores."""
    page = [
        f"# {content['title']}",
        content["question"],
        f"`{content['command']}`, {content['date']}",
        markdown(grid_of(content)),
        _reading(content),
        *_claims(content),
        *content["notes"],
    ]
    (folder / "table.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", *content["columns"], "steps", "tokens", "seconds", "scores", "not_run"])
        for row in content["rows"]:
            for run in row["runs"]:
                numbers = [run["scores"][name] for name in content["columns"]]
                costs = [run["steps"], run["tokens"], run["seconds"]]
                writer.writerow([row["name"], run["seed"], *numbers, *costs, run["key"], ""])
            if row["not_run"]:
                writer.writerow([row["name"], "", *("" for _ in content["columns"]), "", "", "", "", row["not_run"]])


def _row(row: Content, columns: Sequence[str]) -> tuple[str, ...]:
    name = row["name"] + (" (control)" if row["control"] else "")
    steps, tokens = ([run[cost] for run in row["runs"] if run[cost]] for cost in ("steps", "tokens"))
    costs = [f"{max(steps):,}" if steps else NOTHING, f"{max(tokens) / 1e6:.2f}" if tokens else NOTHING]
    return (name, *(_cell(row, column) for column in columns), *costs)


def _cell(row: Content, column: str) -> str:
    values = [run["scores"][column] for run in row["runs"] if run["scores"][column] is not None]
    change, paper = row["change"].get(column), row["paper"].get(column)
    told = [NOTHING]
    if values:
        digits = 4 if max(map(abs, values)) < 10 else 1  # values in money beside shares
        told = [f"{row['mean'][column]:.{digits}f}", f"±{(max(values) - min(values)) / 2:.{digits}f}"]
    told += [] if change is None else [f"{change:+.1%}"]
    told += [] if paper is None else [f"[{decimals(paper)}]"]
    return " ".join(told)


def _reading(content: Content) -> str:
    seeds = ", ".join(map(str, content["seeds"]))
    builds = content["builds"]
    return (
        f"Means ± half the range over the training seeds {seeds}; {content['users']} {content['unit']} of "
        f"{content['data']['name']}. In per cent: the change from the first row. In brackets: the paper's numbers, of "
        f"other data. {builds['built']} distinct results stand behind it; rows that share nothing would have needed "
        f"{builds['asked']}."
    )


def _claims(content: Content) -> list[str]:
    if not content["claims"]:
        return []
    head = ("claim", "verdict", "difference", "its control's", "p (Holm)", "the paper's", "why")
    rows = tuple(_claim(claim) for claim in content["claims"])
    return ["## Claims", markdown(Grid(head=head, rows=rows))]


def _claim(claim: Content) -> tuple[str, ...]:
    difference, paper = claim["difference"], claim["paper_change"]
    p = NOTHING if difference is None else f"{difference['p_holm']:.4f}"
    return (
        f"{claim['text']} ({claim['source']}; {claim['on']}: {claim['better']} less {claim['worse']})",
        claim["verdict"],
        interval(difference),
        interval(claim["control_difference"]),
        p,
        NOTHING if paper is None else f"{paper:+.1%}",
        claim["why"],
    )


def interval(difference: Content | None) -> str:
    """A difference with its interval.

    Example:
        >>> interval({"mean": 0.0123, "low": 0.01, "high": 0.02})
        '+0.0123 (+0.0100 to +0.0200)'
    """
    if difference is None:
        return NOTHING
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"

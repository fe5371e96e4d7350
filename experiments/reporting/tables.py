"""A study's table: for a console, as ``table.md``, and as ``table.csv`` for other programs."""

import csv
from collections.abc import Sequence
from pathlib import Path

from experiments.result import ClaimResult, Difference, RowResult, StudyResult
from leadre.report.table import NOTHING, Grid, decimals, markdown


def grid_of(content: StudyResult) -> Grid:
    """One row a row: mean ± half the seeds' range, change from the first row, and the paper's number in brackets."""
    head = ("", *content.columns, "steps", "M tokens")
    return Grid(head=head, rows=tuple(_row(row, content.columns) for row in content.rows))


def write_tables(folder: Path, content: StudyResult) -> None:
    """Write ``table.md``, and ``table.csv`` with one line a row and seed and the key of its scores."""
    page = [
        f"# {content.title}",
        content.question,
        f"`{content.command}`, {content.date.isoformat()}",
        markdown(grid_of(content)),
        _reading(content),
        *_claims(content),
        *content.notes,
    ]
    (folder / "table.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", *content.columns, "steps", "tokens", "seconds", "scores", "not_run"])
        for row in content.rows:
            for run in row.runs:
                numbers = [run.scores[name] for name in content.columns]
                writer.writerow([row.name, run.seed, *numbers, run.steps, run.tokens, run.seconds, run.key, ""])
            if row.not_run:
                writer.writerow([row.name, "", *("" for _ in content.columns), "", "", "", "", row.not_run])


def _row(row: RowResult, columns: Sequence[str]) -> tuple[str, ...]:
    name = row.name + (" (control)" if row.control else "")
    steps, tokens = ([run.steps for run in row.runs if run.steps], [run.tokens for run in row.runs if run.tokens])
    costs = [f"{max(steps):,}" if steps else NOTHING, f"{max(tokens) / 1e6:.2f}" if tokens else NOTHING]
    return (name, *(_cell(row, column) for column in columns), *costs)


def _cell(row: RowResult, column: str) -> str:
    values = [value for run in row.runs if (value := run.scores[column]) is not None]
    change, paper = row.change.get(column), row.paper.get(column)
    told = [NOTHING]
    if values:
        digits = 4 if max(map(abs, values)) < 10 else 1  # values in money beside shares
        told = [f"{row.mean[column]:.{digits}f}", f"±{(max(values) - min(values)) / 2:.{digits}f}"]
    told += [] if change is None else [f"{change:+.1%}"]
    told += [] if paper is None else [f"[{decimals(paper)}]"]
    return " ".join(told)


def _reading(content: StudyResult) -> str:
    seeds = ", ".join(map(str, content.seeds))
    return (
        f"Means ± half the range over the training seeds {seeds}; {content.users} {content.unit} of "
        f"{content.data.name}. In per cent: the change from the first row. In brackets: the paper's numbers, of "
        f"other data. Behind it stand {content.builds.told}."
    )


def _claims(content: StudyResult) -> list[str]:
    if not content.claims:
        return []
    head = ("claim", "verdict", "difference", "its control's", "p (Holm)", "the paper's", "why")
    rows = tuple(_claim(claim) for claim in content.claims)
    return ["## Claims", markdown(Grid(head=head, rows=rows))]


def _claim(claim: ClaimResult) -> tuple[str, ...]:
    difference, paper = claim.difference, claim.paper_change
    p = NOTHING if difference is None or difference.p_holm is None else f"{difference.p_holm:.4f}"
    return (
        f"{claim.text} ({claim.source}; {claim.on}: {claim.better} less {claim.worse})",
        claim.verdict,
        interval(difference),
        interval(claim.control_difference),
        p,
        NOTHING if paper is None else f"{paper:+.1%}",
        claim.why,
    )


def interval(difference: Difference | None) -> str:
    """A difference with its interval.

    Example:
        >>> interval(Difference(mean=0.0123, low=0.01, high=0.02))
        '+0.0123 (+0.0100 to +0.0200)'
    """
    if difference is None:
        return NOTHING
    return f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"

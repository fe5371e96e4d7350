"""Rows that were refused: each kept with its file, line and reason; too many of them stop the run."""

import json
from collections.abc import Mapping
from pathlib import Path

import polars as pl

FILE = "file"
LINE = "line"
NAME = "quarantine.jsonl"

SCHEMA = pl.Schema({FILE: pl.String(), LINE: pl.Int64(), "reason": pl.String(), "row": pl.String()})
EMPTY = pl.DataFrame(schema=SCHEMA)
"""The quarantine table: ``row`` is the refused row as JSON, or the text of a line that could not be parsed."""

MAX_ROW_CHARACTERS = 2000


def entries(found: list[tuple[str, int, str, str]]) -> pl.DataFrame:
    """A quarantine table of ``(file, line, reason, row)``."""
    return pl.DataFrame(found, schema=SCHEMA, orient="row").with_columns(pl.col("row").str.slice(0, MAX_ROW_CHARACTERS))


def sift(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Part a frame into the rows that no rule holds for, and the quarantine table of the others.

    Args:
        frame: Rows with columns ``file`` and ``line``.
        rules: Reason -> expression that is true for a bad row (null counts as false); the first that holds is told.
    """
    reasons = judge(frame, rules)
    return frame.filter(reasons.is_null()), tell(frame, reasons)


def judge(frame: pl.DataFrame, rules: Mapping[str, pl.Expr]) -> pl.Series:
    """The reason to refuse each row, null for a good one."""
    verdicts = [pl.when(rule.fill_null(value=False)).then(pl.lit(reason)) for reason, rule in rules.items()]
    judged = frame.with_columns(pl.coalesce(*verdicts, pl.lit(None, dtype=pl.String())).alias("reason"))
    return judged["reason"]


def tell(frame: pl.DataFrame, reasons: pl.Series) -> pl.DataFrame:
    """The quarantine table of the rows that have a reason."""
    bad = frame.with_columns(reasons.alias("reason")).filter(reasons.is_not_null())
    row = pl.struct(pl.exclude(FILE, LINE, "reason")).struct.json_encode()
    return bad.select(FILE, LINE, "reason", row.alias("row")).cast(SCHEMA)


def write(refused: pl.DataFrame, path: Path) -> None:
    """Write the table as JSON Lines; ``row`` becomes an object where it can be parsed."""
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:  # half a character stays JSON's escape
        for where, line, reason, row in refused.sort(FILE, LINE, maintain_order=True).iter_rows():
            known = {"file": where, "line": line, "reason": reason, "row": _parsed(row)}
            file.write(json.dumps(known, ensure_ascii=False) + "\n")


def _parsed(row: str) -> object:
    try:
        return json.loads(row)
    except (ValueError, RecursionError):
        return row


def by_reason(refused: pl.DataFrame) -> dict[str, int]:
    """The number of refused rows of each reason, the commonest first."""
    counted = refused.group_by("reason").len().sort("len", "reason", descending=[True, False])
    return dict(counted.iter_rows())


def limit(refused: pl.DataFrame, *, totals: Mapping[str, int], max_bad_share: float, path: Path) -> None:
    """Stop the run if a file has too many bad rows.

    Args:
        refused: The quarantine table; several reasons for one line count once.
        totals: File -> its number of rows, good and bad.
        max_bad_share: The share of a file's rows that may be bad.
        path: Where the quarantine was written.

    Raises:
        ValueError: If the share of a file is above the limit.
    """
    faults = []
    for file, total in totals.items():
        bad = refused.filter(pl.col(FILE) == file)
        share = bad[LINE].n_unique() / max(total, 1)
        if share > max_bad_share:
            common = ", ".join(f"{reason} ({count})" for reason, count in list(by_reason(bad).items())[:3])
            faults.append(f"{share:.2%} of the {total} rows of {file} are bad, mostly: {common}")
    if faults:
        raise ValueError(
            f"{'; '.join(faults)}. data.max_bad_share allows {max_bad_share:.2%}: mend the rows listed in {path}, "
            "or raise data.max_bad_share"
        )

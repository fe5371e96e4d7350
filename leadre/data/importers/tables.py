"""The user's own folder: ads, users, contents, behaviors, negatives and impressions as Parquet, CSV or JSON Lines."""

import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from leadre import tables
from leadre.data import check, files
from leadre.data.check import Found
from leadre.data.files import Rows
from leadre.data.quarantine import EMPTY
from leadre.data.split import DAY

TABLES = {
    "ads": check.ADS,
    "users": tables.USERS,
    "contents": tables.CONTENTS,
    "behaviors": tables.BEHAVIORS,
    "negatives": tables.NEGATIVES,
    "impressions": tables.IMPRESSIONS,
}


def sources(root: str) -> dict[str, Path]:
    """The file of each table that the folder holds.

    Raises:
        ValueError: If the folder or the table of ads is missing, or a table stands there in two formats.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise ValueError(
            f"data.root is {root!r}, but there is no such folder: put ads and behaviors there as .parquet, .csv or "
            ".jsonl (docs/data.md has an example), or name your folder with data.root=PATH"
        )
    found = {
        name: [path for ending in files.ENDINGS if (path := folder / f"{name}{ending}").is_file()] for name in TABLES
    }
    faults = [] if found["ads"] else ["no file for the table ads"]  # ads alone can be indexed
    faults += [
        f"{' and '.join(path.name for path in paths)} are the same table: keep one"
        for paths in found.values()
        if len(paths) > 1
    ]
    if faults:
        raise ValueError(
            f"data.root is {root!r}, but the folder has faults: {'; '.join(faults)}. "
            f"A table is a file named after it that ends in {', '.join(files.ENDINGS)}"
        )
    return {name: paths[0] for name, paths in found.items() if paths}


def load(root: str, *, end_time: str | None) -> Found:
    """Read the folder.

    Args:
        root: The folder.
        end_time: An ISO time, UTC unless it says otherwise: later behaviors are refused. None: later than a day
            from now, so that clocks that run ahead a little do no harm.

    Raises:
        ValueError: If the folder lacks a table, or a table has other columns than declared.
    """
    paths = sources(root)
    faults, rows = [], {}
    for name, table in TABLES.items():
        try:
            rows[name] = _read(paths.get(name), table)
        except tables.TableError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return Found(
        ads=rows["ads"].frame,
        users=rows["users"].frame,
        contents=rows["contents"].frame,
        behaviors=rows["behaviors"].frame,
        negatives=rows["negatives"].frame,
        impressions=rows["impressions"].frame,
        refused=pl.concat([read.refused for read in rows.values()]),
        totals={paths[name].name: rows[name].total for name in paths},
        latest=_seconds(end_time) if end_time is not None else int(time.time()) + DAY,
    )


def _read(path: Path | None, table: tables.Table) -> Rows:
    if path is None:
        return Rows(check.empty(table), EMPTY, 0)
    return files.read(path, table, optional=frozenset({"attributes"}))


def _seconds(end_time: str) -> int:
    try:
        moment = datetime.fromisoformat(end_time)
    except ValueError as error:
        raise ValueError(
            f"data.end_time is {end_time!r}, but must be an ISO time such as 2024-11-20 or 2024-11-20T12:00:00+08:00"
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())

"""The users that lists are made for: prompts in Parquet files, read a few at a time."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from leadre import tables

ROWS = 2_000
"""Prompts read at a time."""
HASHES = 4_000_000
"""User ids, as 64-bit hashes, compared at a time when a user is looked for who is there twice."""


class RowGroup(NamedTuple):
    """A piece of a Parquet file that can be read alone.

    Attributes:
        path: The file.
        number: Its place in the file.
        users: Which users of the whole input it holds, counted over all files from 0.
    """

    path: Path
    number: int
    users: range


def row_groups(paths: Sequence[Path]) -> list[RowGroup]:
    """All pieces of tables of prompts, in order, from the files' footers alone.

    Raises:
        TableError: If a file has no columns of PROMPTS; others are not read.
    """
    found, start = [], 0
    for path in paths:
        tables.scan(tables.PROMPTS, path)
        about = pq.read_metadata(path)
        for number in range(about.num_row_groups):
            stop = start + about.row_group(number).num_rows
            found.append(RowGroup(path, number, range(start, stop)))
            start = stop
    return found


def read(groups: Sequence[RowGroup], users: range, columns: Sequence[str]) -> Iterator[Any]:
    """Read some users as pyarrow batches, in order; only the pieces that hold them are opened."""
    for group in groups:
        start = group.users.start
        if start >= users.stop or group.users.stop <= users.start:
            continue
        with pq.ParquetFile(group.path) as file:
            for batch in file.iter_batches(ROWS, row_groups=[group.number], columns=list(columns)):
                low, high = max(users.start - start, 0), min(users.stop - start, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                start += batch.num_rows
                if start >= users.stop:
                    break


def user_ids(groups: Sequence[RowGroup], users: range) -> pl.Series:
    """The ids of some users."""
    return _joined([_ids(batch) for batch in read(groups, users, ["user_id"])])


def check_users(groups: Sequence[RowGroup]) -> None:
    """Refuse an input in which a prompt has no user, or a user has two prompts, wherever the two stand.

    Ids that rise strictly, as those of the stage ``audience`` do, are read once. Our choice for others: they are read
    once more for every `HASHES` users, and each time a share of their hashes is compared, so that memory does not grow
    with the users; ids whose hashes are equal are then compared themselves.

    Raises:
        ValueError: If so; it names the first such user.
    """
    if _rises_strictly(groups):
        return
    num_users = groups[-1].users.stop if groups else 0
    shares = -(-num_users // HASHES)
    for share in range(shares):
        hashes = np.concatenate([_hashes(ids, share, shares) for ids in _all_ids(groups)])
        hashes.sort()
        if len(twice := np.unique(hashes[1:][hashes[1:] == hashes[:-1]])):
            _refuse_repeated(groups, twice[:1000])


def _rises_strictly(groups: Sequence[RowGroup]) -> bool:
    last = None
    for ids in _all_ids(groups):
        joined = ids if last is None else pl.concat([last, ids])
        if not (joined[1:] > joined[:-1]).all():
            return False
        last = joined[-1:]
    return True


def _all_ids(groups: Sequence[RowGroup]) -> Iterator[pl.Series]:
    for group in groups:
        for batch in read([group], group.users, ["user_id"]):
            ids = _ids(batch)
            if missing := ids.null_count():
                raise ValueError(
                    f"{group.path} has {missing} prompts without a user_id: a list needs to know whose it is; leave "
                    "them out"
                )
            yield ids


def _hashes(ids: pl.Series, share: int, shares: int) -> Any:  # noqa: ANN401  # numpy's own arrays are untyped here
    hashes = ids.hash().to_numpy()
    return hashes[hashes % shares == share]


def _refuse_repeated(groups: Sequence[RowGroup], hashes: Any) -> None:  # noqa: ANN401
    suspects = _joined([ids.filter(pl.Series(np.isin(ids.hash().to_numpy(), hashes))) for ids in _all_ids(groups)])
    if len(repeated := suspects.filter(suspects.is_duplicated())):
        raise ValueError(
            f"{groups[0].path.parent} has the user {repeated[0]!r} {(repeated == repeated[0]).sum()} times: a user "
            "gets one list; keep one prompt a user"
        )


def _ids(batch: Any) -> pl.Series:  # noqa: ANN401  # pyarrow has no types
    return pl.Series("user_id", batch.column("user_id"), dtype=pl.String())


def _joined(series: Sequence[pl.Series]) -> pl.Series:
    return pl.concat(series) if series else pl.Series("user_id", [], dtype=pl.String())

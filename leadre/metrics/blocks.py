"""Tables about users, a block of users at a time, so that memory does not grow with their number.

A block is a range of user ids. Its rows are asked of the Parquet files, which tell for each group of rows which users
it is of: where tables are sorted by user, as this project writes them, every row is read once; in any other order the
result is the same, and each block reads the whole table.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.metrics.ranking import NO_AD, Rows, Scores


class Range(NamedTuple):
    """User ids from ``first`` on and before ``end``; None is no bound, so that blocks together have every user."""

    first: str | None
    end: str | None


class Part(NamedTuple):
    """A Parquet file, with the first and the last user that it is of."""

    path: Path
    first: str
    last: str


class Source(NamedTuple):
    """A table of many users: one Parquet file, or a folder of parts."""

    table: tables.Table
    parts: tuple[Part, ...]

    def read(self, users: Range) -> pl.DataFrame:
        """The rows about these users, checked.

        Raises:
            TableError: If one of them is not as declared.
        """
        found = [pl.DataFrame(schema=self.table.schema)]
        for path, first, last in self.parts:
            if (users.end is None or first < users.end) and (users.first is None or last >= users.first):
                frame = _between(pl.scan_parquet(path), users).collect()
                found.append(tables.check(self.table, frame, str(path)))
        return pl.concat(found)


class Block(NamedTuple):
    """The scored users of a range.

    Attributes:
        range: Of which user ids.
        users: ``user_id``, sorted, and ``user``, the number 0..n-1 of each.
        targets: ``(n, 1)`` the catalog row of each one's test target.
        excluded: How many users of the range are not scored, and why.
    """

    range: Range
    users: pl.DataFrame
    targets: Rows
    excluded: dict[str, int]


class Lists(NamedTuple):
    """One system's lists for the n scored users of a block.

    Attributes:
        rows: ``(n, W)`` catalog rows by rank, -1 where there is no ad or one that the catalog does not have.
        invalid: How many ads of these lists are not in the catalog; each is a miss at its place.
        other_users: How many users of the range have a list and are not scored.
    """

    rows: Rows
    invalid: int
    other_users: int


class Catalog:
    """The row of each ad.

    Args:
        ads: The ``ad_id`` of each row, each once.
    """

    def __init__(self, ads: pl.Series) -> None:
        # The ads are the first strings of a dictionary of their own, so that the code of each is its row.
        self._ads = ads.cast(pl.Categorical(pl.Categories.random()))

    def __len__(self) -> int:
        return len(self._ads)

    def rows(self, ads: pl.Series) -> Rows:
        """The row of each ad, -1 for one that the catalog does not have.

        Example:
            >>> Catalog(pl.Series(["c", "a"])).rows(pl.Series(["a", "gone", "c"])).tolist()
            [1, -1, 0]
        """
        codes = ads.cast(self._ads.dtype).to_physical().to_numpy().astype(np.int32)
        return np.where(codes < len(self), codes, np.int32(NO_AD))


class _Entries(NamedTuple):
    """Rows of a table with those of a user together: ``(E,)`` each but ``of_run``, which has an entry a user.

    Attributes:
        frame: The rows.
        of_run: The user's number in the block, -1 for one that is not scored.
        run: Which of the users a row is of.
        place: The place among the user's rows, from 0 on.
    """

    frame: pl.DataFrame
    of_run: NDArray[np.int64]
    run: NDArray[np.int64]
    place: NDArray[np.int64]


def source(table: tables.Table, path: Path) -> Source:
    """Look which users a table's files are of.

    Raises:
        TableError: If a file is not as declared, a row has no user, or a folder holds no part.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise tables.TableError(f"{path} is no {table.name} table: the folder holds no .parquet file")
    parts = []
    for file in files:
        tables.check(table, pl.read_parquet(file, n_rows=0), str(file))
        ids, user = pl.scan_parquet(file), pl.col("user_id")
        told = ids.select(user.min().alias("first"), user.max().alias("last"), user.null_count().alias("nulls"))
        first, last, nulls = told.collect().row(0)
        if nulls:
            tables.check(table, ids.filter(user.is_null()).collect(), str(file))
        if first is not None:
            parts.append(Part(file, first, last))
    return Source(table, tuple(parts))


def blocks(split: Path, catalog: Catalog, *, size: int) -> Iterator[Block]:
    """Cut the users into ranges of about ``size`` users with a test target, by user id.

    Args:
        split: The table of targets.
        catalog: Which ads can be found.
        size: How many users of a block have a test target.

    Raises:
        ValueError: If a user has two test targets.
        TableError: If the table is not as declared.
    """
    targets = source(tables.SPLIT, split)
    # Eight users for each block to be tell where it ends, well enough whatever the order of the rows.
    tested = pl.scan_parquet(split).filter(pl.col("role") == "test").select("user_id")
    some = tested.gather_every(max(1, size // 8)).collect(engine="streaming")["user_id"].unique().sort()
    bounds = [None, *some.gather_every(min(size, 8))[1:], None]
    for first, end in pairwise(bounds):
        yield _block(targets, Range(first, end), catalog)


def read_lists(lists: Source, block: Block, catalog: Catalog, *, drop_outside: bool = False) -> Lists:
    """Read a block's lists as catalog rows.

    Args:
        lists: A table LISTS.
        block: The users.
        catalog: The rows.
        drop_outside: Whether ads that the catalog does not have leave the lists, and the ads behind them move up.

    Raises:
        ValueError: If a user's ranks are not 1..n, each once.
        TableError: If the table is not as declared.
    """
    entries = _by_user(lists.read(block.range), block)
    if not (ranks := _in_order(entries)).all():
        entries = _by_user(entries.frame.sort("user_id", "rank"), block)
        if not (ranks := _in_order(entries)).all():
            broken = entries.frame.filter(~ranks)["user_id"].unique().sort().to_list()
            where = lists.parts[0].path if len(lists.parts) == 1 else lists.parts[0].path.parent
            raise ValueError(f"{where}: ranks of user {broken[0]!r} (one of {len(broken)}) are not 1..n, each once")
    rows = catalog.rows(entries.frame["ad_id"])
    users = entries.of_run[entries.run]
    invalid = 0 if drop_outside else int(((rows == NO_AD) & (users >= 0)).sum())
    places = _moved_up(entries, rows) if drop_outside else entries.place
    wanted = (users >= 0) & (rows != NO_AD) if drop_outside else users >= 0
    matrix = _matrix(users[wanted], places[wanted], rows[wanted], len(block.users), empty=NO_AD)
    return Lists(matrix, invalid, other_users=int((entries.of_run < 0).sum()))


def read_values(values: Source, column: str, block: Block, catalog: Catalog) -> tuple[Rows, Scores]:
    """Read ads that are worth something to a block's users; ads that the catalog does not have are left out.

    Args:
        values: A table with ``user_id``, ``ad_id`` and the column.
        column: Which column has the worth.
        block: The users.
        catalog: The rows.

    Returns:
        ``(n, G)`` catalog rows, -1 where there is no ad, and ``(n, G)`` what each is worth.
    """
    entries = _by_user(values.read(block.range), block)
    rows = catalog.rows(entries.frame["ad_id"])
    users, places = entries.of_run[entries.run], _moved_up(entries, rows)
    wanted = (users >= 0) & (rows != NO_AD)
    at = users[wanted], places[wanted]
    worth = entries.frame[column].to_numpy()[wanted]
    return _matrix(*at, rows[wanted], len(block.users), empty=NO_AD), _matrix(*at, worth, len(block.users), empty=0.0)


def _block(split: Source, users: Range, catalog: Catalog) -> Block:
    found = split.read(users)
    targets = found.filter(pl.col("role") == "test").sort("user_id").select("user_id", "ad_id")
    if twice := targets["user_id"].is_duplicated().sum():
        raise ValueError(f"split has {twice} test rows of users with more than one: a user has one test target")
    rows = catalog.rows(targets["ad_id"])
    inside = rows != NO_AD
    scored = targets.filter(inside).select("user_id").with_row_index("user")
    excluded = {
        "no_test_target": found["user_id"].n_unique() - len(targets),
        "target_outside_catalog": len(targets) - len(scored),
    }
    return Block(users, scored.with_columns(pl.col("user").cast(pl.Int64)), rows[inside, None], excluded)


def _between(frame: pl.LazyFrame, users: Range) -> pl.LazyFrame:
    if users.first is not None:
        frame = frame.filter(pl.col("user_id") >= users.first)
    return frame if users.end is None else frame.filter(pl.col("user_id") < users.end)


def _by_user(frame: pl.DataFrame, block: Block) -> _Entries:
    runs = frame["user_id"].rle().struct.unnest()
    if runs["value"].n_unique() < len(runs):  # a user's rows are apart
        frame = frame.sort("user_id", maintain_order=True)
        runs = frame["user_id"].rle().struct.unnest()
    numbers = runs.join(block.users, left_on="value", right_on="user_id", how="left", maintain_order="left")
    lengths = runs["len"].to_numpy().astype(np.int64)
    run = np.repeat(np.arange(len(runs)), lengths)
    place = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return _Entries(frame, numbers["user"].fill_null(-1).to_numpy(), run, place)


def _in_order(entries: _Entries) -> NDArray[np.bool_]:
    """Whether the rank of each row is its place; where a user's ranks are no 1..n, one is not, however sorted."""
    return np.asarray(entries.frame["rank"].to_numpy() == entries.place + 1)


def _moved_up(entries: _Entries, rows: Rows) -> NDArray[np.int64]:
    """The place of each ad among those of its user that the catalog has."""
    known = np.cumsum(rows != NO_AD)
    before = np.concatenate([[0], known])[np.flatnonzero(entries.place == 0)]  # those of all users in front
    return np.asarray(known - 1 - before[entries.run], dtype=np.int64)


def _matrix(users: Rows, places: Rows, values: NDArray, size: int, *, empty: float) -> NDArray:  # type: ignore[type-arg]
    """``(size, places)`` with a value at each given user and place, its columns contiguous."""
    matrix = np.full((size, int(places.max(initial=-1)) + 1), empty, dtype=values.dtype, order="F")
    matrix[users, places] = values
    return matrix

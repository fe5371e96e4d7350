"""The declared columns of every Parquet table; reading and writing refuse what does not match.

Times are UTC seconds since 1970 as integers. Ids are strings. A column that may be null says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray


class TableError(ValueError):
    """A table does not have the columns, types or values that it is declared with."""


class Column(NamedTuple):
    """One declared column: its type, and whether a null may stand in it."""

    dtype: pl.DataType
    nullable: bool = False


class Table(NamedTuple):
    """A declared table: its name, used as the file name, and its columns in order."""

    name: str
    columns: Mapping[str, Column]

    @property
    def schema(self) -> pl.Schema:
        """The polars schema."""
        return pl.Schema({name: column.dtype for name, column in self.columns.items()})


_TEXT = Column(pl.String())
_MAYBE_TEXT = Column(pl.String(), nullable=True)
_TIME = Column(pl.Int64())
_INT = Column(pl.Int32())
_CODES = Column(pl.List(pl.Int32()))

SEGMENT = pl.Struct({"kind": pl.String(), "value": pl.String()})
"""A piece of a prompt: kind ``text`` (value: the text), ``ad`` (value: an ad_id) or ``soft`` (value: empty)."""
_SEGMENTS = Column(pl.List(SEGMENT))

ADS = Table(
    "ads",
    {
        "ad_id": _TEXT,
        "name": _MAYBE_TEXT,
        "product_type": _MAYBE_TEXT,
        "first_category": _MAYBE_TEXT,
        "second_category": _MAYBE_TEXT,
        "attributes": Column(pl.List(pl.String())),
        "spu": _MAYBE_TEXT,
        "start_time": Column(pl.Int64(), nullable=True),
        "end_time": Column(pl.Int64(), nullable=True),
        "description": _TEXT,
    },
)
"""One row an ad. ``description`` is the text of the feature mapping rule (LEADRE 3.2); the life span is
``[start_time, end_time)``, null where unbounded."""

USERS = Table(
    "users",
    {
        "user_id": _TEXT,
        "age": _MAYBE_TEXT,
        "gender": _MAYBE_TEXT,
        "region": _MAYBE_TEXT,
        "education": _MAYBE_TEXT,
        "occupation": _MAYBE_TEXT,
        "consumption_level": _MAYBE_TEXT,
    },
)
"""One row a user; every profile field may be missing."""

CONTENTS = Table("contents", {"item_id": _TEXT, "title": _MAYBE_TEXT, "category": _MAYBE_TEXT, "spu": _MAYBE_TEXT})
"""One row an item of the content domain."""

BEHAVIORS = Table("behaviors", {"user_id": _TEXT, "item_id": _TEXT, "domain": _TEXT, "action": _TEXT, "time": _TIME})
"""One row a positive behavior, sorted by user and time. ``domain`` is ``ad`` (item_id is an ad_id) or ``content``."""

IMPRESSIONS = Table(
    "impressions",
    {
        "user_id": _TEXT,
        "ad_id": _TEXT,
        "time": _TIME,
        "ecpm": Column(pl.Float64()),
        "pctr": Column(pl.Float64(), nullable=True),
        "clicked": Column(pl.Boolean(), nullable=True),
    },
)
"""One row an ad shown: its ECPM at the ranking stage, the ranker's click probability, and whether it was clicked."""

SPLIT = Table("split", {"user_id": _TEXT, "role": _TEXT, "ad_id": _TEXT, "time": _TIME})
"""One row a target: ``role`` is ``train`` (every ad but the last two), ``valid`` (last but one) or ``test`` (last)."""

ROWS = Table("rows", {"ad_id": _TEXT, "text_key": _TEXT})
"""One row a vector, in the order of ``ads``: its ad, and what tells its text from others: 32 hex digits of the text's
sha256, or, where vectors were made elsewhere, of the vector's."""

VECTORS = Table("vectors", {"ad_id": _TEXT, "vector": Column(pl.List(pl.Float32()))})
"""One row an ad: an embedding that was made elsewhere."""

CODES = Table("codes", {"ad_id": _TEXT, "codes": _CODES})
"""One row an ad: its M codes, before the extra code. The table only grows from day to day: new ads stand last."""

SIDS = Table("sids", {"ad_id": _TEXT, "sid": _CODES, "name": _TEXT})
"""One row an ad of the catalog, sorted by ``sid`` (M+1 codes); ``name`` is ``<a_51> <b_10> ...``.
The row number is the ad's leaf in the trie."""

PAIRS = Table(
    "pairs",
    {
        "user_id": _MAYBE_TEXT,
        "ad_id": _TEXT,
        "head": _SEGMENTS,
        "lead": _SEGMENTS,
        "behaviors": Column(pl.List(pl.List(SEGMENT))),
        "tail": _SEGMENTS,
    },
)
"""One row a prompt-response pair. The prompt is ``head + lead + behaviors + tail``; ``behaviors`` (oldest first)
are dropped from the front to fit the token budget, ``lead`` goes when none is left. The response is the S-ID
of ``ad_id``."""

LISTS = Table("lists", {"user_id": _TEXT, "rank": _INT, "ad_id": _TEXT, "score": Column(pl.Float64())})
"""One row a recommended ad: ranks 1..K a user, no ad twice in a list."""


def matrix(lists: pl.Series, width: int) -> NDArray[np.int32]:
    """A column of lists of ``width`` integers each, such as codes or S-IDs, to ``(N, width)``."""
    return lists.list.to_array(width).to_numpy(writable=True).reshape(-1, width)


def read(table: Table, path: Path) -> pl.DataFrame:
    """Read a Parquet file and check it against its declaration.

    Raises:
        TableError: If a column is missing, unknown, of another type, or holds a null it may not; all faults at once.
    """
    return _checked(table, pl.read_parquet(path), str(path))


def write(table: Table, frame: pl.DataFrame, path: Path) -> None:
    """Check a frame against its declaration and write it as Parquet.

    Raises:
        TableError: As for `read`; nothing is written then.
    """
    _checked(table, frame, f"the frame for {path}").write_parquet(path)


def _checked(table: Table, frame: pl.DataFrame, where: str) -> pl.DataFrame:
    faults = []
    for name, column in table.columns.items():
        if name not in frame.columns:
            faults.append(f"column {name!r} is missing")
        elif frame.schema[name] != column.dtype:
            faults.append(f"column {name!r} is {frame.schema[name]}, must be {column.dtype}")
        elif not column.nullable and (nulls := frame[name].null_count()):
            faults.append(f"column {name!r} has {nulls} nulls, may have none")
    faults += [f"column {name!r} is not declared" for name in frame.columns if name not in table.columns]
    if faults:
        raise TableError(f"{where} is no {table.name} table: " + "; ".join(faults))
    return frame.select(list(table.columns))

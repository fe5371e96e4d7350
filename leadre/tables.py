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

NEGATIVES = Table("negatives", dict(BEHAVIORS.columns))
"""One row a negative feedback, sorted by user and time: an ad shown and not clicked (action ``no_click``), a content
skipped, whatever the platform counts as such. Its columns are those of ``behaviors``."""

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
        "following": Column(pl.List(pl.String())),
    },
)
"""One row a prompt-response pair. The prompt is ``head + lead + behaviors + tail``; ``behaviors`` (oldest first)
are dropped from the front to fit the token budget, ``lead`` goes when none is left. The response is the S-ID
of ``ad_id``, then those of ``following``, which is empty where the response is one ad."""

PROMPTS = Table(
    "prompts",
    {"user_id": _TEXT} | {name: PAIRS.columns[name] for name in ("head", "lead", "behaviors", "tail")},
)
"""One row a user that a list is made for: a prompt as in PAIRS, without a response."""

PREFERENCES = Table(
    "preferences",
    {
        "user_id": _TEXT,
        "chosen_ad": _TEXT,
        "rejected_ad": _TEXT,
        "chosen_worth": Column(pl.Float64()),
        "rejected_worth": Column(pl.Float64()),
        "chosen_source": _TEXT,
        "rejected_source": _TEXT,
        "divergence": _INT,
    },
)
"""One row a pair of a user's plausible ads, the one that is worth more chosen; sorted by user, chosen and rejected ad.
A source is ``click``, ``shown`` (both from the log) or ``beam`` (the model's own). ``divergence`` is the number of
leading codes that the two S-IDs share."""

LTR_USERS = Table("ltr_users", {"user_id": _TEXT, "role": _TEXT})
"""One row a user: ``train`` if the ranker of the other retrieval strategy learned from it, ``label`` if LTRR is
measured on it; nobody is both."""

VALUES = Table("values", {"user_id": _TEXT, "ad_id": _TEXT, "value": Column(pl.Float64())})
"""One row a user and an ad of a list: the ECPM that showing it is expected to earn."""

LISTS = Table("lists", {"user_id": _TEXT, "rank": _INT, "ad_id": _TEXT, "score": Column(pl.Float64())})
"""One row a recommended ad: ranks 1..K a user, no ad twice in a list."""

TAKEN_DOWN = Table("taken_down", {"ad_id": _TEXT})
"""One row an ad that nobody may be shown."""

SEEN = Table("seen", {"user_id": _TEXT, "ad_id": _TEXT})
"""One row an ad that a user may not be shown again."""

AD_SETS = Table("ad_sets", {"ad_set": _TEXT, "ad_id": _TEXT})
"""One row an ad of a named set of ads."""

USER_SETS = Table("user_sets", {"user_id": _TEXT, "ad_set": _TEXT})
"""One row a user who may be shown the ads of a set alone; a user without a row may be shown any ad."""


def matrix(lists: pl.Series, width: int) -> NDArray[np.int32]:
    """A column of lists of ``width`` integers each, such as codes or S-IDs, to ``(N, width)``."""
    return lists.list.to_array(width).to_numpy(writable=True).reshape(-1, width)


def read(table: Table, path: Path) -> pl.DataFrame:
    """Read a Parquet file, or a folder of its parts in the order of their names, and check it against its declaration.

    Raises:
        TableError: If a column is missing, unknown, of another type, or holds a null it may not, all faults at once;
            or if the folder holds no part.
    """
    if not path.is_dir():
        return check(table, pl.read_parquet(path), str(path))
    parts = sorted(path.glob("*.parquet"))
    if not parts:
        raise TableError(f"{path} is no {table.name} table: the folder holds no .parquet file; make its parts first")
    return pl.concat([read(table, part) for part in parts])


def scan(table: Table, path: Path) -> pl.LazyFrame:
    """The declared columns of a Parquet file too big to be read at once; nulls are not looked for.

    Raises:
        TableError: If a declared column is missing or of another type; further columns are left out.
    """
    frame = pl.scan_parquet(path)
    _refuse(table, _type_faults(table, frame.collect_schema()), str(path))
    return frame.select(list(table.columns))


def write(table: Table, frame: pl.DataFrame, path: Path) -> None:
    """Check a frame against its declaration and write it as Parquet.

    Raises:
        TableError: As for `read`; nothing is written then.
    """
    check(table, frame, f"the frame for {path}").write_parquet(path)


def check(table: Table, frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """The frame with its columns in the declared order; ``where`` is its name in an error.

    Raises:
        TableError: As for `read`.
    """
    faults = _type_faults(table, frame.schema)
    faults += [
        f"column {name!r} has {nulls} nulls, may have none"
        for name, column in table.columns.items()
        if name in frame.columns and not column.nullable and (nulls := frame[name].null_count())
    ]
    faults += [f"column {name!r} is not declared" for name in frame.columns if name not in table.columns]
    _refuse(table, faults, where)
    return frame.select(list(table.columns))


def _type_faults(table: Table, schema: pl.Schema) -> list[str]:
    faults = []
    for name, column in table.columns.items():
        if name not in schema:
            faults.append(f"column {name!r} is missing")
        elif schema[name] != column.dtype:
            faults.append(f"column {name!r} is {schema[name]}, must be {column.dtype}")
    return faults


def _refuse(table: Table, faults: list[str], where: str) -> None:
    if faults:
        raise TableError(f"{where} is no {table.name} table: " + "; ".join(faults))

"""A world by numbers: users, ads, and the groups of ads that interests are counted in."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables

Ints = NDArray[np.int64]

LEVELS = ("ad_id", "spu", "second_category", "first_category")
"""What ads are grouped by, from fine to coarse; the finest group of an ad is itself."""


class Known(NamedTuple):
    """N ads, U users, G groups of ads and V values of F profile fields."""

    ads: pl.Series
    """``(N,)`` ad_ids, sorted."""
    users: pl.Series
    """``(U,)`` user_ids, sorted."""
    groups: Ints
    """``(4, N)`` the group of each ad by level, -1 where the ad has none."""
    num_groups: int
    """G, over all levels."""
    category: Ints
    """``(N,)`` the ad's second category, else its first, in 0 .. C - 1; ads without either share one."""
    values: Ints
    """``(U, F)`` the value of each profile field in 0 .. V - 1; to be missing is a value too."""
    items: pl.DataFrame
    """One row an item and a group: ``domain``, ``item_id``, ``column`` in 0 .. 2G - 1 (contents from G on)."""
    behaviors: pl.DataFrame
    """BEHAVIORS, sorted by user_id."""
    fingerprint: str
    """Tells ads with other groups, or users with other profiles, from these."""

    @property
    def num_categories(self) -> int:
        """C."""
        return int(self.category.max(initial=-1)) + 1

    @property
    def num_values(self) -> int:
        """V."""
        return int(self.values.max(initial=-1)) + 1

    def behaviors_of(self, users: pl.Series) -> pl.DataFrame:
        """What some users did, in the table's order; found by halving, so it costs what these users did."""
        asked, known = users.unique().sort(), self.behaviors["user_id"]
        first, last = (known.search_sorted(asked, side).to_numpy().astype(np.int64) for side in ("left", "right"))
        counts = last - first
        return self.behaviors[np.repeat(last - counts.cumsum(), counts) + np.arange(counts.sum())]


def read(world: Path) -> Known:
    """Number a world's users, ads and groups; contents belong to the groups of ads whose names they bear."""
    ads = tables.read(tables.ADS, world / "ads.parquet").sort("ad_id")
    users = tables.read(tables.USERS, world / "users.parquet").sort("user_id")
    contents = tables.read(tables.CONTENTS, world / "contents.parquet")
    groups, parts, start = [], [], 0
    for level in LEVELS:
        names = ads[level].drop_nulls().unique().sort()
        numbers = pl.DataFrame({level: names}).with_columns(column=pl.int_range(start, start + len(names)))
        groups.append(ads.select(level).join(numbers, on=level, how="left", maintain_order="left")["column"])
        of_ads = ads.select(pl.lit("ad").alias("domain"), pl.col("ad_id").alias("item_id"), column=groups[-1])
        parts += [of_ads, _read_about(contents, level, numbers)]
        start += len(names)
    grouped = np.stack([column.fill_null(-1).to_numpy() for column in groups])
    values = _profiles(users.drop("user_id"))
    of_contents = pl.col("column") + start * (pl.col("domain") == "content")
    items = pl.concat(parts).drop_nulls("column").with_columns(of_contents).unique(maintain_order=True)
    return Known(
        ads=ads["ad_id"],
        users=users["user_id"],
        groups=grouped,
        num_groups=start,
        category=_numbers(ads.select(pl.coalesce("second_category", "first_category")).to_series()),
        values=values,
        items=items,
        behaviors=tables.read(tables.BEHAVIORS, world / "behaviors.parquet").sort("user_id", maintain_order=True),
        fingerprint=_fingerprint([*ads["ad_id"], *users["user_id"]], grouped, values),
    )


def codes(asked: pl.Series, known: pl.Series) -> Ints:
    """The place of each of ``asked`` in ``known``, which is unique; -1 for a stranger."""
    numbers = pl.DataFrame({"name": known}).with_row_index("code")
    found = pl.DataFrame({"name": asked}).join(numbers, on="name", how="left", maintain_order="left")
    return found["code"].cast(pl.Int64).fill_null(-1).to_numpy()


def _fingerprint(names: list[str], *numbers: Ints) -> str:
    digest = sha256("\0".join(names).encode(errors="surrogatepass"))
    for array in numbers:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _read_about(contents: pl.DataFrame, level: str, numbers: pl.DataFrame) -> pl.DataFrame:
    """What contents tell of a level: their SPU of SPUs, their category of both categories, nothing of single ads."""
    told = {"ad_id": pl.lit(None, pl.String()), "spu": pl.col("spu")}.get(level, pl.col("category"))
    named = contents.select(pl.lit("content").alias("domain"), "item_id", told.alias(level))
    return named.join(numbers, on=level, how="left", maintain_order="left").select("domain", "item_id", "column")


def _numbers(names: pl.Series) -> Ints:
    return names.fill_null("").rank("dense").cast(pl.Int64).to_numpy() - 1


def _profiles(fields: pl.DataFrame) -> Ints:
    columns, start = [], 0
    for field in fields.iter_columns():
        columns.append(_numbers(field) + start)
        start = int(columns[-1].max(initial=start - 1)) + 1
    return np.stack(columns, axis=1)

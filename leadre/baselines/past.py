"""What users did before their targets, as numbers: columns of ads."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.baselines.features import Tables
from leadre.data.split import histories

ALL_TIME = 36_500
"""A window in days that no behavior is older than."""
NONE = -1
"""Where a shorter row has nothing."""

Ints = NDArray[np.int64]


class Known(NamedTuple):
    """A world, its split, and the N ads of the catalog, sorted unless a network has an order of its own."""

    tables: Tables
    split: pl.DataFrame
    ads: Sequence[str]

    def targets(self, role: str) -> pl.DataFrame:
        """The targets of a role, ``user_id``, ``time`` and the ad's ``column``; by user and time.

        Train and valid targets are those in the catalog; a test target's ad is not told.
        """
        rows = self.split.filter(pl.col("role") == role).sort("user_id", "time", maintain_order=True)
        if role == "test":
            return rows.select("user_id", "time", column=pl.lit(NONE, pl.Int64))
        places = pl.DataFrame({"ad_id": self.ads}, schema={"ad_id": pl.String()}).with_row_index("column")
        joined = rows.join(places, on="ad_id", how="inner", maintain_order="left")
        return joined.select("user_id", "time", pl.col("column").cast(pl.Int64))


class Ragged(NamedTuple):
    """T rows of unlike length: row t is ``values[offsets[t]:offsets[t + 1]]``, the oldest first."""

    values: Ints
    offsets: Ints

    def latest(self, rows: Ints, *, most: int | Ints) -> Ints:
        """The last ``most`` numbers of some rows, ``(B, W)``, the oldest first; `NONE` fills up behind.

        ``most`` is one number for all rows, or ``(B,)`` one for each.

        Example:
            >>> Ragged(np.array([5, 6, 7, 8]), np.array([0, 3, 4])).latest(np.array([0, 1]), most=2).tolist()
            [[6, 7], [8, -1]]
        """
        stops = self.offsets[rows + 1]
        counts = np.minimum(stops - self.offsets[rows], most)
        places = np.arange(counts.max(initial=0))[None, :]
        inside = places < counts[:, None]
        found = self.values[np.where(inside, (stops - counts)[:, None] + places, 0)] if inside.any() else NONE
        return np.where(inside, found, NONE)


def nothing(rows: int) -> Ragged:
    """Rows without any number."""
    return Ragged(np.zeros(0, dtype=np.int64), np.zeros(rows + 1, dtype=np.int64))


def read_known(world: Path, catalog: Path) -> Known:
    """Read what a learned baseline may know.

    Raises:
        ValueError: If no train target is an ad of the catalog.
    """
    known = Known(
        read_tables(world),
        tables.read(tables.SPLIT, world / "split.parquet"),
        sorted(tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"].to_list()),
    )
    if known.targets("train").is_empty():
        raise ValueError("0 train targets are ads of the catalog: a learned baseline needs some, include their ads")
    return known


def read_tables(world: Path) -> Tables:
    """Read the tables that baselines are made of."""
    return Tables(
        ads=tables.read(tables.ADS, world / "ads.parquet"),
        users=tables.read(tables.USERS, world / "users.parquet"),
        contents=tables.read(tables.CONTENTS, world / "contents.parquet"),
        behaviors=tables.read(tables.BEHAVIORS, world / "behaviors.parquet"),
    )


def past(
    behaviors: pl.DataFrame, targets: pl.DataFrame, items: Sequence[str], *, domain: str, window_days: int = ALL_TIME
) -> Ragged:
    """The items of a domain that each target's user had to do with strictly before the target.

    Args:
        behaviors: A BEHAVIORS frame.
        targets: T rows with columns ``user_id`` and ``time``.
        items: N ids, whose places are the values; behaviors with other items are passed over.
        domain: ``ad`` or ``content``.
        window_days: Older behaviors are not seen.
    """
    places = pl.DataFrame({"item_id": items}, schema={"item_id": pl.String()}).with_row_index("place")
    asked = behaviors.filter(pl.col("domain") == domain).join(places, on="item_id", how="semi", maintain_order="left")
    rows = histories(asked, targets, window_days).join(places, on="item_id", how="left", maintain_order="left")
    counts = np.bincount(rows["target"].to_numpy(), minlength=targets.height)
    return Ragged(rows["place"].cast(pl.Int64).to_numpy(), np.concatenate([[0], np.cumsum(counts)]))

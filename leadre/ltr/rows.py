"""What the ranker learns from: ads shown to its users in train time, clicked or not."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.ltr.known import Ints, Known, codes

Doubles = NDArray[np.float64]

log = logging.getLogger(__name__)


class Rows(NamedTuple):
    """R ads shown; ``(R,)`` each."""

    user: Ints
    ad: Ints
    time: Ints
    clicked: NDArray[np.bool_]
    ecpm: Doubles
    """NaN where none is known; a click without one counts as 1."""
    weight: Doubles
    """How many rows it stands for."""

    def part(self, chosen: NDArray[np.bool_] | Ints) -> "Rows":
        """Some of the rows."""
        return Rows._make(column[chosen] for column in self)


class Source(NamedTuple):
    """Where a world's rows come from."""

    clicks: str
    """``impressions`` or ``behaviors``."""
    others: str
    """``impressions`` or ``random``."""


def shown(
    known: Known, world: Path, users: pl.Series, *, negatives: int, rng: np.random.Generator
) -> tuple[Rows, Source]:
    """The rows of some users in train time: strictly before their own valid target, or all where they have none.

    Impressions that say whether they were clicked are the rows. If none of them was clicked, ad behaviors are the
    clicks, of ECPM 1; if all were, ``negatives`` ads drawn from all ads for the moment of each click are the others,
    and stand for all ads (our choice). A row whose ECPM is negative or no number has none.

    Args:
        known: The world by numbers.
        world: Its folder.
        users: Whose rows.
        negatives: Ads drawn for each click where no impression went without one.
        rng: Draws them.
    """
    split = tables.read(tables.SPLIT, world / "split.parquet")
    impressions = tables.read(tables.IMPRESSIONS, world / "impressions.parquet").drop_nulls("clicked")
    seen = train_time(impressions.filter(pl.col("user_id").is_in(users.implode())), split)
    clicks, others = seen.filter("clicked"), seen.filter(~pl.col("clicked"))
    source = Source("impressions", "impressions")
    if clicks.is_empty():
        acted = known.behaviors.filter((pl.col("domain") == "ad") & pl.col("user_id").is_in(users.implode()))
        clicks = train_time(acted, split).select("user_id", "time", ad_id="item_id", ecpm=pl.lit(1.0))
        source = source._replace(clicks="behaviors")
    positive = _numbered(known, clicks, clicked=True)
    if others.is_empty():
        source = source._replace(others="random")
        negative = _drawn(positive, len(known.ads), negatives, rng)
    else:
        negative = _numbered(known, others, clicked=False)
    return Rows._make(np.concatenate(columns) for columns in zip(positive, negative, strict=True)), source


def train_time(events: pl.DataFrame, split: pl.DataFrame) -> pl.DataFrame:
    """The events strictly before their user's valid target; all events of users without one.

    Args:
        events: Columns ``user_id`` and ``time`` and any others.
        split: A SPLIT frame.
    """
    limits = split.filter(pl.col("role") == "valid").select("user_id", limit="time")
    dated = events.join(limits, on="user_id", how="left", maintain_order="left")
    return dated.filter(pl.col("limit").is_null() | (pl.col("time") < pl.col("limit"))).drop("limit")


def sample(rows: Rows, negatives: int, rng: np.random.Generator) -> Rows:
    """All clicks, and at most ``negatives`` others for each; the others kept stand for those that are not.

    Example:
        >>> ones = np.ones(5, dtype=np.int64)
        >>> rows = Rows(ones, ones, ones, np.array([True, False, False, False, False]), 1.0 * ones, 1.0 * ones)
        >>> sample(rows, 2, np.random.default_rng(0)).weight.tolist()
        [1.0, 2.0, 2.0]
    """
    clicks, others = np.flatnonzero(rows.clicked), np.flatnonzero(~rows.clicked)
    size = min(len(others), max(1, negatives * len(clicks)))
    kept = np.sort(rng.choice(others, size, replace=False))
    weight = rows.weight.copy()
    weight[others] *= len(others) / max(size, 1)
    return rows._replace(weight=weight).part(np.sort(np.concatenate([clicks, kept])))


def _numbered(known: Known, events: pl.DataFrame, *, clicked: bool) -> Rows:
    ecpm = events["ecpm"].to_numpy().astype(np.float64)
    bad = ~(np.isfinite(ecpm) & (ecpm >= 0))
    if bad.any():
        log.warning("%s impressions have an ECPM that is negative or no number: none is learned from them", bad.sum())
    return Rows(
        user=codes(events["user_id"], known.users),
        ad=codes(events["ad_id"], known.ads),
        time=events["time"].to_numpy(),
        clicked=np.full(events.height, clicked),
        ecpm=np.where(bad, np.nan, ecpm),
        weight=np.ones(events.height),
    )


def _drawn(clicks: Rows, num_ads: int, negatives: int, rng: np.random.Generator) -> Rows:
    count = negatives * len(clicks.user)
    return Rows(
        user=np.repeat(clicks.user, negatives),
        ad=rng.integers(0, num_ads, count),
        time=np.repeat(clicks.time, negatives),
        clicked=np.zeros(count, dtype=bool),
        ecpm=np.full(count, np.nan),
        weight=np.full(count, num_ads / negatives),
    )

"""The split of behaviors in time, and the history that a target may see (LEADRE 5.1.1)."""

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from leadre import tables

DAY = 86_400

Ints = NDArray[np.int64]


def leave_one_out(behaviors: pl.DataFrame, *, min_ads: int) -> pl.DataFrame:
    """Each user's last ad behavior is the test target, the last but one the valid target, earlier ones train targets.

    A user with fewer than ``min_ads`` ad behaviors has train targets alone. Behaviors of the same time keep the
    table's order. An ad behavior at the very time of the valid target, if it is neither of the last two, is no target
    at all: training would then see the moment that the model is judged at (our choice, as is ``min_ads``).

    Args:
        behaviors: A BEHAVIORS frame in any order.
        min_ads: How many ad behaviors a user needs to be tested.

    Returns:
        A SPLIT frame, sorted by user and time.

    Raises:
        ValueError: If ``min_ads`` is below 2, since a tested user has a test and a valid target.
    """
    if min_ads < 2:
        raise ValueError(f"min_ads is {min_ads}, but test and valid take one ad behavior each: use at least 2")
    from_end = pl.int_range(pl.len()).reverse().over("user_id")
    is_tested = pl.len().over("user_id") >= min_ads
    valid_time = pl.col("time").get(-2, null_on_oob=True).over("user_id")
    role = (
        pl.when(~is_tested)
        .then(pl.lit("train"))
        .when(from_end == 0)
        .then(pl.lit("test"))
        .when(from_end == 1)
        .then(pl.lit("valid"))
        .when(pl.col("time") < valid_time)
        .then(pl.lit("train"))
    )
    ads = behaviors.filter(pl.col("domain") == "ad").sort("user_id", "time", maintain_order=True)
    targets = ads.select("user_id", role.alias("role"), pl.col("item_id").alias("ad_id"), "time")
    return targets.filter(pl.col("role").is_not_null()).cast(tables.SPLIT.schema)


def histories(behaviors: pl.DataFrame, targets: pl.DataFrame, window_days: int) -> pl.DataFrame:
    """What each target's user did strictly before the target's time, and no longer ago than the window.

    Args:
        behaviors: A BEHAVIORS frame in any order.
        targets: A frame with columns ``user_id`` and ``time``, such as a SPLIT frame.
        window_days: The window in days of 86,400 seconds; a behavior exactly that old is in it.

    Returns:
        Columns ``target`` (row of ``targets``, Int64), ``item_id``, ``domain``, ``action``, ``time``; sorted by target
        and time, behaviors of the same time in the table's order. A target without history has no rows.

    Raises:
        ValueError: If ``window_days`` is below 1, or if times lie absurdly far apart.
    """
    if window_days < 1:
        raise ValueError(
            f"window_days is {window_days}, but a history needs some time before its target: use at least 1"
        )
    users = behaviors["user_id"].to_arrow().dictionary_encode()
    asking = pc.fill_null(pc.index_in(targets["user_id"].to_arrow(), users.dictionary), -1)
    known, unknown = (codes.to_numpy().astype(np.int64) for codes in (users.indices, asking))
    times, asked = behaviors["time"].to_numpy(), targets["time"].to_numpy()
    # One number for user and time: those of a user lie together, in the order of time.
    first, last = (int(times.min()), int(times.max())) if len(times) else (0, 0)
    width = last - first + 2
    if len(users.dictionary) * width >= 2**63:
        raise ValueError(
            f"time reaches from {first} to {last} in behaviors, too far to tell {len(users.dictionary)} users apart: "
            "give UTC seconds"
        )
    keys = known * width + (times - first)
    order = pl.DataFrame({"key": keys}).select(pl.arg_sort_by("key", maintain_order=True))["key"].to_numpy()
    keys = keys[order]
    spans = [np.clip(bound, first, last + 1) - first for bound in (asked - window_days * DAY, asked)]
    starts, ends = (np.searchsorted(keys, unknown * width + span) for span in spans)
    counts = np.maximum(ends - starts, 0)
    target = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(target)) + np.repeat(starts - np.cumsum(counts) + counts, counts)
    rows: pl.DataFrame = behaviors.select("item_id", "domain", "action", "time")[order[places]]
    return rows.insert_column(0, pl.Series("target", target, dtype=pl.Int64))

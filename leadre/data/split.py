"""The split of behaviors in time, and the history that a target may see (LEADRE 5.1.1)."""

import polars as pl

from leadre import tables

DAY = 86_400


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
        ValueError: If ``window_days`` is below 1.
    """
    if window_days < 1:
        raise ValueError(
            f"window_days is {window_days}, but a history needs some time before its target: use at least 1"
        )
    ordered = behaviors.sort("user_id", "time", maintain_order=True)
    starts = _places(ordered, targets["user_id"], targets["time"] - window_days * DAY)
    ends = _places(ordered, targets["user_id"], targets["time"])
    spans = pl.DataFrame({"start": starts, "end": ends}).with_row_index("target")
    taken = spans.filter(pl.col("start") < pl.col("end")).select(
        pl.col("target").cast(pl.Int64), pl.int_ranges("start", "end").alias("row")
    )
    taken = taken.explode("row")
    rows = ordered.select("item_id", "domain", "action", "time")[taken["row"]]
    return pl.concat([taken.select("target"), rows], how="horizontal")


def _places(ordered: pl.DataFrame, users: pl.Series, times: pl.Series) -> pl.Series:
    """For each (user, time) the number of behaviors that come before it, those of the same user and time excluded."""
    asked = pl.DataFrame({"user_id": users, "time": times}).with_row_index("row").with_columns(given=pl.lit(0))
    known = ordered.select(pl.lit(None, dtype=pl.UInt32()).alias("row"), "user_id", "time", given=pl.lit(1))
    # Sorted together, the asked before the given at equal times: the running count of the given is the place.
    merged = pl.concat(
        [asked.select("user_id", "time", "given", "row"), known.select("user_id", "time", "given", "row")]
    )
    placed = merged.sort("user_id", "time", "given").with_columns(pl.col("given").cum_sum().cast(pl.Int64))
    return placed.filter(pl.col("row").is_not_null()).sort("row")["given"]

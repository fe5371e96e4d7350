"""Features of a user at a moment and an ad: how much of what the user did lately was about such ads."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_array

from leadre.data.split import histories
from leadre.ltr.known import LEVELS, Ints, Known
from leadre.ltr.rows import Rows
from leadre.ltr.statistics import Floats, Statistics

DAY = 86_400
ROWS_AT_ONCE = 4096
"""Rows whose users' histories are held at once."""
_OF_DOMAIN = (LEVELS, LEVELS[1:])
"""Of ads and of contents, which tell nothing of single ads."""


class Interests(NamedTuple):
    """What T targets' users did before: behaviors by group of ads, each counting ``2^(-age / half-life)``."""

    counts: tuple[Any, ...]
    """For each half-life a sparse ``(T, 2G)`` array."""
    totals: tuple[Floats, ...]
    """For each half-life ``(T, 2)``: all behaviors on ads, all on contents."""


def interests(known: Known, targets: pl.DataFrame, *, window_days: int, half_lives_days: Sequence[float]) -> Interests:
    """Count the behaviors strictly before each target's time.

    Args:
        known: The world by numbers.
        targets: T rows with columns ``user_id`` and ``time``.
        window_days: Behaviors older than this are not seen.
        half_lives_days: After how many days a behavior counts half.
    """
    now = targets.select("time").with_row_index("target").select(pl.col("target").cast(pl.Int64), now="time")
    own = known.behaviors_of(targets["user_id"])
    past = histories(own, targets, window_days).join(now, on="target", how="left", maintain_order="left")
    past = past.select("target", "domain", "item_id", age=(pl.col("now") - pl.col("time")) / DAY)
    about = past.join(known.items, on=["domain", "item_id"], how="inner", maintain_order="left")
    shape = targets.height, 2 * known.num_groups
    counts, totals = [], []
    for half_life in half_lives_days:
        counts.append(_sums(about, about["column"], half_life, shape))
        domain = (past["domain"] == "content").cast(pl.Int64)
        totals.append(_sums(past, domain, half_life, (targets.height, 2)).toarray())
    return Interests(tuple(counts), tuple(totals))


def describe(
    known: Known,
    statistics: Statistics,
    done: Interests,
    *,
    fold: Ints,
    target: Ints,
    user: Ints,
    ad: Ints,
    smoothing: float,
) -> Floats:
    """The features of pairs of a target and an ad.

    For each half-life, domain and level the log of ``(count + s p) / ((total + s) p)``: how much more of what the user
    did is about the ad's group than of what the average user does (share p), 0 where nothing is known; logs of the
    totals; how the values of the user's profile move the click rate of the ad's category; the ad's statistics.

    Args:
        known: The world by numbers.
        statistics: Of the ranker's users.
        done: What the users of T targets did.
        fold: Which part of ``statistics`` to look up.
        target: Rows of ``done``.
        user: The number of each target's user; -1 for a stranger, whose profile is unknown.
        ad: Numbers of ads. All four are of shapes that broadcast: ``(R,)`` each, or ``(T, 1)`` and ``(N,)``.
        smoothing: Behaviors of the average user that are added to each user's.

    Returns:
        ``(..., F)``.
    """
    fold, target, user, ad = np.broadcast_arrays(fold, target, user, ad)
    columns: list[NDArray[Any]] = []
    for counts, totals in zip(done.counts, done.totals, strict=True):
        for domain, levels in enumerate(_OF_DOMAIN):
            total = totals[target, domain]
            for level in levels:
                group = known.groups[LEVELS.index(level)][ad]
                column = np.maximum(group, 0) + domain * known.num_groups
                found = np.asarray(counts[target.ravel(), column.ravel()]).reshape(ad.shape)
                prior = statistics.prior[column]
                lift = np.log((found + smoothing * prior) / ((total + smoothing) * prior))
                columns.append(np.where(group >= 0, lift, 0))
            columns.append(np.log1p(total))
    lifts = statistics.profiles[fold[..., None], known.values[user], known.category[ad][..., None]]  # (..., F)
    stacked = [np.stack(columns, axis=-1), np.where(user[..., None] >= 0, lifts, 0), statistics.ads[fold, ad]]
    return np.concatenate(stacked, axis=-1, dtype=np.float32)


def describe_rows(
    known: Known,
    statistics: Statistics,
    rows: Rows,
    *,
    fold: Ints,
    window_days: int,
    half_lives_days: Sequence[float],
    smoothing: float,
) -> Floats:
    """The features ``(R, F)`` of R ads shown, each at its time, with the statistics of its fold ``(R,)``."""
    parts = []
    for start in range(0, len(rows.user), ROWS_AT_ONCE):
        few = np.arange(start, min(start + ROWS_AT_ONCE, len(rows.user)))
        targets = pl.DataFrame({"user_id": known.users[rows.user[few]], "time": rows.time[few]})
        told = describe(
            known,
            statistics,
            interests(known, targets, window_days=window_days, half_lives_days=half_lives_days),
            fold=fold[few],
            target=few - start,
            user=rows.user[few],
            ad=rows.ad[few],
            smoothing=smoothing,
        )
        parts.append(told)
    return np.concatenate(parts)


def _sums(events: pl.DataFrame, column: pl.Series, half_life: float, shape: tuple[int, int]) -> Any:  # noqa: ANN401
    weight = (2.0 ** (-events["age"].to_numpy() / half_life)).astype(np.float32)
    sums = csr_array((weight, (events["target"].to_numpy(), column.to_numpy())), shape=shape)
    sums.sum_duplicates()
    return sums

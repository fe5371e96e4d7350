"""Two recommenders without parameters: what everybody clicked, and what the user clicked before."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.baselines.lists import frame, ranked


def train_counts(split: pl.DataFrame, ads: Sequence[str]) -> NDArray[np.float64]:
    """How often each ad is a train target, ``(N,)``: all that is known of it at training time."""
    counted = split.filter(pl.col("role") == "train").group_by("ad_id").len()
    joined = pl.DataFrame({"ad_id": ads}, schema={"ad_id": pl.String()}).join(
        counted, on="ad_id", how="left", maintain_order="left"
    )
    return joined["len"].fill_null(0).to_numpy().astype(np.float64)


def popular_lists(users: Sequence[str], ads: Sequence[str], counts: NDArray[np.float64], *, size: int) -> pl.DataFrame:
    """The same most clicked ads for everybody (LISTS)."""
    one = ranked([""], ads, counts[None, :], size=size)
    ranks, names, scores = (np.tile(one[name].to_numpy(), len(users)) for name in ("rank", "ad_id", "score"))
    return frame(np.repeat(np.array(users, dtype=object), one.height), ranks, names, scores)


def own_history_lists(
    users: Sequence[str],
    ads: Sequence[str],
    counts: NDArray[np.float64],
    history: pl.DataFrame,
    *,
    size: int,
) -> pl.DataFrame:
    """Each user's own past ads, the most recent first, without duplicates, then the most clicked ads.

    Args:
        users: U user ids.
        ads: N ad ids of the catalog, sorted; a past ad that is not among them is passed over.
        counts: Train counts of the ads, ``(N,)``.
        history: Columns ``target`` (row of ``users``), ``item_id``, ``domain``, chronological.
        size: Length of a list.

    Returns:
        A LISTS frame; the score is minus the rank.
    """
    size, known = min(size, len(ads)), set(ads)
    popular = [ads[place] for place in np.argsort(-counts, kind="stable")[:size]]
    past = history.filter(pl.col("domain") == "ad").group_by("target", maintain_order=True).agg("item_id")
    own = dict(past.iter_rows())
    rows = [
        _first_distinct([ad for ad in reversed(own.get(row, [])) if ad in known] + popular, size)
        for row in range(len(users))
    ]
    ranks = np.tile(np.arange(1, size + 1), len(users))
    names = np.array([ad for row in rows for ad in row], dtype=object)
    return frame(np.repeat(np.array(users, dtype=object), size), ranks, names, -ranks.astype(np.float64))


def _first_distinct(items: list[str], size: int) -> list[str]:
    return list(dict.fromkeys(items))[:size]

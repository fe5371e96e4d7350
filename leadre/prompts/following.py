"""The ads that a user acts on after a target: what a response of several ads names (LEADRE 6, first future work)."""

from itertools import count

import numpy as np
import polars as pl
from numpy.typing import NDArray

Places = NDArray[np.int64]


def following(targets: pl.DataFrame, *, ads: int) -> pl.Series:
    """For each target the user's next ``ads`` ads after it, in the order of time and none twice; fewer at the end.

    Args:
        targets: Columns ``user_id`` and ``ad_id``, sorted by user, and by time within a user. What may not be named,
            such as the ads that a user is tested on, must not be among them.
        ads: How many at most.

    Returns:
        ``(N,)`` lists of ad_ids, beside the rows of ``targets``.
    """
    user = targets["user_id"].rle_id().to_numpy()
    ad = targets.select(pl.struct("user_id", "ad_id").rank("dense")).to_series().to_numpy()
    earlier = _earlier(ad)
    waiting, found = np.arange(len(user)), np.zeros(len(user), dtype=np.int64)
    rows, places = [waiting[:0]], [waiting[:0]]
    for step in count(1):
        waiting = waiting[(found[waiting] < ads) & (waiting + step < len(user))]
        waiting = waiting[user[waiting] == user[waiting + step]]
        if not len(waiting):
            break
        new = waiting[earlier[waiting + step] < waiting]  # neither the target itself nor named after it
        found[new] += 1
        rows.append(new)
        places.append(new + step)
    order = np.argsort(np.concatenate(rows), kind="stable")
    named = {"row": np.concatenate(rows)[order], "ads": targets["ad_id"].gather(np.concatenate(places)[order])}
    return _lists(pl.DataFrame(named), len(user))


def shuffled(targets: pl.DataFrame, lists: pl.Series, *, seed: int) -> pl.Series:
    """Hand the lists that are not empty to other users' targets: a control that keeps the ads and breaks their order.

    What follows a target then tells how often ads are named and which of them go together, and nothing of its own
    user. A target that is named in the list it is handed leaves it.

    Args:
        targets: Columns ``user_id`` and ``ad_id``, N rows.
        lists: ``(N,)`` what `following` gives.
        seed: 0 is a seed.

    Raises:
        ValueError: If one user has more than half of the lists, so that not every list can go to another user.
    """
    rows = np.flatnonzero((lists.list.len() > 0).to_numpy())
    user = targets["user_id"].rank("dense").to_numpy()[rows]
    most = int(np.bincount(user).max(initial=0))
    if 2 * most > len(rows):
        raise ValueError(
            f"one user has {most} of the {len(rows)} responses of several ads, so they cannot be shuffled between "
            "users: set prompts.next_n_control to null, or give more users"
        )
    generator = np.random.default_rng(seed)
    turn = generator.permutation(user.max(initial=0) + 1)
    order = rows[np.lexsort((generator.random(len(rows)), turn[user]))]  # users in any order, each one's rows together
    given = np.arange(len(lists))
    given[order] = np.roll(order, most)  # farther than any user's rows reach
    handed = pl.DataFrame({"row": np.arange(len(lists)), "target": targets["ad_id"], "ads": lists.gather(given)})
    return _lists(handed.explode("ads").filter(pl.col("ads") != pl.col("target")), len(lists))


def _earlier(values: Places) -> Places:
    """For each place the last one before it with the same value, -1 where there is none."""
    order = np.argsort(values, kind="stable")
    before = np.full(len(values), -1)
    same = values[order[1:]] == values[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


def _lists(named: pl.DataFrame, num_rows: int) -> pl.Series:
    """The ``ads`` of each ``row``, in their order; an empty list where a row has none."""
    filled = named.group_by("row", maintain_order=True).agg("ads")
    every = pl.DataFrame({"row": np.arange(num_rows)})
    return every.join(filled, on="row", how="left", maintain_order="left")["ads"].fill_null([])

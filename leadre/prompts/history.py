"""What targets may see of behaviors and of negative feedback: the newest of them, and how often each name comes.

Both take rows from spans ``[since, until)`` of a user's time, found by binary search, so a user with very many
behaviors costs what is shown of them and no more.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

COUNTED_AT_A_TIME = 1_000_000
"""Pairs of a target and a name, about."""

Ints = NDArray[np.int64]


def newest(behaviors: pl.DataFrame, targets: pl.DataFrame, *, most: Mapping[str, int]) -> pl.DataFrame:
    """The newest behaviors of each target's user in the target's span of time.

    Args:
        behaviors: A BEHAVIORS frame, sorted by user, and by time within a user.
        targets: Columns ``target``, ``user_id``, ``since`` and ``time``; behaviors with since <= time < the target's
            are seen.
        most: How many of each domain; other domains are not seen.

    Returns:
        Columns ``target``, ``item_id``, ``domain``, ``action``, ``time``, sorted by target (in the order given) and
        then as in ``behaviors``. A target that sees nothing has no row.
    """
    users, asked = _codes(behaviors["user_id"], targets["user_id"])
    domain, times = behaviors["domain"], behaviors["time"].to_numpy()
    taken = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for name, number in most.items():
        rows = np.flatnonzero((domain == name).to_numpy())
        starts, ends = _spans(users[rows], times[rows], asked, targets)
        place, row = _ranges(np.maximum(starts, ends - number), ends)
        taken.append((place, rows[row]))
    places, rows = (np.concatenate(parts) for parts in zip(*taken, strict=True))
    order = np.lexsort((rows, places))
    seen = behaviors.select("item_id", "domain", "action", "time")[rows[order]]
    return seen.insert_column(0, targets["target"].gather(places[order]))


def any_seen(behaviors: pl.DataFrame, targets: pl.DataFrame) -> pl.Series:
    """Whether each target sees any behavior, ``(N,)``; arguments as of `newest`."""
    users, asked = _codes(behaviors["user_id"], targets["user_id"])
    starts, ends = _spans(users, behaviors["time"].to_numpy(), asked, targets)
    return pl.Series(starts < ends)


def frequent(feedback: pl.DataFrame, targets: pl.DataFrame, *, most: int) -> pl.DataFrame:
    """The names that come most often in each target's span of time: the most frequent first, ties by name.

    Counts are differences of running counts of each user and name, so feedback is never spread over the targets: the
    cost grows with the targets times the names of their users.

    Args:
        feedback: Columns ``user_id``, ``name`` (null is not counted) and ``time``, in any order.
        targets: Columns ``target``, ``user_id``, ``since`` and ``time``, as of `newest`.
        most: How many names of each target.

    Returns:
        Columns ``target``, ``name`` and ``times``, sorted by target (in the order given) and rank. A target without
        any has no row.
    """
    named = feedback.drop_nulls("name").join(targets, on="user_id", how="semi")
    names = named.select(pl.col("name").unique().sort()).with_row_index("rank")
    rows = named.join(names, on="name").select("user_id", "time", pl.col("rank").cast(pl.Int64))
    rows = rows.sort("user_id", "rank", "time")
    users, asked = _codes(rows["user_id"], targets["user_id"])
    rank_of, times = rows["rank"].to_numpy(), rows["time"].to_numpy()
    new = np.ones(len(users), dtype=np.bool_)
    new[1:] = (users[1:] != users[:-1]) | (rank_of[1:] != rank_of[:-1])
    runs, first = np.cumsum(new) - 1, np.flatnonzero(new)  # a run: the feedback of one user on one name
    starts, ends = (np.searchsorted(users[first], asked + step) for step in (0, 1))  # runs of a target's user
    counted = [_COUNTED.clear()]
    for some in _slices(ends - starts):
        place, run = _ranges(starts[some], ends[some])
        place += some.start
        before, until = _spans(runs, times, run, targets.select("since", "time")[place])
        counts = pl.DataFrame({"place": place, "rank": rank_of[first[run]], "times": until - before})
        ranked = counts.filter(pl.col("times") > 0).sort("place", "times", "rank", descending=[False, True, False])
        counted.append(ranked.group_by("place", maintain_order=True).head(most))
    found = pl.concat(counted)
    return pl.DataFrame(
        [
            targets["target"].gather(found["place"]),
            names["name"].gather(found["rank"]),
            found["times"],
        ]
    )


_COUNTED = pl.DataFrame(schema={"place": pl.Int64, "rank": pl.Int64, "times": pl.Int64})


def _codes(users: pl.Series, asked: pl.Series) -> tuple[Ints, Ints]:
    """Users as numbers: ascending over ``users``, whose equal rows stand together; -1 for asked users not in it."""
    numbers = users.rle_id().cast(pl.Int64)
    known = pl.DataFrame({"user_id": users, "number": numbers}).unique("user_id")
    found = asked.to_frame("user_id").join(known, on="user_id", how="left", maintain_order="left")
    return numbers.to_numpy(), found["number"].fill_null(-1).to_numpy()


def _spans(groups: Ints, times: Ints, asked: Ints, targets: pl.DataFrame) -> tuple[Ints, Ints]:
    """Where the rows of each asked group in ``[since, time)`` start and end, ``(N,)`` each.

    Args:
        groups: ``(R,)`` ascending.
        times: ``(R,)`` ascending within a group.
        asked: ``(N,)`` groups, -1 for none.
        targets: N rows with ``since`` and ``time``.
    """
    moments = np.sort(times)  # ranks in place of seconds, so that no key overflows
    steps = len(moments) + 1
    keys = groups * steps + np.searchsorted(moments, times)
    starts, ends = (
        np.searchsorted(keys, asked * steps + np.searchsorted(moments, targets[name].to_numpy()))
        for name in ("since", "time")
    )
    return starts, np.maximum(starts, ends)


def _ranges(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """All numbers of each range ``[start, end)``, one range after the other: the range's place, and the number."""
    lengths = ends - starts
    place = np.repeat(np.arange(len(lengths)), lengths)
    skipped = np.cumsum(lengths) - lengths
    return place, np.arange(len(place)) - skipped[place] + starts[place]


def _slices(costs: Ints) -> Iterator[slice]:
    """Cut rows into slices of about `COUNTED_AT_A_TIME` in all; a row is never cut."""
    cuts = np.flatnonzero(np.diff(np.cumsum(costs) // COUNTED_AT_A_TIME)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(costs)], strict=True):
        yield slice(start, end)

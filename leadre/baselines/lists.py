"""Scores to ranked lists with a total order: the score first, then the ad_id."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables

CHUNK = 1024
"""Users ranked at once; bounds the memory at CHUNK x N scores."""


def ranked(users: Sequence[str], ads: Sequence[str], scores: NDArray[np.float64], *, size: int) -> pl.DataFrame:
    """The ``size`` ads of highest score for each user, ties by ad_id.

    Args:
        users: U user ids.
        ads: N ad ids, sorted.
        scores: ``(U, N)``.
        size: Length of a list; a catalog of fewer ads gives shorter lists.

    Returns:
        A LISTS frame, in the order of ``users``.

    Raises:
        ValueError: If the ads are not sorted, for ties would then be broken by their place.

    Example:
        >>> ranked(["u"], ["a", "b", "c"], np.array([[1.0, 2.0, 2.0]]), size=2)["ad_id"].to_list()
        ['b', 'c']
    """
    names = np.array(ads, dtype=object)
    if any(left >= right for left, right in pairwise(ads)):
        raise ValueError("ads are not sorted and unique, so ties cannot be broken by ad_id: sort them first")
    size = min(size, len(names))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
    return frame(
        np.repeat(np.array(users, dtype=object), size),
        np.tile(np.arange(1, size + 1), len(users)),
        names[order].ravel(),
        np.take_along_axis(scores, order, axis=1).ravel(),
    )


def ranked_in_chunks(
    users: Sequence[str],
    ads: Sequence[str],
    scores: Callable[[int, int], NDArray[np.float64]],
    *,
    size: int,
    chunk: int = CHUNK,
) -> pl.DataFrame:
    """The lists of `ranked`, without the scores of all users at once.

    Args:
        users: U user ids.
        ads: N ad ids, sorted.
        scores: Gives the scores of ``users[start:stop]``, ``(stop - start, N)``.
        size: Length of a list.
        chunk: How many users are ranked at once.
    """
    starts = range(0, max(len(users), 1), chunk)  # nobody: one empty chunk, so that there is a frame
    stops = (min(start + chunk, len(users)) for start in starts)
    return pl.concat(
        ranked(users[start:stop], ads, scores(start, stop), size=size)
        for start, stop in zip(starts, stops, strict=True)
    )


def frame(
    users: NDArray[np.object_], ranks: NDArray[np.int64], ads: NDArray[np.object_], scores: NDArray[np.float64]
) -> pl.DataFrame:
    """A LISTS frame of columns of equal length."""
    columns = {"user_id": users, "rank": ranks, "ad_id": ads, "score": scores.astype(np.float64)}
    return pl.DataFrame([pl.Series(name, columns[name], dtype=tables.LISTS.schema[name]) for name in columns])

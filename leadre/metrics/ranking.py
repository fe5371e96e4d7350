"""Hits in recommended lists: HR@K, NDCG@K and LTRR@K of fixed-width integer lists.

One contract for all functions. ``lists`` is ``(N, W)``: the catalog rows recommended to N users, best first,
and -1 where there is no ad. Duplicates go first, then the list is cut at K; a place without an ad is a miss
and is never rescaled away. ``truths`` is ``(N, G)``: the ads that count as hits, padded with -1, in any order.
Each function gives one number a user, so that the mean, its interval and paired comparisons are left to the
caller; a user without a single truth gets NaN, which says "not scored" and is not 0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]

NO_AD = -1
"""Stands where a list has no ad."""


def deduplicate(lists: Rows) -> Rows:
    """Keep the first of each ad in a list; what stands behind a dropped one moves up.

    Args:
        lists: ``(N, W)`` catalog rows; a -1 between ads keeps its place, since it is a miss there.

    Returns:
        ``(N, W)``, filled up with -1.

    Raises:
        ValueError: If ``lists`` is not ``(N, W)`` or holds a number below -1.

    Example:
        >>> deduplicate(np.array([[5, 5, -1, 7, 5, 8]])).tolist()
        [[5, -1, 7, 8, -1, -1]]
    """
    _check(lists, "lists")
    duplicate = ~_first_places(lists) & (lists != NO_AD)
    kept_first = np.argsort(duplicate, axis=1, kind="stable")
    return np.take_along_axis(np.where(duplicate, NO_AD, lists), kept_first, axis=1)


def hits(lists: Rows, truths: Rows, *, k: int) -> NDArray[np.bool_]:
    """Say at which of the first K places a truth stands.

    Returns:
        ``(N, K)``; False too where the list has ended.

    Raises:
        ValueError: If ``k`` is below 1, or the arrays do not belong together.
    """
    check_pair(lists, truths, k)
    top = deduplicate(lists)[:, :k]
    found = np.zeros((len(lists), k), dtype=bool)
    found[:, : top.shape[1]] = among(top, truths)
    return found


def hit_rate(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """HR@K: 1 for a user with any truth among the first K, else 0 (LEADRE 5.1.2).

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> hit_rate(np.array([[5, 7], [7, -1]]), np.array([[7], [9]]), k=2).tolist()
        [1.0, 0.0]
    """
    return np.where(_scored(truths), hits(lists, truths, k=k).any(axis=1), np.nan)


def ndcg(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """NDCG@K with gain 1 and discount log2(rank + 1); the ideal list has its min(truths, K) hits in front.

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> ndcg(np.array([[5, 7, 9]]), np.array([[9]]), k=3).tolist()
        [0.5]
    """
    gains = 1 / np.log2(np.arange(2, k + 2))
    dcg = hits(lists, truths, k=k) @ gains
    ideal = np.concatenate([[np.nan], np.cumsum(gains)])
    return np.asarray(dcg / ideal[np.minimum(_num_truths(truths), k)])


def recall(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """The share of all truths that the first K places hold.

    With the labels of another retrieval strategy as truths this is LTRR@K (LEADRE 5.2.3). With M labels it
    cannot exceed K / M; see `capped_recall`.

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> recall(np.array([[5, 7, 9]]), np.array([[9, 5, 1, 2]]), k=2).tolist()
        [0.25]
    """
    return share(hits(lists, truths, k=k).sum(axis=1), _num_truths(truths), empty=np.nan)


def capped_recall(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """Recall against the most truths that K places can hold, so that a perfect list reaches 1.

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> capped_recall(np.array([[5, 7, 9]]), np.array([[9, 5, 1, 2]]), k=2).tolist()
        [0.5]
    """
    return share(hits(lists, truths, k=k).sum(axis=1), np.minimum(_num_truths(truths), k), empty=np.nan)


def value_recall(lists: Rows, truths: Rows, values: Scores, *, k: int) -> Scores:
    """The value of the truths among the first K, against the value of the K dearest truths.

    Args:
        lists: ``(N, W)`` catalog rows.
        truths: ``(N, G)`` catalog rows; of one that stands twice the first value counts.
        values: ``(N, G)`` what each truth is worth (eCPM), 0 or more; of no effect where there is no truth.
        k: Where the list is cut.

    Returns:
        ``(N,)`` in [0, 1], NaN for a user whose truths are all worth 0 or who has none.

    Raises:
        ValueError: If ``values`` has another shape than ``truths``, or one is negative or not finite.
    """
    worth = _worth(lists, truths, values, k)
    got = (worth * among(truths, deduplicate(lists)[:, :k])).sum(axis=1)
    return share(got, -np.sort(-worth, axis=1)[:, :k].sum(axis=1), empty=np.nan)


def mean_value(lists: Rows, ads: Rows, values: Scores, *, k: int) -> Scores:
    """Value@K: what the first K places are worth, a place on average; a place without an ad is worth 0.

    Args:
        lists: ``(N, W)`` catalog rows.
        ads: ``(N, G)`` the ads whose worth for the user is known, padded with -1; any other ad is worth 0. Of one that
            stands twice the first value counts.
        values: ``(N, G)`` what each is worth (ECPM), 0 or more; of no effect where there is no ad.
        k: Where the list is cut.

    Returns:
        ``(N,)`` in the unit of ``values``, NaN for a user of whom no ad's worth is known.

    Raises:
        ValueError: As for `value_recall`.

    Example:
        >>> mean_value(np.array([[5, 7, 9]]), np.array([[9, 5, 7]]), np.array([[8.0, 3.0, 1.0]]), k=2).tolist()
        [2.0]
    """
    worth = _worth(lists, ads, values, k)
    got = (worth * among(ads, deduplicate(lists)[:, :k])).sum(axis=1)
    return np.where(_scored(ads), got / k, np.nan)


def rank_of(lists: Rows, truths: Rows) -> NDArray[np.int64]:
    """The place of the first hit in the whole list, from 1 on.

    Returns:
        ``(N,)``, 0 where there is no hit.

    Example:
        >>> rank_of(np.array([[5, 5, 9], [5, 6, 7]]), np.array([[9], [9]])).tolist()
        [2, 0]
    """
    found = hits(lists, truths, k=max(1, lists.shape[1]))
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, 0)


def share(part: NDArray[Any], whole: NDArray[Any], *, empty: float) -> Scores:
    """``part / whole`` of each user, and ``empty`` where the whole is 0.

    Example:
        >>> share(np.array([1, 0]), np.array([4, 0]), empty=1.0).tolist()
        [0.25, 1.0]
    """
    shares: Scores = np.full(len(part), empty)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def among(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Whether each of ``rows`` ``(N, A)`` stands in the same user's ``others`` ``(N, B)``; a -1 never does.

    Example:
        >>> among(np.array([[5, -1], [5, 6]]), np.array([[5, -1], [7, 6]])).tolist()
        [[True, False], [False, True]]
    """
    width = max(int(rows.max(initial=0)), int(others.max(initial=0))) + 2
    users = np.arange(len(rows), dtype=np.int64)[:, None] * width
    # One number a (user, ad): sorted within each user they are sorted over all users, so one search serves all.
    keys = users + rows
    pool = np.append(np.sort(users + others, axis=1), len(rows) * width)  # the last one is beyond every key
    found: NDArray[np.bool_] = (pool[np.searchsorted(pool, keys)] == keys) & (rows != NO_AD)
    return found


def _first_places(rows: Rows) -> NDArray[np.bool_]:
    """Whether an ad stands here for the first time in its list."""
    order = np.argsort(rows, axis=1, kind="stable")
    ranked = np.take_along_axis(rows, order, axis=1)
    first = ranked != NO_AD
    first[:, 1:] &= ranked[:, 1:] != ranked[:, :-1]
    places: NDArray[np.bool_] = np.empty(rows.shape, dtype=bool)
    np.put_along_axis(places, order, first, axis=1)
    return places


def _worth(lists: Rows, ads: Rows, values: Scores, k: int) -> Scores:
    """The value of each of ``ads`` ``(N, G)``, 0 where there is no ad or where it has stood before."""
    check_pair(lists, ads, k)
    if values.shape != ads.shape:
        raise ValueError(f"values is {values.shape}, but its ads are {ads.shape}: give one value an ad")
    worth = np.where(_first_places(ads), values, 0.0)
    if not (np.isfinite(worth) & (worth >= 0)).all():
        raise ValueError("values holds a negative or not finite number: a value is 0 or more")
    return worth


def _num_truths(truths: Rows) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = _first_places(truths).sum(axis=1)
    return counts


def _scored(truths: Rows) -> NDArray[np.bool_]:
    return np.asarray((truths != NO_AD).any(axis=1))


def _check(rows: Rows, name: str) -> None:
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} is {rows.dtype} {rows.shape}, must be integers (N, W): one row a user")
    if rows.size and rows.min() < NO_AD:
        raise ValueError(f"{name} holds {rows.min()}: give catalog rows from 0 on, and -1 where there is no ad")


def check_pair(lists: Rows, truths: Rows, k: int) -> None:
    """Refuse what is no pair of ``(N, W)`` and ``(N, G)`` rows, or no cut.

    Raises:
        ValueError: If a shape, a type or a number is not as the head of this file says.
    """
    _check(lists, "lists")
    _check(truths, "truths")
    if len(lists) != len(truths):
        raise ValueError(f"{len(lists)} lists, but {len(truths)} rows of truths: give both one row a user")
    if k < 1:
        raise ValueError(f"k is {k}, but a list is cut at 1 or later")

"""Hits in recommended lists: HR@K, NDCG@K and LTRR@K of fixed-width integer lists.

One contract for all functions. ``lists`` is ``(N, W)``: the catalog rows recommended to N users, best first,
and -1 where there is no ad. Duplicates go first, then the list is cut at K; a place without an ad is a miss
and is never rescaled away. ``truths`` is ``(N, G)``: the ads that count as hits, padded with -1, in any order.
Each function gives one number a user, so that the mean, its interval and paired comparisons are left to the
caller; a user without a single truth gets NaN, which says "not scored" and is not 0.

Where several scores or cuts are wanted of the same lists, `find` and `find_worth` look once for all of them; where the
same ads are looked for in the lists of several systems, `known_worth` goes through the ads once. Whole
columns are compared, so arrays whose columns are contiguous in memory (``order="F"``) take a fraction of the time.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.integer[Any]]
Scores = NDArray[np.float64]
Marks = NDArray[np.bool_]

NO_AD = -1
"""Stands where a list has no ad."""


class Found(NamedTuple):
    """Where the truths of N users stand in their lists.

    Attributes:
        hits: ``(N, W)`` whether a truth stands at this place of the list without duplicates.
        num_truths: ``(N,)`` how many truths there are.
    """

    hits: Marks
    num_truths: NDArray[np.int64]

    def hit_rate(self, k: int) -> Scores:
        """As the function `hit_rate`."""
        return np.where(self.num_truths > 0, self.hits[:, : _cut(k)].any(axis=1), np.nan)

    def ndcg(self, k: int) -> Scores:
        """As the function `ndcg`."""
        gains = 1 / np.log2(np.arange(2, _cut(k) + 2))
        dcg = self.hits[:, :k] @ gains[: self.hits.shape[1]]
        ideal = np.concatenate([[np.nan], np.cumsum(gains)])
        return np.asarray(dcg / ideal[np.minimum(self.num_truths, k)])

    def recall(self, k: int) -> Scores:
        """As the function `recall`."""
        return share(self.hits[:, : _cut(k)].sum(axis=1), self.num_truths, empty=np.nan)

    def capped_recall(self, k: int) -> Scores:
        """As the function `capped_recall`."""
        return share(self.hits[:, : _cut(k)].sum(axis=1), np.minimum(self.num_truths, k), empty=np.nan)

    def rank(self) -> NDArray[np.int64]:
        """As the function `rank_of`."""
        return (
            np.where(self.hits.any(axis=1), self.hits.argmax(axis=1) + 1, 0) if self.hits.size else self.num_truths * 0
        )


@dataclass(frozen=True, eq=False)
class Worth:
    """Ads of known worth of N users, each once, whatever lists they are looked for in.

    Attributes:
        ads: ``(N, G)``, -1 where there is none, or one that stood before.
        values: ``(N, G)`` what each is worth; 0 there.
        counts: ``(N,)`` how many there are.
    """

    ads: Rows
    values: Scores
    counts: NDArray[np.int64]

    @cached_property
    def dearest(self) -> Scores:
        """``(N, G)`` the worth of each ad, dearest first."""
        some, dearest = self.counts > 0, np.zeros_like(self.values)
        dearest[some] = np.sort(self.values[some], axis=1)[:, ::-1]
        return dearest


class FoundWorth(NamedTuple):
    """What the lists of N users are worth.

    Attributes:
        found: Where the ads of known worth stand.
        places: ``(N, W)`` what each place of the list without duplicates is worth; 0 without an ad of known worth.
        worth: The ads of known worth.
    """

    found: Found
    places: Scores
    worth: Worth

    def value_recall(self, k: int) -> Scores:
        """As the function `value_recall`."""
        return share(self.places[:, : _cut(k)].sum(axis=1), self.worth.dearest[:, :k].sum(axis=1), empty=np.nan)

    def mean_value(self, k: int) -> Scores:
        """As the function `mean_value`."""
        return np.where(self.worth.counts > 0, self.places[:, : _cut(k)].sum(axis=1) / k, np.nan)


def find(lists: Rows, truths: Rows) -> Found:
    """Look for the truths in the lists.

    Raises:
        ValueError: If the arrays do not belong together.

    Example:
        >>> found = find(np.array([[5, 5, 9]]), np.array([[9, 1]]))
        >>> found.hit_rate(1).tolist(), found.recall(2).tolist(), found.rank().tolist()
        ([0.0], [0.5], [2])
    """
    check_pair(lists, truths)
    return Found(among(deduplicate(lists), truths), first_places(truths).sum(axis=1))


def known_worth(ads: Rows, values: Scores) -> Worth:
    """Take each user's first of every ad, and what it is worth; the arguments are those of `mean_value`.

    Raises:
        ValueError: As for `value_recall`.
    """
    _check(ads, "truths")
    if values.shape != ads.shape:
        raise ValueError(f"values is {values.shape}, but its ads are {ads.shape}: give one value an ad")
    first = first_places(ads)
    worth = np.where(first, values, 0.0)
    if not (np.isfinite(worth) & (worth >= 0)).all():
        raise ValueError("values holds a negative or not finite number: a value is 0 or more")
    return Worth(np.where(first, ads, NO_AD), worth, first.sum(axis=1))


def find_worth(lists: Rows, worth: Worth) -> FoundWorth:
    """Look for ads of known worth in the lists.

    Raises:
        ValueError: If the arrays do not belong together.
    """
    check_pair(lists, worth.ads)
    kept = deduplicate(lists)
    hits, places = np.zeros_like(kept, dtype=bool), np.zeros_like(kept, dtype=np.float64)
    for ad, value in zip(worth.ads.T, worth.values.T, strict=True):
        same = kept == ad[:, None]
        hits |= same
        np.copyto(places, value[:, None], where=same)  # where there is no ad, one of no worth
    hits &= kept != NO_AD
    return FoundWorth(Found(hits, worth.counts), places, worth)


def deduplicate(lists: Rows) -> Rows:
    """Keep the first of each ad in a list; what stands behind a dropped one moves up.

    Args:
        lists: ``(N, W)`` catalog rows; a -1 between ads keeps its place, since it is a miss there.

    Returns:
        ``(N, W)``, filled up with -1; the same array where no ad stands twice.

    Raises:
        ValueError: If ``lists`` is not ``(N, W)`` or holds a number below -1.

    Example:
        >>> deduplicate(np.array([[5, 5, -1, 7, 5, 8]])).tolist()
        [[5, -1, 7, 8, -1, -1]]
    """
    _check(lists, "lists")
    duplicate = ~first_places(lists) & (lists != NO_AD)
    users = np.flatnonzero(duplicate.any(axis=1))
    if not users.size:
        return lists
    unlike, duplicate = lists.copy(order="K"), duplicate[users]
    kept_first = np.argsort(duplicate, axis=1, kind="stable")
    unlike[users] = np.take_along_axis(np.where(duplicate, NO_AD, lists[users]), kept_first, axis=1)
    return unlike


def hits(lists: Rows, truths: Rows, *, k: int) -> Marks:
    """Say at which of the first K places a truth stands.

    Returns:
        ``(N, K)``; False too where the list has ended.

    Raises:
        ValueError: If ``k`` is below 1, or the arrays do not belong together.
    """
    top = find(lists, truths).hits[:, : _cut(k)]
    found = np.zeros((len(lists), k), dtype=bool)
    found[:, : top.shape[1]] = top
    return found


def hit_rate(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """HR@K: 1 for a user with any truth among the first K, else 0 (LEADRE 5.1.2).

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> hit_rate(np.array([[5, 7], [7, -1]]), np.array([[7], [9]]), k=2).tolist()
        [1.0, 0.0]
    """
    return find(lists, truths).hit_rate(k)


def ndcg(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """NDCG@K with gain 1 and discount log2(rank + 1); the ideal list has its min(truths, K) hits in front.

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> ndcg(np.array([[5, 7, 9]]), np.array([[9]]), k=3).tolist()
        [0.5]
    """
    return find(lists, truths).ndcg(k)


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
    return find(lists, truths).recall(k)


def capped_recall(lists: Rows, truths: Rows, *, k: int) -> Scores:
    """Recall against the most truths that K places can hold, so that a perfect list reaches 1.

    Returns:
        ``(N,)``, NaN for a user without truths.

    Example:
        >>> capped_recall(np.array([[5, 7, 9]]), np.array([[9, 5, 1, 2]]), k=2).tolist()
        [0.5]
    """
    return find(lists, truths).capped_recall(k)


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
    return find_worth(lists, known_worth(truths, values)).value_recall(k)


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
    return find_worth(lists, known_worth(ads, values)).mean_value(k)


def rank_of(lists: Rows, truths: Rows) -> NDArray[np.int64]:
    """The place of the first hit in the whole list, from 1 on.

    Returns:
        ``(N,)``, 0 where there is no hit.

    Example:
        >>> rank_of(np.array([[5, 5, 9], [5, 6, 7]]), np.array([[9], [9]])).tolist()
        [2, 0]
    """
    return find(lists, truths).rank()


def share(part: NDArray[Any], whole: NDArray[Any], *, empty: float) -> Scores:
    """``part / whole`` of each user, and ``empty`` where the whole is 0.

    Example:
        >>> share(np.array([1, 0]), np.array([4, 0]), empty=1.0).tolist()
        [0.25, 1.0]
    """
    shares: Scores = np.full(len(part), empty)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def among(rows: Rows, others: Rows) -> Marks:
    """Whether each of ``rows`` ``(N, A)`` stands in the same user's ``others`` ``(N, B)``; a -1 never does.

    Example:
        >>> among(np.array([[5, -1], [5, 6]]), np.array([[5, -1], [7, 6]])).tolist()
        [[True, False], [False, True]]
    """
    found: Marks = np.zeros_like(rows, dtype=bool)
    for column in others.T:
        found |= rows == column[:, None]
    found &= rows != NO_AD
    return found


def first_places(rows: Rows) -> Marks:
    """Whether an ad stands here for the first time in its list ``(N, W)``; a -1 never does.

    Example:
        >>> first_places(np.array([[5, 5, -1, 7]])).tolist()
        [[True, False, False, True]]
    """
    first: Marks = rows != NO_AD
    for place in range(1, rows.shape[1]):
        first[:, place] &= ~(rows[:, :place] == rows[:, place, None]).any(axis=1)
    return first


def _cut(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is {k}, but a list is cut at 1 or later")
    return k


def _check(rows: Rows, name: str) -> None:
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"{name} is {rows.dtype} {rows.shape}, must be integers (N, W): one row a user")
    if rows.size and rows.min() < NO_AD:
        raise ValueError(f"{name} holds {rows.min()}: give catalog rows from 0 on, and -1 where there is no ad")


def check_pair(lists: Rows, truths: Rows, k: int = 1) -> None:
    """Refuse what is no pair of ``(N, W)`` and ``(N, G)`` rows, or no cut.

    Raises:
        ValueError: If a shape, a type or a number is not as the head of this file says.
    """
    _check(lists, "lists")
    _check(truths, "truths")
    if len(lists) != len(truths):
        raise ValueError(f"{len(lists)} lists, but {len(truths)} rows of truths: give both one row a user")
    _cut(k)

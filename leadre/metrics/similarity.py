"""How alike two lists of the same user are (LEADRE 5.2.5)."""

import numpy as np

from leadre.metrics.ranking import NO_AD, Rows, Scores, among, check_pair, deduplicate, share


def dice(first: Rows, second: Rows, *, k: int) -> Scores:
    """The Dice coefficient of two users' lists, twice the common ads over all ads (LEADRE 5.2.5, eq. 1).

    Both lists are cut at K after duplicates are dropped, and are compared as sets: the order does not count.
    Two empty lists are alike, 1; an empty one and any other are not, 0.

    Args:
        first: ``(N, V)`` catalog rows, -1 where there is no ad.
        second: ``(N, W)`` catalog rows of the same users.
        k: Where both are cut.

    Returns:
        ``(N,)`` in [0, 1].

    Raises:
        ValueError: If ``k`` is below 1, or the lists do not belong together.

    Example:
        >>> import numpy as np
        >>> dice(np.array([[5, 7], [-1, -1]]), np.array([[7, 9], [-1, -1]]), k=2).tolist()
        [0.5, 1.0]
    """
    check_pair(first, second, k)
    tops = deduplicate(first)[:, :k], deduplicate(second)[:, :k]
    first_size, second_size = ((top != NO_AD).sum(axis=1) for top in tops)
    return share(2 * among(*tops).sum(axis=1), first_size + second_size, empty=1.0)


def rbo(first: Rows, second: Rows, *, k: int, p: float) -> Scores:
    """Rank-biased overlap of two users' lists: what stands in front counts more (Webber 2010, eq. 32).

    The overlap of the first d places, over d, is averaged over all depths d with weights that fall by ``p`` a place;
    beyond the lists' ends the overlap is taken to go on as it was (the extrapolated form), so lists that are equal have
    1. Both are cut at K after duplicates are dropped. Two empty lists are alike, 1; an empty one and any other are not,
    0. A -1 between ads keeps its place and is like no ad.

    Args:
        first: ``(N, V)`` catalog rows, -1 where there is no ad.
        second: ``(N, W)`` catalog rows of the same users.
        k: Where both are cut.
        p: How much each place counts of the one before it.

    Returns:
        ``(N,)`` in [0, 1].

    Raises:
        ValueError: If ``p`` does not lie between 0 and 1, ``k`` is below 1, or the lists do not belong together.

    Example:
        >>> rbo(np.array([[5, 7]]), np.array([[7, 5]]), k=2, p=0.9).round(6).tolist()
        [0.9]
    """
    if not 0 < p < 1:
        raise ValueError(f"p is {p}, must lie between 0 and 1: 0.9 gives the first ten places most of the weight")
    check_pair(first, second, k)
    tops = [_to_width(deduplicate(rows)[:, :k], k) for rows in (first, second)]
    sizes = np.stack([_last_place(top) for top in tops])
    short, long = sizes.min(axis=0)[:, None], sizes.max(axis=0)[:, None]
    depth = np.arange(1, k + 1)  # (K,)
    shared = _shared(*tops)  # (N, K): common ads of the first d places
    at_short, at_long = (np.take_along_axis(shared, np.maximum(end, 1) - 1, axis=1) for end in (short, long))
    beyond = np.where(depth > short, at_short * (depth - short) / (np.maximum(short, 1) * depth), 0.0)
    agreement = np.where(depth <= long, shared / depth + beyond, 0.0)
    rest = (at_long - at_short) / np.maximum(long, 1) + at_short / np.maximum(short, 1)
    overlap = (1 - p) / p * (agreement @ p**depth) + (rest * p**long)[:, 0]
    alike: Scores = np.where(long[:, 0] == 0, 1.0, np.where(short[:, 0] == 0, 0.0, overlap))
    return alike


def _to_width(rows: Rows, width: int) -> Rows:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])), constant_values=NO_AD)


def _last_place(rows: Rows) -> Rows:
    """The place of the last ad of each list, from 1 on; 0 where there is none."""
    places = np.arange(1, rows.shape[1] + 1)
    return np.asarray(np.where(rows != NO_AD, places, 0).max(axis=1))


def _shared(first: Rows, second: Rows) -> Scores:
    """``(N, K)``: how many ads the first d places of both have in common, for each d."""
    same = (first[:, :, None] == second[:, None, :]) & (first != NO_AD)[:, :, None]
    counts = same.cumsum(axis=1).cumsum(axis=2).diagonal(axis1=1, axis2=2)
    return np.asarray(counts, dtype=np.float64)

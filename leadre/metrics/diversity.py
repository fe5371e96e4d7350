"""How diverse a list is over the ads' categories (LEADRE 5.2.3).

``lists`` is as in `leadre.metrics.ranking`; ``categories`` is ``(A,)``: the category of each catalog row, a
number from 0 on. Duplicates are dropped before the cut; places without an ad do not count as anything.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from leadre.metrics.ranking import NO_AD, Rows, Scores, deduplicate, share


def concentration(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Scores:
    """Concentration@K: the share of a list's most frequent category among its own ads, a user.

    Our choice: a list without ads has 1, the worst, so that an empty answer is never rewarded.

    Returns:
        ``(N,)`` in (0, 1].

    Example:
        >>> concentration(np.array([[0, 1, 2, 3]]), np.array([7, 7, 7, 4]), k=4).tolist()
        [0.75]
    """
    counts = _category_counts(lists, categories, k)
    return share(counts.max(axis=1, initial=0), counts.sum(axis=1), empty=1.0)


def abundance(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Scores:
    """Abundance@K: the number of categories in a list, a user; 0 for a list without ads.

    Returns:
        ``(N,)`` whole numbers.

    Example:
        >>> abundance(np.array([[0, 1, 2, 3]]), np.array([7, 7, 7, 4]), k=4).tolist()
        [2.0]
    """
    found: Scores = (_category_counts(lists, categories, k) > 0).sum(axis=1, dtype=np.float64)
    return found


def diversity(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Scores:
    """Diversity@K: sqrt(Abundance / Concentration), the effective number of categories, a user.

    Our choice, since the paper gives words only: Abundance is the Hill number of order 0 and
    1 / Concentration that of order infinity; their geometric mean is n for n equally frequent categories,
    1 for a single one, and rises with Abundance and falls with Concentration. 0 for a list without ads.

    Returns:
        ``(N,)``.

    Example:
        >>> categories = np.array([0, 0, 0, 0, 0, 1, 2, 3])
        >>> diversity(np.arange(8)[None], categories, k=8).round(2).tolist()
        [2.53]
    """
    effective: Scores = np.sqrt(abundance(lists, categories, k=k) / concentration(lists, categories, k=k))
    return effective


def global_concentration(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> float:
    """The other reading of Concentration: the share of the one category that is most frequent over all lists.

    Returns:
        A number in (0, 1]; NaN when no list has an ad.

    Example:
        >>> global_concentration(np.array([[0, 1], [1, 2]]), np.array([7, 7, 4]), k=2)
        0.75
    """
    counts = np.bincount(_tops(lists, categories, k)[1])
    return float(counts.max() / counts.sum()) if counts.size else float("nan")


def _tops(lists: Rows, categories: NDArray[np.integer[Any]], k: int) -> tuple[Rows, Rows]:
    """The user and the category of each recommended ad, as two flat arrays."""
    if k < 1:
        raise ValueError(f"k is {k}, but a list is cut at 1 or later")
    if lists.size and lists.max() >= len(categories):
        raise ValueError(
            f"lists holds the row {lists.max()}, but categories has {len(categories)} rows: "
            "give the category of every catalog row"
        )
    top = deduplicate(lists)[:, :k]
    users, places = np.nonzero(top != NO_AD)
    return users, categories[top[users, places]]


def _category_counts(lists: Rows, categories: NDArray[np.integer[Any]], k: int) -> NDArray[np.int64]:
    """``(N, C)``: how often each category stands in a user's first K."""
    users, found = _tops(lists, categories, k)
    width = int(found.max(initial=0)) + 1
    return np.bincount(users * width + found, minlength=len(lists) * width).reshape(len(lists), width)

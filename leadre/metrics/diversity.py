"""How diverse a list is over the ads' categories (LEADRE 5.2.3).

``lists`` is as in `leadre.metrics.ranking`; ``categories`` is ``(A,)``: the category of each catalog row, a
number from 0 on. Duplicates are dropped before the cut; places without an ad do not count as anything.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.metrics.ranking import NO_AD, Rows, Scores, deduplicate, first_places, share


class Spread(NamedTuple):
    """How the first K ads of N users spread over categories: ``(N,)`` each, as the functions of the same names."""

    concentration: Scores
    abundance: Scores

    @property
    def diversity(self) -> Scores:
        """As the function `diversity`."""
        effective: Scores = np.sqrt(self.abundance / self.concentration)
        return effective


def spread(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Spread:
    """Concentration@K and Abundance@K, and Diversity@K made of the two, with one look at the lists.

    Raises:
        ValueError: If ``k`` is below 1, or a listed ad has no category.

    Example:
        >>> of_users = spread(np.array([[0, 1, 2, 3]]), np.array([7, 7, 7, 4]), k=4)
        >>> of_users.concentration.tolist(), of_users.abundance.tolist()
        ([0.75], [2.0])
    """
    found = top_categories(lists, categories, k=k)
    times = np.zeros_like(found)  # (N, K): how often the category of this place stands among the K
    for column in found.T:
        times += found == column[:, None]
    listed = found != NO_AD
    most = np.where(listed, times, 0).max(axis=1, initial=0)
    kinds = first_places(found).sum(axis=1, dtype=np.float64)
    return Spread(share(most, listed.sum(axis=1), empty=1.0), kinds)


def concentration(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Scores:
    """Concentration@K: the share of a list's most frequent category among its own ads, a user.

    Our choice: a list without ads has 1, the worst, so that an empty answer is never rewarded.

    Returns:
        ``(N,)`` in (0, 1].

    Example:
        >>> concentration(np.array([[0, 1, 2, 3]]), np.array([7, 7, 7, 4]), k=4).tolist()
        [0.75]
    """
    return spread(lists, categories, k=k).concentration


def abundance(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Scores:
    """Abundance@K: the number of categories in a list, a user; 0 for a list without ads.

    Returns:
        ``(N,)`` whole numbers.

    Example:
        >>> abundance(np.array([[0, 1, 2, 3]]), np.array([7, 7, 7, 4]), k=4).tolist()
        [2.0]
    """
    return spread(lists, categories, k=k).abundance


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
    return spread(lists, categories, k=k).diversity


def global_concentration(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> float:
    """The other reading of Concentration: the share of the one category that is most frequent over all lists.

    Returns:
        A number in (0, 1]; NaN when no list has an ad.

    Example:
        >>> global_concentration(np.array([[0, 1], [1, 2]]), np.array([7, 7, 4]), k=2)
        0.75
    """
    return most_frequent(category_counts(lists, categories, k=k))


def category_counts(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> NDArray[np.int64]:
    """How often each category stands among the first K ads of all lists: ``(C,)``; counts of blocks of users add up.

    Example:
        >>> category_counts(np.array([[0, 1], [1, 2]]), np.array([1, 1, 0]), k=2).tolist()
        [1, 3]
    """
    found = top_categories(lists, categories, k=k)
    return np.bincount(found[found != NO_AD], minlength=int(categories.max(initial=-1)) + 1)


def most_frequent(counts: NDArray[np.int64]) -> float:
    """The share of the most frequent category; NaN where nothing was counted.

    Example:
        >>> most_frequent(np.array([1, 3]))
        0.75
    """
    return float(counts.max() / counts.sum()) if counts.any() else float("nan")


def top_categories(lists: Rows, categories: NDArray[np.integer[Any]], *, k: int) -> Rows:
    """The category of each of the first K ads of the lists without duplicates, -1 where there is no ad: ``(N, <=K)``.

    Raises:
        ValueError: If ``k`` is below 1, or a listed ad has no category.
    """
    if k < 1:
        raise ValueError(f"k is {k}, but a list is cut at 1 or later")
    if lists.size and lists.max() >= len(categories):
        raise ValueError(
            f"lists holds the row {lists.max()}, but categories has {len(categories)} rows: "
            "give the category of every catalog row"
        )
    # What stands last answers for the places without an ad, whose row is -1.
    found: Rows = np.append(categories, NO_AD).astype(np.int32)[deduplicate(lists)[:, :k]]
    return found

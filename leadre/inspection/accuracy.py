"""Top-K accuracy of embeddings: are the nearest ads of the same category? (LEADRE 5.2.4, Table 3)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.inspection.neighbors import Rows, Vectors, nearest

Shares = NDArray[np.float64]


class Task(NamedTuple):
    """Queries, and the pool that is searched.

    Attributes:
        queries: ``(Q,)`` rows of ads.
        pool: ``(P,)`` rows of ads, ascending; the queries are among them, but none finds itself.
        category: ``(N,)`` number of each ad's category; -1 for none.
    """

    queries: Rows
    pool: Rows
    category: Rows


def sample(category: Rows, *, categories: int, ads: int, generator: np.random.Generator) -> Rows:
    """Draw queries: so many ads of each of the categories with the most ads, of smaller categories all.

    Args:
        category: ``(N,)`` numbers of the ads' categories; -1 for none.
        categories: The most categories that are drawn from.
        ads: The most ads drawn of one.
        generator: Draws them.

    Returns:
        ``(Q,)`` rows, ascending. A category of one ad has nothing to be found and is left out.

    Example:
        >>> sample(np.array([0, 1, 0, -1]), categories=9, ads=9, generator=np.random.default_rng(0)).tolist()
        [0, 2]
    """
    sizes = np.bincount(category[category >= 0])
    largest = np.argsort(-sizes, kind="stable")[:categories]
    members = [np.flatnonzero(category == number) for number in largest if sizes[number] > 1]
    drawn = [generator.choice(rows, size=min(ads, len(rows)), replace=False) for rows in members]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))


def found(task: Task, x: Vectors, *, most: int) -> Rows:
    """The nearest ads of each query by cosine, ties by row: ``(Q, k)`` rows, with k the less of ``most`` and all."""
    k = min(most, len(task.pool) - 1)
    return nearest(x[task.queries], x, k, rows=task.pool, exclude=task.queries).rows


def accuracy(task: Task, neighbors: Rows, ks: tuple[int, ...]) -> Shares:
    """The share of each query's first K neighbors that have its category.

    Args:
        task: The queries and the pool.
        neighbors: ``(Q, k)`` rows, nearest first.
        ks: The cuts K.

    Returns:
        ``(Q, len(ks))``; NaN for a K that is more than there are neighbors.
    """
    right = (task.category[neighbors] == task.category[task.queries][:, None]).cumsum(axis=1)
    nothing = np.full(len(right), np.nan)
    return np.stack([right[:, k - 1] / k if k <= right.shape[1] else nothing for k in ks], axis=1)


def ceiling(task: Task, ks: tuple[int, ...]) -> Shares:
    """The most that `accuracy` can be for each query: there are only so many ads of its category in the pool."""
    same = _others_of_the_category(task)
    return np.stack([np.minimum(same, k) / k if k < len(task.pool) else same * np.nan for k in ks], axis=1)


def chance(task: Task, ks: tuple[int, ...]) -> Shares:
    """What `accuracy` is for each query on the mean if the pool is put into a random order."""
    share = _others_of_the_category(task) / (len(task.pool) - 1)
    return np.stack([share if k < len(task.pool) else share * np.nan for k in ks], axis=1)


def macro(values: Shares, task: Task) -> Shares:
    """The mean over the queries of a category, then over the categories: ``(Q, V)`` gives ``(V,)``."""
    category = task.category[task.queries]
    return np.asarray(np.mean([values[category == number].mean(0) for number in np.unique(category)], axis=0))


def _others_of_the_category(task: Task) -> Shares:
    """How many ads of the pool can be right: ``(Q,)``."""
    known = task.category[task.pool]
    sizes = np.bincount(known[known >= 0])
    return np.asarray(sizes[task.category[task.queries]] - 1.0)

"""Nearest neighbors by cosine: exact, in blocks, with one order for ties."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

QUERIES = 1024
POOL = 8192
"""Queries and pool rows compared at once: 64 MB of similarities, however many ads there are."""
DECIMALS = 9
"""Similarities that are equal so far are a tie: beyond, the same two vectors differ with the block they stand in."""

Vectors = NDArray[np.floating]
Rows = NDArray[np.int64]


class Neighbors(NamedTuple):
    """The k nearest of Q queries, best first.

    Attributes:
        rows: ``(Q, k)`` rows of the pool.
        similarities: ``(Q, k)`` cosines, rounded to nine digits.
    """

    rows: Rows
    similarities: NDArray[np.float64]


def nearest(
    queries: Vectors, pool: Vectors, k: int, *, rows: Rows | None = None, exclude: Rows | None = None
) -> Neighbors:
    """Find the k rows of the pool with the largest cosine to each query; of equal ones the lower rows.

    Args:
        queries: ``(Q, D)``. The cosine with a zero vector is 0.
        pool: ``(P, D)``.
        k: How many; at most as many as there are rows to choose from.
        rows: Rows of the pool to choose from, ascending; None for all.
        exclude: ``(Q,)`` one row a query that is not to be found, such as the query itself; None excludes none.

    Returns:
        The neighbors, as rows of the pool.

    Raises:
        ValueError: If there are fewer rows than k to choose from, or k is below 1.

    Example:
        >>> found = nearest(np.array([[2.0, 0.0]]), np.array([[0.0, 1.0], [3.0, 0.0], [1.0, 0.0]]), 2)
        >>> found.rows.tolist(), found.similarities.tolist()
        ([[1, 2]], [[1.0, 1.0]])
    """
    candidates = np.arange(len(pool)) if rows is None else rows
    choice = len(candidates) - (exclude is not None)
    if not 1 <= k <= choice:
        raise ValueError(f"k is {k}, but there are {choice} rows to choose from: use 1 to {choice}")
    found = [
        _nearest(
            _unit(queries[start : start + QUERIES]),
            pool,
            k,
            candidates,
            None if exclude is None else exclude[start : start + QUERIES],
        )
        for start in range(0, len(queries), QUERIES)
    ]
    empty = Neighbors(np.empty((0, k), dtype=np.int64), np.empty((0, k)))
    return Neighbors(*(np.concatenate(parts) for parts in zip(empty, *found, strict=True)))


def _nearest(queries: Vectors, pool: Vectors, k: int, candidates: Rows, exclude: Rows | None) -> Neighbors:
    best = Neighbors(np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0)))
    for start in range(0, len(candidates), POOL):
        block = candidates[start : start + POOL]
        similarities = (queries @ _unit(pool[block]).T).round(DECIMALS)
        if exclude is not None:
            similarities[exclude[:, None] == block] = -np.inf
        rows = np.broadcast_to(block, similarities.shape)
        # The best so far have lower rows than the block: side by side they stay in the order that ties are told by.
        best = _top(np.hstack([best.rows, rows]), np.hstack([best.similarities, similarities]), k)
    return best


def _top(rows: Rows, similarities: NDArray[np.float64], k: int) -> Neighbors:
    """The k largest of each line, of equal ones the first."""
    if k < similarities.shape[1]:
        # 1. Whatever is no smaller than the k-th largest: k a line, and more where there are ties.
        least = np.partition(similarities, -k, axis=1)[:, -k, None]
        line, place = np.nonzero(similarities >= least)
        # 2. The first k of each line in the order of similarity, then place.
        order = np.lexsort((place, -similarities[line, place], line))
        starts = np.searchsorted(line, np.arange(len(rows)))
        kept = place[order[starts[:, None] + np.arange(k)]]
    else:
        kept = np.argsort(-similarities, axis=1, kind="stable")
    return Neighbors(np.take_along_axis(rows, kept, 1), np.take_along_axis(similarities, kept, 1))


def _unit(x: Vectors) -> NDArray[np.float64]:
    x = x.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    unit: NDArray[np.float64] = x / np.where(lengths > 0, lengths, 1)
    return unit

"""Sample ads with the ads nearest to them: by the embeddings, and by the S-IDs."""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.inspection.neighbors import Rows, Vectors, nearest


def side_by_side(
    ads: pl.DataFrame,
    x: Vectors,
    codes: NDArray[np.int64],
    *,
    rows: Rows,
    samples: int,
    neighbors: int,
    generator: np.random.Generator,
) -> list[dict[str, Any]]:
    """Lay sample ads beside their neighbors.

    Args:
        ads: N rows of whatever is to be told of an ad.
        x: ``(N, D)`` embeddings.
        codes: ``(N, M)`` codes that the S-IDs begin with, before the extra one.
        rows: ``(U,)`` the ads to choose from, ascending: one a text, else the neighbors of an ad that runs under a
            thousand ids would be itself, a thousand times.
        samples: How many ads; all where there are fewer.
        neighbors: How many neighbors of each; all others where there are fewer.
        generator: Draws the samples.

    Returns:
        One entry a sample: the ``ad``; the ``nearest`` by cosine; and by ``prefix`` those that share the most codes,
        of equal ones the nearest by cosine first, none that shares no code.
    """
    drawn = np.sort(generator.choice(rows, size=min(samples, len(rows)), replace=False))
    k = min(neighbors, len(rows) - 1)
    near = nearest(x[drawn], x, k, rows=rows, exclude=drawn).rows if k else np.empty((len(drawn), 0), dtype=np.int64)
    told = []
    for row, nearest_rows in zip(drawn, near, strict=True):
        shared = (codes[rows] == codes[row]).cumprod(axis=1).sum(axis=1)
        both = {"nearest": nearest_rows, "prefix": longest_prefix(x, row, rows, shared, neighbors)}
        told.append(
            {"ad": ads.row(row, named=True)}
            | {name: [_beside(ads, x, codes, row, other) for other in others] for name, others in both.items()}
        )
    return told


def longest_prefix(x: Vectors, row: int, rows: Rows, shared: NDArray[np.int64], most: int) -> list[int]:
    """Find the ads that share the most codes with an ad, from the longest prefix down, the nearest by cosine first.

    Args:
        x: ``(N, D)`` embeddings.
        row: The ad.
        rows: ``(U,)`` the ads to choose from, ascending; the ad itself is passed over.
        shared: ``(U,)`` how many codes each of them shares with it.
        most: How many are wanted.
    """
    found: list[int] = []
    for length in range(int(shared.max()), 0, -1):
        alike = rows[(shared == length) & (rows != row)]
        if missing := min(most - len(found), len(alike)):
            found += nearest(x[row : row + 1], x, missing, rows=alike).rows[0].tolist()
    return found


def _beside(ads: pl.DataFrame, x: Vectors, codes: NDArray[np.int64], row: int, other: int) -> dict[str, Any]:
    pair = x[[row, other]].astype(np.float64)
    lengths = np.linalg.norm(pair, axis=1).prod()
    return ads.row(int(other), named=True) | {
        "cosine": round(float(pair[0] @ pair[1] / lengths), 6) if lengths else 0.0,
        "shared": int((codes[other] == codes[row]).cumprod().sum()),
    }

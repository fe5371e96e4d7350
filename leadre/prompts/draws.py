"""Draws that belong to a row, not to its place: the same row draws the same wherever and beside whatever it stands."""

from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray


def draws(keys: pl.DataFrame, *, seed: int, of: str) -> NDArray[np.uint64]:
    """A number below 2^64 for each row of ``keys``, evenly spread.

    Args:
        keys: What the draw depends on, N rows.
        seed: 0 is a seed.
        of: What is drawn, so that two draws for the same keys are independent of one another.

    Returns:
        ``(N,)``; take it modulo the number of choices.
    """
    rows = (ascii((of, seed, *row)).encode() for row in keys.iter_rows())
    drawn = b"".join(blake2b(row, digest_size=8).digest() for row in rows)
    return np.frombuffer(drawn, dtype="<u8").astype(np.uint64)

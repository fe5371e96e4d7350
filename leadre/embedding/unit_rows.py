"""Vectors of length 1."""

import numpy as np
from numpy.typing import NDArray


def unit_rows(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Bring rows ``(N, D)`` to length 1; a zero row stays zero.

    Example:
        >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(lengths > 0, lengths, 1)).astype(np.float32)

"""Vectors with what each belongs to: a text or an ad."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Keyed(NamedTuple):
    """``x`` ``(N, D)`` float32; row i belongs to ``keys[i]``, and no key stands twice."""

    keys: Sequence[str]
    x: NDArray[np.float32]


def rows_of(parts: Iterable[Keyed], keys: Sequence[str]) -> NDArray[np.float32]:
    """The vectors of ``keys`` ``(len(keys), D)``, bit by bit as they stand in the parts.

    Args:
        parts: Disjoint parts that hold every key between them; a part without rows counts for nothing.
        keys: Which rows, in order; a key may stand several times.

    Raises:
        ValueError: If parts differ in width.

    Example:
        >>> parts = [Keyed(["a"], np.float32([[1]])), Keyed(["b"], np.float32([[2]]))]
        >>> rows_of(parts, ["b", "a", "b"]).tolist()
        [[2.0], [1.0], [2.0]]
    """
    filled = [part for part in parts if len(part.keys)]
    widths = sorted({part.x.shape[1] for part in filled})
    if len(widths) > 1:
        raise ValueError(
            f"vectors of widths {widths} stand side by side, but all vectors of a catalog have one width: "
            "use the settings of the previous embeddings, or begin without them"
        )
    place = {key: row for row, key in enumerate(chain.from_iterable(part.keys for part in filled))}
    places = np.fromiter((place[key] for key in keys), np.int64, len(keys))
    x = np.empty((len(keys), *(widths or [0])), dtype=np.float32)
    start = 0
    for part in filled:
        here = (places >= start) & (places < start + len(part.keys))
        x[here] = part.x[places[here] - start]
        start += len(part.keys)
    return x

"""Feature hashing: each word adds plus or minus one at a place that its hash tells; nothing is learned."""

import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from leadre.embedding.unit_rows import unit_rows

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
"""A word, or one Chinese character."""


def hashing_vectors(texts: Sequence[str], *, dimension: int) -> NDArray[np.float32]:
    """Embed texts by their words (Weinberger et al. 2009).

    Args:
        texts: N texts.
        dimension: Width D.

    Returns:
        ``(N, D)`` vectors of length 1; zero for a text without words, or whose words cancel.
    """
    vectors = np.zeros((len(texts), dimension), dtype=np.float32)
    for row, text in enumerate(texts):
        for word in _WORD.findall(text.lower()):
            digest = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
            vectors[row, (digest >> 1) % dimension] += 1 if digest & 1 else -1
    return unit_rows(vectors)

"""Codes without meaning: the controls that any claim about meaning needs."""

from collections.abc import Iterable
from hashlib import shake_128

import numpy as np
import torch
from torch import Tensor


def random_codes(text_keys: Iterable[str], *, levels: int, codebook_size: int, seed: int) -> Tensor:
    """Draw uniform codes for each text from the seed and the text alone, whichever other texts there are.

    Args:
        text_keys: N keys; equal ones get equal codes.
        levels: Number of levels M.
        codebook_size: Number of codes K a level.
        seed: 0 is a seed.

    Returns:
        ``(N, M)`` int64.
    """
    drawn = b"".join(shake_128(f"{seed} {key}".encode()).digest(8 * levels) for key in text_keys)
    # The remainder of 64 bits is uniform to a part in 2^64 / K.
    codes = np.frombuffer(drawn, dtype="<u8").reshape(-1, levels) % np.uint64(codebook_size)
    return torch.from_numpy(codes.astype(np.int64))


def shuffled(codes: Tensor, *, seed: int) -> Tensor:
    """Hand every row to another row: the same codes, as often as before, but none at its own place.

    Args:
        codes: ``(N, M)``; a single row has no other place to go.
        seed: Draws the order in which each row takes over from the one before it.

    Returns:
        ``(N, M)``.
    """
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    handed = codes.clone()
    handed[order] = codes[order.roll(1)]
    return handed

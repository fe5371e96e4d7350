"""Encoded pairs as rows of tokens: what tuning learns from, and whose prompts are decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from leadre.lm.encode import RESPONSE


class Rows(NamedTuple):
    """Encoded pairs of one or several tasks.

    Attributes:
        ids: ``(T,)`` tokens of all rows in one line.
        kinds: ``(T,)`` 0 prompt, 1 S-ID of an ad in the history, 2 response.
        offsets: ``(N+1,)`` row n is ``offsets[n] : offsets[n+1]``.
        targets: ``(N,)`` catalog row of the response.
    """

    ids: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, ``(N,)``."""
        return np.diff(self.offsets)


def read_rows(path: Path, *, num_rows: int | None = None) -> Rows:
    """Read one file of the tokens stage.

    Args:
        path: The file.
        num_rows: How many rows its pairs have; None does not look.

    Raises:
        ValueError: If it has another number of rows.
    """
    rows = Rows(**load_file(path))
    if num_rows is not None and len(rows.targets) != num_rows:
        raise ValueError(
            f"tokens is {path} with {len(rows.targets)} rows, but there are {num_rows} pairs: they belong to "
            "different pairs; encode the pairs again"
        )
    return rows


def concatenate(parts: Sequence[Rows]) -> Rows:
    """The rows of several files as one, in their order."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Rows(
        ids=np.concatenate([part.ids for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
        targets=np.concatenate([part.targets for part in parts]),
    )


def prompts_of(rows: Rows, which: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """The tokens of some rows without their responses."""
    parts = [slice(rows.offsets[row], rows.offsets[row + 1]) for row in which]
    return [rows.ids[part][rows.kinds[part] != RESPONSE] for part in parts]


def left_padded(texts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
    """Token ids ``(B, T)`` that end in one column, as decoding takes them, and their mask ``(B, T)``."""
    width = max(map(len, texts))
    ids = np.zeros((len(texts), width), dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=bool)
    for row, text in enumerate(texts):
        ids[row, width - len(text) :] = text
        mask[row, width - len(text) :] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)

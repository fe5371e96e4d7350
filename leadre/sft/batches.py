"""Batches of token rows: which tokens are learned, and how rows are padded."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from leadre.lm.encode import HISTORY_AD, RESPONSE
from leadre.training.batches import bucketed_plan


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


def read_rows(path: Path) -> Rows:
    """Read one file of the tokens stage."""
    return Rows(**load_file(path))


def concatenate(parts: list[Rows]) -> Rows:
    """The rows of several files as one, in their order."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Rows(
        ids=np.concatenate([part.ids for part in parts]),
        kinds=np.concatenate([part.kinds for part in parts]),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), *offsets]),
        targets=np.concatenate([part.targets for part in parts]),
    )


def mixed_plan(
    lengths: Mapping[str, NDArray[np.int64]], epochs: Mapping[str, float], *, batch_size: int, seed: int
) -> list[NDArray[np.int64]]:
    """The batches of a stage over the concatenated rows of its tasks, shuffled together.

    Each row of a task is seen ``epochs[task]`` times: whole epochs see every row, what is left of the
    number sees a random share of them. The tasks are spread evenly over the stage.

    Args:
        lengths: Task to the tokens of its rows, in the order of concatenation.
        epochs: Task to epochs, above 0.
        batch_size: Rows a batch.
        seed: 0 is a seed.
    """
    starts = dict(zip(lengths, np.cumsum([0, *map(len, lengths.values())]), strict=False))
    rounds = int(np.ceil(max(epochs.values())))
    everything = np.concatenate(list(lengths.values()))
    plan: list[NDArray[np.int64]] = []
    for turn in range(rounds):
        rows = np.concatenate(
            [
                starts[task] + _share_of(len(lengths[task]), number / rounds, turn, seed=[seed, position])
                for position, (task, number) in enumerate(epochs.items())
            ]
        )
        if len(rows):
            batches = bucketed_plan(everything[rows], batch_size=batch_size, epochs=1, seed=seed * 1009 + turn)
            plan += [rows[batch] for batch in batches]
    return plan


def _share_of(num_rows: int, epochs_a_turn: float, turn: int, *, seed: list[int]) -> NDArray[np.int64]:
    """Rows of turn ``turn``, such that after t turns each row was seen floor or ceil of t * epochs_a_turn times."""
    begin, end = (round(num_rows * epochs_a_turn * t) for t in (turn, turn + 1))
    stream = np.arange(begin, end)
    passes, places = np.divmod(stream, num_rows)
    orders = {int(p): np.random.default_rng([*seed, int(p)]).permutation(num_rows) for p in np.unique(passes)}
    return np.array([orders[int(p)][i] for p, i in zip(passes, places, strict=True)], dtype=np.int64)


class Batch(NamedTuple):
    """A padded batch with its learned tokens.

    Attributes:
        ids: ``(B, T)`` tokens, right-padded with 0: under causal attention no token sees the padding.
        rows: ``(P,)`` row of each learned token.
        positions: ``(P,)`` its position, at least 1.
    """

    ids: Tensor
    rows: Tensor
    positions: Tensor


def collate(rows: Rows, which: NDArray[np.int64], *, loss_on: str) -> Batch:
    """Pad the chosen rows and mark the tokens that are learned.

    Args:
        rows: All rows.
        which: Indices of the rows of this batch.
        loss_on: ``response``, or ``history_and_response`` to learn every S-ID in the prompt too.
    """
    smallest = HISTORY_AD if loss_on == "history_and_response" else RESPONSE
    lengths = rows.lengths[which]
    ids = np.zeros((len(which), int(lengths.max())), dtype=np.int64)
    learned = np.zeros(ids.shape, dtype=bool)
    for i, row in enumerate(which):
        begin, end = rows.offsets[row], rows.offsets[row + 1]
        ids[i, : end - begin] = rows.ids[begin:end]
        learned[i, : end - begin] = rows.kinds[begin:end] >= smallest
    learned[:, 0] = False  # nothing precedes the first token
    at_row, at_position = learned.nonzero()
    return Batch(torch.from_numpy(ids), torch.from_numpy(at_row), torch.from_numpy(at_position))

"""A training's batches as one list, drawn up before the first step and resumable at any of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Batches:
    """The batches of a whole training, in order; Lightning takes it as its train dataloader.

    The plan is fixed before training, so the batch of a step is a pure function of the seed. A step's rows are split
    over the ranks and, for gradient accumulation, over micro-batches; `collate` gets its part and the whole, so that a
    loss can be normalized over the whole: then neither split changes it.

    Args:
        plan: One array of row indices an optimizer step.
        collate: Turns a part of a step's rows (maybe none) and all of them into what ``training_step`` takes.
        micro_batches: Parts that a rank's rows of a step come in, one after another.
    """

    def __init__(
        self,
        plan: Sequence[NDArray[np.int64]],
        collate: Callable[[NDArray[np.int64], NDArray[np.int64]], Any],
        *,
        micro_batches: int = 1,
    ) -> None:
        if not plan:
            raise ValueError("plan holds no batch: there is nothing to train on; check that the rows are not empty")
        self.plan = plan
        self.collate = collate
        self.micro_batches = micro_batches
        self.first = 0

    def __len__(self) -> int:
        return len(self.plan) * self.micro_batches

    def __iter__(self) -> Iterator[Any]:
        rank, world_size = _rank_and_world_size()
        parts = world_size * self.micro_batches
        for whole in self.plan[self.first :]:
            for part in range(self.micro_batches):
                yield self.collate(whole[rank + part * world_size :: parts], whole)

    def start_at(self, step: int) -> None:
        """Leave out the batches of the first ``step`` steps, which were taken before; the length stays."""
        self.first = step


def micro_batches_of(batch_size: int, micro_batch_size: int | None, *, devices: int) -> int:
    """In how many parts each device takes its rows of a step, so that none has more than ``micro_batch_size`` at once.

    Example:
        >>> micro_batches_of(64, 10, devices=2), micro_batches_of(64, None, devices=2)
        (4, 1)
    """
    return 1 if micro_batch_size is None else math.ceil(batch_size / (micro_batch_size * devices))


def shuffled_plan(num_rows: int, *, batch_size: int, epochs: int, seed: int) -> list[NDArray[np.int64]]:
    """Every row once an epoch, in an order of its own each epoch; the last batch of an epoch may be short.

    Example:
        >>> [rows.tolist() for rows in shuffled_plan(3, batch_size=2, epochs=1, seed=0)]
        [[2, 0], [1]]
    """
    plan: list[NDArray[np.int64]] = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_rows)
        plan += [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]
    return plan


def bucketed_plan(
    lengths: NDArray[np.int64],
    sizes: NDArray[np.int64] | None = None,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
) -> list[NDArray[np.int64]]:
    """Batches of items of like length, so that little is spent on padding; the batches themselves are shuffled.

    Each epoch shuffles all items, cuts them into pools of 50 batches, sorts a pool by length, cuts
    it into batches, and shuffles the epoch's batches.

    Args:
        lengths: Tokens of each item, ``(N,)``.
        sizes: Rows of each item, ``(N,)``; None is one each.
        batch_size: Rows a batch; the last of a pool may have fewer, and the last item of a batch may pass it.
        epochs: Times that each item is seen.
        seed: 0 is a seed.
    """
    sizes = np.ones_like(lengths) if sizes is None else sizes
    plan: list[NDArray[np.int64]] = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        batches = []
        for pool in _cut(order, sizes, 50 * batch_size):
            batches += _cut(pool[np.argsort(lengths[pool], kind="stable")], sizes, batch_size)
        plan += [batches[i] for i in rng.permutation(len(batches))]
    return plan


def _cut(items: NDArray[np.int64], sizes: NDArray[np.int64], rows: int) -> list[NDArray[np.int64]]:
    """Cut items into pieces of about so many rows."""
    before = np.cumsum(sizes[items]) - sizes[items]
    return np.split(items, np.flatnonzero(np.diff(before // rows)) + 1)


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1

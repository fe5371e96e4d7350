"""A training's batches as one list, drawn up before the first step and resumable at any of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Batches:
    """The batches of a whole training, in order; Lightning takes it as its train dataloader.

    The plan is fixed before training, so the batch of a step is a pure function of the seed. The
    state is the number of batches consumed, modulo the length: what an exact resume needs, also at
    the very end of a training. Under DDP each rank takes every ``world_size``-th row of a batch.

    Args:
        plan: One array of row indices a batch.
        collate: Turns row indices into what the module's ``training_step`` takes.
    """

    def __init__(self, plan: Sequence[NDArray[np.int64]], collate: Callable[[NDArray[np.int64]], Any]) -> None:
        if not plan:
            raise ValueError("plan holds no batch: there is nothing to train on; check that the rows are not empty")
        self.plan = plan
        self.collate = collate
        self.done = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Any]:
        rank, world_size = _rank_and_world_size()
        for step in range(self.done % len(self.plan), len(self.plan)):
            rows = self.plan[step][rank::world_size]
            if not len(rows):
                raise ValueError(
                    f"batch {step} has {len(self.plan[step])} rows, fewer than the {world_size} ranks: "
                    "raise the batch size or lower compute.devices"
                )
            self.done = step + 1  # before the yield: a checkpoint inside the step counts this batch as consumed
            yield self.collate(rows)

    def state_dict(self) -> dict[str, int]:
        """The number of batches consumed, modulo the length."""
        return {"done": self.done % len(self.plan)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were consumed."""
        self.done = state["done"]


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


def bucketed_plan(lengths: NDArray[np.int64], *, batch_size: int, epochs: int, seed: int) -> list[NDArray[np.int64]]:
    """Batches of rows of like length, so that little is spent on padding; the batches themselves are shuffled.

    Each epoch shuffles all rows, cuts them into pools of 50 batches, sorts a pool by length, cuts
    it into batches, and shuffles the epoch's batches.

    Args:
        lengths: Tokens of each row, ``(N,)``.
        batch_size: Rows a batch; the last of an epoch may have fewer.
        epochs: Times that each row is seen.
        seed: 0 is a seed.
    """
    plan: list[NDArray[np.int64]] = []
    for epoch in range(epochs):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        batches = []
        for pool_start in range(0, len(order), 50 * batch_size):
            pool = order[pool_start : pool_start + 50 * batch_size]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        plan += [batches[i] for i in rng.permutation(len(batches))]
    return plan


def _rank_and_world_size() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1

"""Batches of token rows: which tokens are learned, how rows are padded, and which are read together."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.lm.encode import HISTORY_AD, RESPONSE
from leadre.lm.rows import Rows
from leadre.sft.trees import Groups, Tree, packed, tree
from leadre.training.batches import bucketed_plan


def num_learned(rows: Rows, groups: NDArray[np.int64], *, loss_on: str) -> NDArray[np.int64]:
    """Learned tokens of each group of rows, ``(G,)``; a row's first token is never one, since nothing precedes it."""
    learned = _is_learned(rows.kinds, loss_on)
    learned[rows.offsets[:-1]] = False
    total = np.concatenate([[0], np.cumsum(learned)])
    return np.diff(total[rows.offsets[groups]])


def mixed_plan(
    groups: Mapping[str, Groups],
    epochs: Mapping[str, float],
    *,
    batch_size: int,
    seed: int,
) -> list[NDArray[np.int64]]:
    """The batches of a stage over the concatenated groups of its tasks, shuffled together.

    Each group of a task is seen ``epochs[task]`` times: whole epochs see every group, what is left of the
    number sees a random share of them. The tasks are spread evenly over the stage.

    Args:
        groups: Task to its groups of rows, in the order of concatenation.
        epochs: Task to epochs, above 0.
        batch_size: Rows a batch, about: a group is not cut.
        seed: 0 is a seed.
    """
    counts = {task: len(of.lengths) for task, of in groups.items()}
    starts = dict(zip(counts, np.cumsum([0, *counts.values()]), strict=False))
    rounds = int(np.ceil(max(epochs.values())))
    lengths, sizes = (np.concatenate([getattr(of, name) for of in groups.values()]) for name in ("lengths", "sizes"))
    plan: list[NDArray[np.int64]] = []
    for turn in range(rounds):
        drawn = np.concatenate(
            [
                starts[task] + _share_of(counts[task], number / rounds, turn, seed=[seed, position])
                for position, (task, number) in enumerate(epochs.items())
            ]
        )
        if len(drawn):
            order = seed * 1009 + turn
            batches = bucketed_plan(lengths[drawn], sizes[drawn], batch_size=batch_size, epochs=1, seed=order)
            plan += [drawn[batch] for batch in batches]
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

    A row of the batch is a row of the data, a tree of several that begin alike, or several of these side by side
    (`leadre.sft.trees`).

    Attributes:
        ids: ``(B, T)`` tokens, right-padded with 0: under causal attention no token sees the padding.
        rows: ``(P,)`` row of each learned token.
        places: ``(P,)`` where in its row it stands.
        before: ``(P,)`` where the token before it stands, from which it is predicted.
        weights: ``(P,)`` float32: in how many rows of the data it is learned; 0 where a batch only keeps a rank busy.
        total: Learned tokens of the whole optimizer step, over all ranks and micro-batches.
        positions: ``(B, T)`` position of each token in its own row of the data; None where each row is one of the data.
        ends: ``(B, T)`` the first place behind each token that does not go on from it; None likewise.
    """

    ids: Tensor
    rows: Tensor
    places: Tensor
    before: Tensor
    weights: Tensor
    total: float
    positions: Tensor | None
    ends: Tensor | None


def collate(
    rows: Rows,
    groups: NDArray[np.int64],
    learned: NDArray[np.int64],
    which: NDArray[np.int64],
    whole: NDArray[np.int64],
    *,
    loss_on: str,
) -> Batch:
    """Pack the chosen groups, pad what is left, and mark the tokens that are learned.

    Args:
        rows: All rows.
        groups: ``(G+1,)`` where each group of rows begins; of several rows it becomes a tree.
        learned: ``(G,)`` learned tokens of each group, see `num_learned`.
        which: The groups of this batch; where there are none, one stands in and weighs nothing.
        whole: All groups of the optimizer step, which the loss is the mean over.
        loss_on: ``response``, or ``history_and_response`` to learn every S-ID in the prompt too.
    """
    shown = which if len(which) else whole[:1]
    trees = packed([_tree(rows, groups[group], groups[group + 1], loss_on) for group in shown])
    masked = len(trees) < len(shown) or any(groups[group + 1] - groups[group] > 1 for group in shown)
    width = max(len(tree.ids) for tree in trees)
    at_row, at_place = np.stack([_padded(tree.counts, width, 0) for tree in trees]).nonzero()
    weights = np.concatenate([tree.counts[tree.counts > 0] for tree in trees]).astype(np.float32)
    parents = np.stack([_padded(tree.parents, width, 0) for tree in trees])
    return Batch(
        ids=torch.from_numpy(np.stack([_padded(tree.ids, width, 0) for tree in trees])),
        rows=torch.from_numpy(at_row),
        places=torch.from_numpy(at_place),
        before=torch.from_numpy(parents[at_row, at_place]),
        weights=torch.from_numpy(weights if len(which) else np.zeros_like(weights)),
        total=float(max(learned[whole].sum(), 1)),
        positions=torch.from_numpy(np.stack([_padded(t.positions, width, 0) for t in trees])) if masked else None,
        ends=torch.from_numpy(np.stack([_padded(t.ends, width, width) for t in trees])) if masked else None,
    )


def _tree(rows: Rows, begin: int, end: int, loss_on: str) -> Tree:
    parts = [slice(rows.offsets[row], rows.offsets[row + 1]) for row in range(begin, end)]
    return tree([rows.ids[part] for part in parts], [_is_learned(rows.kinds[part], loss_on) for part in parts])


def _is_learned(kinds: NDArray[np.uint8], loss_on: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = kinds >= (HISTORY_AD if loss_on == "history_and_response" else RESPONSE)
    return found


def _padded(values: NDArray[np.int64], width: int, filler: int) -> NDArray[np.int64]:
    return np.pad(values, (0, width - len(values)), constant_values=filler)

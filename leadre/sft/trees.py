"""Rows that begin alike as one tree: what they share is read once (LEADRE 4.2.2, positive interaction reuse).

A user's targets have one history each, and each history begins with the one before it. As a tree, the common history is
a trunk, and each target's question and answer a short branch from where its history ends. A token sees the tokens on
its way from the root, at the positions they have in its own row, so loss and gradient are those of the separate rows.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


class Tree(NamedTuple):
    """T tokens in the order of their first appearance: below a token stand first its own descendants.

    Attributes:
        ids: ``(T,)`` tokens.
        positions: ``(T,)`` the position of each in the rows that hold it.
        parents: ``(T,)`` the place of the token before it; a first token's own.
        ends: ``(T,)`` the first place behind it that does not descend from it: token j is on the way to token i if
            ``j <= i < ends[j]``.
        counts: ``(T,)`` in how many rows it is learned.
    """

    ids: Ints
    positions: Ints
    parents: Ints
    ends: Ints
    counts: Ints


def tree(rows: Sequence[NDArray[np.int32]], learned: Sequence[NDArray[np.bool_]]) -> Tree:
    """Lay rows of tokens over one another.

    A row shares with those before it what it has in common with the row right before it, so likeness should be between
    neighbors, as it is between a user's targets in the order of time. Any order gives the right loss.

    Args:
        rows: Tokens of each row.
        learned: Which of them are learned; a row's first token never is.

    Example:
        >>> rows = [np.array([7, 8, 1]), np.array([7, 8, 9, 2])]
        >>> found = tree(rows, [row < 7 for row in rows])
        >>> found.ids.tolist(), found.parents.tolist(), found.ends.tolist()
        ([7, 8, 1, 9, 2], [0, 0, 1, 1, 3], [5, 5, 3, 5, 5])
    """
    shared = [0, *(common_prefix(one, two) for one, two in pairwise(rows))]
    starts = np.cumsum([0, *(len(row) - kept for row, kept in zip(rows, shared, strict=True))])
    ids, positions, parents = (np.empty(starts[-1], dtype=np.int64) for _ in range(3))
    ends, counts = np.full(starts[-1], starts[-1]), np.zeros(starts[-1], dtype=np.int64)
    path = np.empty(0, dtype=np.int64)  # the places of the row's tokens
    for row, marks, kept, start, end in zip(rows, learned, shared, starts[:-1], starts[1:], strict=True):
        ends[path[kept:]] = start
        path = np.concatenate([path[:kept], np.arange(start, end)])
        ids[start:end], positions[start:end] = row[kept:], np.arange(kept, len(row))
        parents[start:end] = path[np.maximum(np.arange(kept, len(row)) - 1, 0)]
        counts[path[1:]] += marks[1 : len(row)]
    return Tree(ids, positions, parents, ends, counts)


def side_by_side(trees: Sequence[Tree]) -> Tree:
    """Put trees behind one another in one line; no token sees another tree's.

    Example:
        >>> one = tree([np.array([7, 8])], [np.array([False, True])])
        >>> side_by_side([one, one]).ends.tolist(), side_by_side([one, one]).parents.tolist()
        ([2, 2, 4, 4], [0, 0, 2, 2])
    """
    starts = np.cumsum([0, *(len(one.ids) for one in trees)])
    return Tree(
        ids=np.concatenate([one.ids for one in trees]),
        positions=np.concatenate([one.positions for one in trees]),
        parents=np.concatenate([one.parents + start for one, start in zip(trees, starts, strict=False)]),
        ends=np.concatenate([one.ends + start for one, start in zip(trees, starts, strict=False)]),
        counts=np.concatenate([one.counts for one in trees]),
    )


def packed(trees: Sequence[Tree]) -> list[Tree]:
    """Lay trees side by side in lines no longer than the longest tree, longest first, each in the first that has room.

    Our choice: where that saves less than an eighth of the lines, they stay apart: plain causal attention is faster
    than one with a mask.
    """
    order = sorted(trees, key=lambda one: len(one.ids), reverse=True)
    lines: list[list[Tree]] = []
    room: list[int] = []
    for one in order:
        place = next((line for line, left in enumerate(room) if left >= len(one.ids)), len(lines))
        if place == len(lines):
            lines.append([])
            room.append(len(order[0].ids))
        lines[place].append(one)
        room[place] -= len(one.ids)
    return [side_by_side(line) for line in lines] if 8 * len(lines) <= 7 * len(trees) else list(trees)


def common_prefix(one: NDArray[np.int32], two: NDArray[np.int32]) -> int:
    """How many tokens two rows begin with alike."""
    width = min(len(one), len(two))
    differ = one[:width] != two[:width]
    return int(differ.argmax()) if differ.any() else width


class Groups(NamedTuple):
    """G groups of neighboring rows.

    Attributes:
        begins: ``(G+1,)`` the first row of each.
        lengths: ``(G,)`` its tokens as a tree.
    """

    begins: Ints
    lengths: Ints

    @property
    def sizes(self) -> Ints:
        """The rows of each group, ``(G,)``."""
        return np.diff(self.begins)


def alone(offsets: Ints) -> Groups:
    """Each row for itself."""
    return Groups(np.arange(len(offsets)), np.diff(offsets))


def alike(ids: NDArray[np.int32], offsets: Ints, *, most: int) -> Groups:
    """Group neighbors that begin alike, as the rows of one user do.

    A row joins the group of the row before it if they share at least half of its tokens. Our choice: below that, the
    wider attention costs what the shared tokens save.

    Args:
        ids: ``(T,)`` tokens of N rows in one line.
        offsets: ``(N+1,)`` where each row begins.
        most: Rows of a group, at most.
    """
    rows = [ids[start:end] for start, end in pairwise(offsets)]
    shared = np.array([0, *(common_prefix(one, two) for one, two in pairwise(rows))])
    begins = [0]
    for row in range(1, len(rows)):
        if row - begins[-1] >= most or 2 * shared[row] < len(rows[row]):
            begins.append(row)
    shared[begins] = 0
    return Groups(np.array([*begins, len(rows)]), np.add.reduceat(np.diff(offsets) - shared, begins))


def attention_mask(ends: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Additive mask ``(B, 1, T, T)`` of trees: 0 where a token may look, the type's minimum elsewhere.

    Args:
        ends: ``(B, T)``, see `Tree`.
        dtype: Of the model.
    """
    place = torch.arange(ends.shape[1], device=ends.device)
    seen = (place[None, :] <= place[:, None]) & (place[:, None] < ends[:, None, :])  # (B, T, T): query, key
    mask = torch.zeros(seen.shape, dtype=dtype, device=ends.device)
    return mask.masked_fill(~seen, torch.finfo(dtype).min)[:, None]

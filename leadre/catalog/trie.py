"""The trie of all S-IDs (LEADRE 3.3, A.2), as one pair of arrays a level instead of linked nodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Trie(NamedTuple):
    """Every S-ID prefix of the catalog; the nodes of a level stand in lexicographic order.

    The children of a node are neighbors, so two numbers name them all: about fifteen bytes an ad in place of
    the hundreds that nested dictionaries take, and whole batches are looked up at once.

    Attributes:
        codes: Level ``l``: ``(n_l,)`` the code of each node; int16, or int32 where some code is larger. A node of the
            last level is a catalog row.
        first_child: Level ``l``: ``(n_{l-1} + 1,)`` int32 (int64 from 2**31 ads on); node ``i`` of level ``l - 1`` has
            the children ``first_child[l][i] : first_child[l][i + 1]`` of level ``l``. Level -1 is the root alone.
    """

    codes: tuple[Tensor, ...]
    first_child: tuple[Tensor, ...]


class Children(NamedTuple):
    """The children of a batch of nodes, one after the other.

    Attributes:
        parent: ``(C,)`` int64, which of the given nodes each child belongs to; ascending.
        node: ``(C,)`` int64, the child's index in its level; ascending for one parent.
    """

    parent: Tensor
    node: Tensor


def build(sids: Tensor) -> Trie:
    """Build the trie of a catalog, a level at a time and no loop over ads.

    Args:
        sids: ``(N, L)`` integers, sorted lexicographically, no row twice.

    Raises:
        ValueError: If there is no row or no column, a code is negative, or the rows are unsorted or not unique.
    """
    if sids.ndim != 2 or 0 in sids.shape:
        raise ValueError(f"sids has the shape {tuple(sids.shape)}: it must be (ads, levels), at least 1 of each")
    if int(sids.min()) < 0:
        raise ValueError(f"sids holds the code {int(sids.min())}: codes are 0 or more")
    # A row opens a new node at a level when it differs from the row above there or at a level before.
    opens = torch.zeros(len(sids), dtype=torch.bool)
    opens[0] = True
    falls = torch.zeros_like(opens[1:])  # whether a row, after the first, is smaller than the row above
    codes, first_child = [], []
    rows = torch.zeros(1, dtype=torch.int64)  # the row that opened each node of the level above; first the root
    for column in sids.T.contiguous():
        falls |= (column[1:] < column[:-1]) & ~opens[1:]
        opens[1:] |= column[1:] != column[:-1]
        node = opens.cumsum(0) - 1  # (N,) the node of each row
        # A node's first child is the node that its own row opens one level below.
        first_child.append(torch.cat([node[rows], node[-1:] + 1]))
        rows = opens.nonzero().squeeze(1)
        codes.append(column[rows])
    _check_order(sids, opens, falls)
    return _narrowed(codes, first_child)


def children(trie: Trie, level: int, nodes: Tensor) -> Children:
    """All children, at ``level``, of nodes of the level above.

    Args:
        trie: The catalog's trie.
        level: Level of the children, from 0.
        nodes: ``(R,)`` int64 nodes of level ``level - 1`` (0 is the root for level 0); -1 has no children.
    """
    first, above = trie.first_child[level], nodes.clamp(min=0)
    low = first.index_select(0, above).long()
    counts = torch.where(nodes >= 0, first.index_select(0, above + 1) - low, 0)
    starts = counts.cumsum(0) - counts  # where each parent's children begin in the flat list
    parent = torch.repeat_interleave(counts)
    position = torch.arange(len(parent), device=nodes.device)
    return Children(parent, position + (low - starts).index_select(0, parent))  # several times as fast as indexing


def move(trie: Trie, device: torch.device) -> Trie:
    """The trie on a device; nothing is copied if it is there."""
    return Trie(tuple(codes.to(device) for codes in trie.codes), tuple(first.to(device) for first in trie.first_child))


def save(trie: Trie, path: Path) -> None:
    """Write ``codes.0``, ``first_child.0``, ``codes.1``, ... as safetensors."""
    arrays = {f"codes.{level}": codes for level, codes in enumerate(trie.codes)}
    arrays |= {f"first_child.{level}": first for level, first in enumerate(trie.first_child)}
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)


def load(path: Path) -> Trie:
    """Read what `save` wrote; a file of wider numbers gives the same trie."""
    arrays = load_file(path)
    levels = range(len(arrays) // 2)
    return _narrowed(
        [arrays[f"codes.{level}"] for level in levels],
        [arrays[f"first_child.{level}"] for level in levels],
    )


def _narrowed(codes: Sequence[Tensor], first_child: Sequence[Tensor]) -> Trie:
    """The trie in the narrowest numbers that hold it, which are the same for all levels."""
    largest = max(int(level.max()) for level in codes)
    code = torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32
    pointer = torch.int32 if len(codes[-1]) <= torch.iinfo(torch.int32).max else torch.int64
    return Trie(tuple(level.to(code) for level in codes), tuple(level.to(pointer) for level in first_child))


def _check_order(sids: Tensor, differs: Tensor, falls: Tensor) -> None:
    """Whether every row differs from the row above, and none falls below it."""
    if not bool(differs.all()):
        row = int((~differs).nonzero()[0])
        raise ValueError(f"sids has {sids[row].tolist()} twice (row {row}): every ad needs its own S-ID")
    if bool(falls.any()):
        row = int(falls.nonzero()[0]) + 1
        raise ValueError(f"sids is not sorted at row {row} ({sids[row].tolist()}): sort it by all levels")

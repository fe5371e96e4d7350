"""The trie of all S-IDs (LEADRE 3.3, A.2), as one pair of arrays a level instead of linked nodes."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Trie(NamedTuple):
    """Every S-ID prefix of the catalog; the nodes of a level stand in lexicographic order.

    The children of a node are neighbors, so two numbers name them all: a few tens of bytes an ad in place of
    the hundreds that nested dictionaries take, and whole batches are looked up at once.

    Attributes:
        codes: Level ``l``: ``(n_l,)`` int32, the code of each node. A node of the last level is a catalog row.
        first_child: Level ``l``: ``(n_{l-1} + 1,)`` int64; node ``i`` of level ``l - 1`` has the children
            ``first_child[l][i] : first_child[l][i + 1]`` of level ``l``. Level -1 is the root alone.
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
    """Build the trie of a catalog, all levels at once and no loop over ads.

    Args:
        sids: ``(N, L)`` integers, sorted lexicographically, no row twice.

    Raises:
        ValueError: If there is no row or no column, a code is negative, or the rows are unsorted or not unique.
    """
    if sids.ndim != 2 or 0 in sids.shape:
        raise ValueError(f"sids has the shape {tuple(sids.shape)}: it must be (ads, levels), at least 1 of each")
    if int(sids.min()) < 0:
        raise ValueError(f"sids holds the code {int(sids.min())}: codes are 0 or more")
    _check_order(sids)
    # 1. A row opens a new node at a level when it differs from the row above there or at a level before.
    differs = (sids[1:] != sids[:-1]).cummax(1).values
    opens = torch.cat([torch.ones_like(sids[:1], dtype=torch.bool), differs])  # (N, L)
    # 2. The nodes of a level are those rows; a node's first child is the node its own row opens one level below.
    codes, first_child = [], []
    rows = torch.zeros(1, dtype=torch.int64)  # the row that opened each node of the level above; first the root
    for level in range(sids.shape[1]):
        node = opens[:, level].cumsum(0) - 1  # (N,) the node of each row
        end = node[-1:] + 1
        first_child.append(torch.cat([node[rows], end]))
        rows = opens[:, level].nonzero().squeeze(1)
        codes.append(sids[rows, level].to(torch.int32))
    return Trie(tuple(codes), tuple(first_child))


def children(trie: Trie, level: int, nodes: Tensor) -> Children:
    """All children, at ``level``, of nodes of the level above.

    Args:
        trie: The catalog's trie.
        level: Level of the children, from 0.
        nodes: ``(R,)`` int64 nodes of level ``level - 1`` (0 is the root for level 0); -1 has no children.
    """
    first = trie.first_child[level]
    low = first[nodes.clamp(min=0)]
    counts = torch.where(nodes >= 0, first[nodes.clamp(min=0) + 1] - low, 0)
    parent = torch.repeat_interleave(torch.arange(nodes.numel(), device=nodes.device), counts)
    starts = counts.cumsum(0) - counts  # where each parent's children begin in the flat list
    position = torch.arange(parent.numel(), device=nodes.device) - starts[parent]
    return Children(parent, low[parent] + position)


def move(trie: Trie, device: torch.device) -> Trie:
    """The trie on a device; nothing is copied if it is there."""
    return Trie(tuple(codes.to(device) for codes in trie.codes), tuple(first.to(device) for first in trie.first_child))


def save(trie: Trie, path: Path) -> None:
    """Write ``codes.0``, ``first_child.0``, ``codes.1``, ... as safetensors."""
    arrays = {f"codes.{level}": codes for level, codes in enumerate(trie.codes)}
    arrays |= {f"first_child.{level}": first for level, first in enumerate(trie.first_child)}
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)


def load(path: Path) -> Trie:
    """Read what `save` wrote."""
    arrays = load_file(path)
    levels = range(len(arrays) // 2)
    return Trie(
        tuple(arrays[f"codes.{level}"] for level in levels),
        tuple(arrays[f"first_child.{level}"] for level in levels),
    )


def _check_order(sids: Tensor) -> None:
    change = sids[1:] != sids[:-1]
    first = change.to(torch.uint8).argmax(1, keepdim=True)  # the first level where a row leaves the one above
    if not bool(change.any(1).all()):
        row = int((~change.any(1)).nonzero()[0]) + 1
        raise ValueError(f"sids has {sids[row].tolist()} twice (row {row}): every ad needs its own S-ID")
    step = (sids[1:].gather(1, first) - sids[:-1].gather(1, first)).squeeze(1)
    if not bool((step > 0).all()):
        row = int((step < 0).nonzero()[0]) + 1
        raise ValueError(f"sids is not sorted at row {row} ({sids[row].tolist()}): sort it by all levels")

"""Which ads a user may be shown: taken down, outside of the request's allowed set, or already seen (LEADRE 3.4)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leadre.catalog.trie import Trie

NO_KEY = torch.iinfo(torch.int64).max
"""Fills up ``spent``, so that its shape does not depend on what was seen."""


class Filter(NamedTuple):
    """What each of R rows, users or beams of users, may be shown. The search then is that on a trie of those ads alone.

    A node is closed when nothing below it is left; so no beam is lost on the way to ads that may not be shown.

    Attributes:
        counts: Level ``l``: ``(G, n_l)`` int32, the allowed ads at or below each node, for each of G allowed sets.
        groups: ``(R,)`` int64, the allowed set of each row.
        seen: ``(R, S)`` int64, catalog rows that each row has seen; -1 fills up.
        spent: Level ``l``: ``(R * S,)`` int64, ascending keys ``row * n_l + node`` of the nodes below which a row has
            seen every allowed ad.
    """

    counts: tuple[Tensor, ...]
    groups: Tensor
    seen: Tensor
    spent: tuple[Tensor, ...]


def counts(trie: Trie, allowed: Tensor) -> tuple[Tensor, ...]:
    """The allowed ads at or below each node; made once for a catalog and its allowed sets.

    Args:
        trie: The catalog's trie, of N ads.
        allowed: ``(G, N)`` bool, the ads of each allowed set.

    Returns:
        Level ``l``: ``(G, n_l)`` int32.

    Raises:
        ValueError: If ``allowed`` is not bool or not of the trie's N ads.
    """
    ads = len(trie.codes[-1])
    if allowed.dtype != torch.bool or allowed.ndim != 2 or allowed.shape[1] != ads:
        raise ValueError(
            f"allowed is {allowed.dtype} of the shape {tuple(allowed.shape)}, but the trie has {ads} ads: "
            "give bool of the shape (allowed sets, ads)"
        )
    levels = [allowed.int()]
    for first in reversed(trie.first_child[1:]):
        before = torch.nn.functional.pad(levels[0].cumsum(1, dtype=torch.int32), (1, 0))  # (G, n + 1)
        levels.insert(0, before[:, first[1:].long()] - before[:, first[:-1].long()])
    return tuple(levels)


def make(trie: Trie, counts: Sequence[Tensor], groups: Tensor, seen: Tensor) -> Filter:
    """The filter of some rows.

    Args:
        trie: The catalog's trie, of N ads.
        counts: Of the function `counts`, on the device of the others.
        groups: ``(R,)`` int64 allowed set of each row.
        seen: ``(R, S)`` int64 catalog rows; -1 fills up, and S may be 0.

    Raises:
        ValueError: If a group or a seen ad does not exist, or the two differ in their rows.
    """
    _check_rows(groups, seen, num_groups=len(counts[0]), ads=len(trie.codes[-1]))
    rows = torch.arange(len(groups), device=groups.device)[:, None]
    hidden = (seen >= 0) & (counts[-1][groups[:, None], seen.clamp(min=0)] > 0)
    size = seen.numel()
    keys = torch.unique(torch.where(hidden, rows * len(trie.codes[-1]) + seen, NO_KEY))
    keys = keys[keys < NO_KEY]  # an ad that was seen twice counts once
    number = torch.ones_like(keys)
    spent: list[Tensor] = []
    for level in reversed(range(len(trie.codes))):
        row, node = keys // len(trie.codes[level]), keys % len(trie.codes[level])
        closed = keys[number == counts[level][groups[row], node]]
        spent.insert(0, torch.cat([closed, closed.new_full((size - len(closed),), NO_KEY)]))
        if level > 0:
            parent = torch.searchsorted(trie.first_child[level], node.to(trie.first_child[level].dtype), right=True) - 1
            above, place = (row * len(trie.codes[level - 1]) + parent).unique_consecutive(return_inverse=True)
            number = torch.zeros_like(above).index_add(0, place, number)  # of integers: exact in any order
            keys = above
    return Filter(tuple(counts), groups, seen, tuple(spent))


def alive(filter: Filter, level: int, rows: Tensor, nodes: Tensor) -> Tensor:
    """Whether anything at or below a node is left for a row; bool, in the shape of ``nodes``.

    Args:
        filter: What the rows may be shown.
        level: Level of the nodes.
        rows: Rows of the filter, of a shape that fits ``nodes``.
        nodes: int64 nodes of the level, 0 or more.
    """
    counts, spent = filter.counts[level], filter.spent[level]
    allowed: Tensor = counts[filter.groups[rows], nodes] > 0
    if spent.numel() == 0:
        return allowed
    keys = rows * counts.shape[1] + nodes
    found = spent[torch.searchsorted(spent, keys).clamp(max=len(spent) - 1)]
    return allowed & (found != keys)


def check(filter: Filter, trie: Trie, *, users: int) -> None:
    """Refuse a filter that has not one row a user, or is of another trie, or lies elsewhere.

    Raises:
        ValueError: If so.
    """
    if len(filter.groups) != users:
        raise ValueError(f"filter has {len(filter.groups)} rows for {users} users: make it with one row a user")
    nodes = [counts.shape[1] for counts in filter.counts]
    if nodes != [len(codes) for codes in trie.codes]:
        raise ValueError(
            f"filter counts {nodes} nodes a level, but trie has {[len(codes) for codes in trie.codes]}: make it with "
            "the trie that is searched"
        )
    if filter.groups.device != trie.codes[0].device:
        raise ValueError(
            f"filter is on {filter.groups.device}, but trie is on {trie.codes[0].device}: make it of tensors there"
        )


def below(trie: Trie, prefix: Sequence[int]) -> Tensor:
    """The ads whose S-IDs begin with ``prefix``, as an allowed set ``(N,)`` bool; the empty prefix allows all.

    Raises:
        ValueError: If no S-ID of the catalog begins so.
    """
    low, high = 0, 1
    for level, code in enumerate(prefix):
        if level == len(trie.codes):
            raise ValueError(f"prefix is {list(prefix)}, but S-IDs have {len(trie.codes)} codes: give as many at most")
        first, last = int(trie.first_child[level][low]), int(trie.first_child[level][high])
        found = (trie.codes[level][first:last] == code).nonzero()
        if not len(found):
            known = ", ".join(str(int(other)) for other in trie.codes[level][first:last][:10])
            raise ValueError(
                f"prefix is {list(prefix)}, but no S-ID of the catalog has {code} after {list(prefix[:level])}: "
                f"choose from {known}{' ..' if last - first > 10 else ''}"
            )
        low = first + int(found)
        high = low + 1
    for first_child in trie.first_child[max(1, len(prefix)) :]:
        low, high = int(first_child[low]), int(first_child[high])
    allowed = torch.zeros(len(trie.codes[-1]), dtype=torch.bool, device=trie.codes[-1].device)
    allowed[slice(None) if not prefix else slice(low, high)] = True
    return allowed


def _check_rows(groups: Tensor, seen: Tensor, *, num_groups: int, ads: int) -> None:
    if seen.ndim != 2 or len(seen) != len(groups):
        raise ValueError(f"seen has the shape {tuple(seen.shape)} for {len(groups)} rows: give it (rows, ads seen)")
    if groups.numel() and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
        raise ValueError(
            f"groups names the allowed sets {int(groups.min())} to {int(groups.max())}, but there are {num_groups}: "
            "give each row one of them"
        )
    if seen.numel() and not -1 <= int(seen.min()) <= int(seen.max()) < ads:
        raise ValueError(
            f"seen holds {int(seen.min())} to {int(seen.max())}, but the catalog has {ads} rows: "
            "name its rows, and -1 for none"
        )

"""One step of beam search over the trie, without the model: who may follow, and who is kept (LEADRE A.3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from leadre.catalog.trie import Children, Trie, children
from leadre.decoding.filters import Filter, alive


class Frontier(NamedTuple):
    """The beams after a step, in lexicographic order of what they have generated; dead ones last.

    Attributes:
        nodes: ``(B, W)`` int64 nodes of their level; -1 where a beam is dead.
        scores: ``(B, W)`` float32 sums of log-probabilities; -inf where a beam is dead.
        parents: ``(B, W)`` int64, which beam before the step each one continues.
    """

    nodes: Tensor
    scores: Tensor
    parents: Tensor


def candidates(
    trie: Trie, level: int, nodes: Tensor, filter: Filter | None = None, rows: Tensor | None = None
) -> Children:
    """The codes that may follow each beam: the children of its node that are open.

    Args:
        trie: The catalog's trie.
        level: Level of the children.
        nodes: ``(B, W)`` int64 nodes of the level above (0 is the root for level 0); -1 has no children.
        filter: What may be shown; None shows everything.
        rows: ``(B, W)`` int64 the filter's row of each beam.

    Returns:
        Their ``parent`` counts beams through all users: ``user * W + beam``.
    """
    found = children(trie, level, nodes.flatten())
    if filter is None or rows is None:
        return found
    kept = alive(filter, level, rows.flatten()[found.parent], found.node)
    return Children(found.parent[kept], found.node[kept])


def select(found: Children, scores: Tensor, shape: torch.Size, beam_width: int) -> Frontier:
    """Keep the best ``beam_width`` candidates of each user; among equal scores the first in lexicographic order.

    Args:
        found: The C candidates of all users.
        scores: ``(C,)`` float32; a candidate at -inf is never kept.
        shape: ``(B, W)`` of the beams that they continue.
        beam_width: How many are kept; where a user has fewer candidates, the rest of its beams is dead.
    """
    users, width = shape
    owner = found.parent // width  # (C,) ascending
    counts = torch.bincount(owner, minlength=users)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(owner), device=owner.device) - starts[owner]
    table = scores.new_full((users, max(1, int(counts.max()))), -torch.inf)
    table[owner, column] = scores
    # 1. The score of the last place divides the candidates: those above are in, those at it as far as places last.
    places = min(beam_width, table.shape[1])
    bar = table.topk(places).values[:, -1:]
    above, level = table > bar, (table == bar) & (bar > -torch.inf)
    kept = above | (level & (level.cumsum(1) <= places - above.sum(1, keepdim=True)))
    # 2. They keep their order, which is lexicographic since that of the beams was.
    user, column = kept.nonzero(as_tuple=True)
    slot = kept.cumsum(1)[user, column] - 1
    chosen = starts[user] + column
    nodes = starts.new_full((users, places), -1)
    parents = torch.zeros_like(nodes)
    totals = scores.new_full((users, places), -torch.inf)
    nodes[user, slot] = found.node[chosen]
    parents[user, slot] = found.parent[chosen] % width
    totals[user, slot] = scores[chosen]
    return Frontier(nodes, totals, parents)

"""One step of beam search over the trie, without the model: who may follow, and who is kept (LEADRE A.3)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    bounds = torch.searchsorted(found.parent, width * torch.arange(users + 1, device=scores.device))
    table = pad_sequence(list(torch.split(scores, bounds.diff().tolist())), batch_first=True, padding_value=-torch.inf)
    if table.shape[1] == 0:
        return _all_dead(scores, users)
    # 1. The best; where scores at the last place are equal, those that stand first.
    places = min(beam_width, table.shape[1])
    best, column = table.topk(places)
    bar = best[:, -1:]
    if bool(((table >= bar).sum(1) > places).any()):
        above, level = table > bar, table == bar
        kept = above | (level & (level.cumsum(1) <= places - above.sum(1, keepdim=True)))
        column = kept.nonzero()[:, 1].view(users, places)
        best = table.gather(1, column)
    # 2. In their order, which is lexicographic since that of the beams was; dead ones last.
    column = column.masked_fill(best == -torch.inf, table.shape[1]).sort(1).values
    alive = column < table.shape[1]
    chosen = (bounds[:-1, None] + column) * alive
    return Frontier(
        torch.where(alive, found.node[chosen], -1),
        torch.where(alive, scores[chosen], -torch.inf),
        torch.where(alive, found.parent[chosen] % width, 0),
    )


def _all_dead(scores: Tensor, users: int) -> Frontier:
    nothing = torch.zeros(users, 1, dtype=torch.int64, device=scores.device)
    return Frontier(nothing - 1, scores.new_full((users, 1), -torch.inf), nothing)

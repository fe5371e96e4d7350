"""One step of the search with static shapes: normalize, then select (LEADRE 4.4.2); no masked vocabulary is written.

Each function is plain torch, without a step on the host, and has a twin among the Triton kernels
(`leadre.decoding.triton_kernels`) that runs in its place on a GPU where Triton is installed.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from leadre.decoding.branches import Branches
from leadre.decoding.config import Normalizer
from leadre.decoding.filters import Filter, alive
from leadre.decoding.selection import Frontier

FUSED = find_spec("triton") is not None
"""Whether the Triton kernels run in place of their twins on a GPU."""


def log_normalizer(
    logits: Tensor, nodes: Tensor, branches: Branches, normalizer: Normalizer, filter: Filter | None = None
) -> Tensor:
    """What is taken from a code's logit to get its log-probability, for each beam.

    Args:
        logits: ``(B * W, V)`` of any data type: of the whole vocabulary for ``full``, else of the level's codes.
        nodes: ``(B, W)`` int64 nodes of the level above (0 is the root for level 0); -1 is a dead beam.
        branches: The level that is to be generated.
        normalizer: ``full`` and ``level`` take all that ``logits`` holds, ``trie`` the open children of the node.
        filter: What each of the B users may be shown.

    Returns:
        ``(B * W,)`` float32. Infinite for a node with a single open child under ``trie``, whose code is certain,
        whatever its logit; NaN where a logit is NaN or infinite.
    """
    if FUSED and logits.is_cuda:
        from leadre.decoding import triton_kernels

        if normalizer == "trie":
            return triton_kernels.normalize_children(logits, nodes, branches, filter)
        return triton_kernels.normalize_rows(logits)
    if normalizer == "trie":
        return normalize_children(logits, nodes, branches, filter)
    return normalize_rows(logits)


def select(
    logits: Tensor,
    norms: Tensor,
    frontier: Frontier,
    branches: Branches,
    *,
    first_code: int,
    beam_width: int,
    filter: Filter | None = None,
) -> Frontier:
    """Keep the best ``beam_width`` children of each user's beams; among equal scores the first in lexicographic order.

    Args:
        logits: ``(B * W, V)`` of any data type.
        norms: ``(B * W,)`` float32 of `log_normalizer`.
        frontier: The beams, ``(B, W)``, on the level above.
        branches: The level that is to be generated.
        first_code: Column of ``logits`` where code 0 of the level stands.
        beam_width: How many are kept; where a user has fewer candidates, the rest of its beams is dead.
        filter: What each of the B users may be shown. With seen ads there is a binary search a candidate in the
            kernel, as in its twin.

    Returns:
        ``(B, beam_width)``, living beams first and in lexicographic order. A candidate at -inf is never kept. One at
        NaN always is, so that NaN is found at the end of the search.
    """
    chosen = select_children
    if FUSED and logits.is_cuda:
        from leadre.decoding import triton_kernels

        chosen = triton_kernels.select_children
    return chosen(logits, norms, frontier, branches, first_code, beam_width, filter)


def normalize_rows(logits: Tensor) -> Tensor:
    """The twin of `log_normalizer` for ``full`` and ``level``."""
    norms = logits.float().logsumexp(1)
    norms = norms.clamp(min=torch.finfo(torch.float32).min)  # finite also where no code is possible; NaN stays
    return norms.masked_fill(norms == torch.inf, torch.nan)


def normalize_children(logits: Tensor, nodes: Tensor, branches: Branches, filter: Filter | None) -> Tensor:
    """The twin of `log_normalizer` for ``trie``."""
    children, open_ = _children(nodes, branches, filter)  # (B, W, M)
    values = _logits(logits, branches.codes[children], 0).masked_fill(~open_, -torch.inf)
    smallest = torch.finfo(torch.float32)
    high = values.amax(2).clamp(min=smallest.min)  # finite also where no code is possible at all
    total = (values - high[..., None]).exp().sum(2).clamp(min=smallest.tiny)
    norms = (high + total.log()).masked_fill(high == torch.inf, torch.nan)
    return norms.masked_fill(open_.sum(2) == 1, torch.inf).flatten()


def select_children(
    logits: Tensor,
    norms: Tensor,
    frontier: Frontier,
    branches: Branches,
    first_code: int,
    beam_width: int,
    filter: Filter | None,
) -> Frontier:
    """The twin of `select`."""
    users, width = frontier.nodes.shape
    children, open_ = _children(frontier.nodes, branches, filter)
    norms = norms.view(users, width, 1)
    gains = _logits(logits, branches.codes[children], first_code) - norms
    scores = frontier.scores[..., None] + gains.masked_fill(norms == torch.inf, 0.0)
    table = scores.masked_fill(~open_, -torch.inf).flatten(1)  # (B, W * M)
    # 1. The score of the last place divides the candidates: those above are in, those at it as far as places last.
    places = min(beam_width, table.shape[1])
    keys = table.masked_fill(table.isnan(), torch.inf)
    bar = keys.topk(places).values[:, -1:]
    above, level = keys > bar, (keys == bar) & (bar > -torch.inf)
    kept = above | (level & (level.cumsum(1) <= places - above.sum(1, keepdim=True)))
    # 2. They keep their order; what is not kept goes to one place too many, which is cut off.
    slot = (kept.cumsum(1) - 1).masked_fill(~kept, beam_width)
    parents = torch.arange(width, device=slot.device)[:, None].expand(width, branches.most).flatten()

    def placed(values: Tensor, empty: float) -> Tensor:
        made = values.new_full((users, beam_width + 1), empty)
        return made.scatter_(1, slot, values.expand(users, -1))[:, :beam_width].contiguous()

    return Frontier(placed(children.flatten(1), -1), placed(table, -torch.inf), placed(parents, 0))


def _children(nodes: Tensor, branches: Branches, filter: Filter | None) -> tuple[Tensor, Tensor]:
    """The children ``(B, W, M)`` of each beam, and which of them exist and are open."""
    living = nodes >= 0
    above = nodes.clamp(min=0)
    first, end = branches.first_child[above].long(), branches.first_child[above + 1].long()
    children = first[..., None] + torch.arange(branches.most, device=nodes.device)
    open_ = (children < end[..., None]) & living[..., None]
    children = children.clamp(max=len(branches.codes) - 1)
    if filter is not None:
        users = torch.arange(len(nodes), device=nodes.device)[:, None, None].expand_as(children)
        open_ = open_ & alive(filter, branches.level, users, children)
    return children, open_


def _logits(logits: Tensor, codes: Tensor, first_code: int) -> Tensor:
    """The logit ``(B, W, M)`` of each child's code, in float32."""
    columns = codes.flatten(0, 1).long() + first_code  # (B * W, M)
    return logits.gather(1, columns).float().view(codes.shape)

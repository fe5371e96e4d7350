"""TIGER's lists: a beam over the catalog's trie, so that every S-ID that is written is an ad's."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from leadre.baselines.past import NONE
from leadre.baselines.ranking import Ranked
from leadre.baselines.tiger_network import Tiger, leaves
from leadre.catalog.trie import Children, children


class Inputs(NamedTuple):
    """What is known of B users.

    Attributes:
        users: ``(B,)`` tokens.
        ads: ``(B, A)`` catalog rows of the latest ads, oldest first, -1 behind the last.
    """

    users: Tensor
    ads: Tensor


@torch.no_grad()
def search(network: Tiger, inputs: Inputs, left_out: Tensor, *, size: int, beam_width: int) -> Ranked:
    """Write the most probable ads of each user; their scores are log-probabilities (see `Rank`).

    The reading is read once. Every level keeps the best beams; the decoder's cache of their codes follows them.

    Args:
        network: In evaluation mode.
        inputs: Of B users.
        left_out: ``(2, X)`` users and the catalog rows that they are not to get. A beam never goes where all ads are
            left out.
        size: Length of a list, at most the width of the beam.
        beam_width: Beams kept at every level.
    """
    users, ads = inputs
    spent = torch.unique(left_out[0] * len(network.nodes) + left_out[1])  # sorted
    seen = (ads != NONE).sum(1, keepdim=True)
    states, cache, trie = network.read(users, ads), network.new_cache(), network.trie
    view = network.view(seen, ads.shape[1])  # (B, H, 1, S)
    tokens = torch.full_like(users[:, None, None], network.start_token)  # (B, W, 1)
    nodes = torch.zeros_like(users[:, None])  # (B, W) of the level above; first the root
    scores = nodes.float()
    for level, ends in enumerate(leaves(trie)):
        width = nodes.shape[1]
        written = network.write(states, view.expand(-1, -1, width, -1), tokens, cache).flatten(0, 2)  # (B W, D)
        gains = network.logprobs(written, level, nodes.flatten())
        below = _unspent(children(trie, level, nodes.flatten()), ends, spent, width)
        beam, nodes, scores = _best(below, trie.codes[level], gains, scores, beam_width)
        tokens = network.tokens_of(level, nodes)[..., None]
        above = torch.arange(len(users), device=users.device)[:, None] * width + beam
        cache.self_attention_cache.reorder_cache(cast(torch.LongTensor, above.flatten()))
    nodes, scores = nodes[:, :size], scores[:, :size]
    missing = size - nodes.shape[1]
    return Ranked(
        nn.functional.pad(nodes, (0, missing), value=-1), nn.functional.pad(scores, (0, missing), value=-torch.inf)
    )


def _unspent(found: Children, ends: Tensor, spent: Tensor, width: int) -> Children:
    """The children below which a user has an ad left.

    Args:
        found: ``width`` beams a user stand in ``parent``.
        ends: The `leaves` of the level.
        spent: ``(X,)`` ascending ``user * N + catalog row`` of what is left out.
        width: Beams a user.
    """
    if not len(spent):
        return found
    first, last = ends[found.node], ends[found.node + 1]
    key = found.parent // width * int(ends[-1])  # the user's
    taken = torch.searchsorted(spent, key + last) - torch.searchsorted(spent, key + first)
    left = taken < last - first
    return Children(found.parent[left], found.node[left])


def _best(
    found: Children, codes: Tensor, gains: Tensor, scores: Tensor, beam_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best children of each user's beams: ``(B, W')`` their beam, node (-1 for none) and score."""
    code = codes[found.node].long()
    nodes = torch.full(gains.shape, -1, device=gains.device)
    nodes[found.parent, code] = found.node
    totals = torch.full_like(gains, -torch.inf)
    totals[found.parent, code] = scores.flatten()[found.parent] + gains[found.parent, code]
    totals, nodes = totals.view(len(scores), -1), nodes.view(len(scores), -1)
    best, place = totals.topk(min(beam_width, totals.shape[1]), 1)
    return place // gains.shape[1], nodes.gather(1, place), best

"""Several ads a pass: N ads one after another in a beam, the trie restarted, earlier ads left out (LEADRE 6)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from leadre.catalog.trie import Trie, move
from leadre.decoding import filters
from leadre.decoding.beam_search import Beams, State, best_first, read_prompt, start, step
from leadre.decoding.checks import check_catalog, head_of, level_widths
from leadre.decoding.config import Normalizer
from leadre.decoding.filters import Filter


class Sequences(NamedTuple):
    """The sequences of ads found for each user, best first; equal scores stand in the order of their S-IDs.

    Attributes:
        rows: ``(B, W, N)`` int64 rows of the catalog, in the order in which they were generated; -1 from where on a
            user has no further ad, and everywhere in a sequence that was not found.
        scores: ``(B, W)`` float32 sums of log-probabilities; -inf where fewer than W sequences were found.
        ads: ``(B, W, N)`` int64, the n-th ad of each of the beams that were kept after n ads; -1 where there is none.
        ad_scores: ``(B, W, N)`` float32, the scores of those beams.
    """

    rows: Tensor
    scores: Tensor
    ads: Tensor
    ad_scores: Tensor


class _Found(NamedTuple):
    """The sequences of n ads, best first: ``(B, W, n)`` and ``(B, W)``."""

    rows: Tensor
    scores: Tensor


def generate_next_n(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    trie: Trie,
    sid_tokens: Sequence[range],
    beam_width: int | Sequence[int],
    normalizer: Normalizer,
    next_n: int,
    filter: Filter | None = None,
) -> Sequences:
    """Generate the most probable sequences of ``next_n`` distinct ads (LEADRE 6, "Next-N Generation").

    The paper names the wish and no design. Our choice: after an ad's last code the beam goes on at the root of the
    trie, as behind a prompt that holds the ad, and the ads that it has generated are closed to it. With ``next_n=1``
    this is `leadre.decoding.beam_search.beam_search`. A user who has fewer ads gets them all, in sequences that end
    early.

    Args:
        model: As for `beam_search`; tuned on sequences of ads (the task ``next_n``), or they mean little.
        input_ids: ``(B, T)`` prompts, padded on either side.
        attention_mask: ``(B, T)`` 1 at prompt tokens.
        trie: The catalog's trie.
        sid_tokens: Token ids of each level's codes.
        beam_width: Sequences kept at every code, or a number a level.
        normalizer: As for `beam_search`.
        next_n: N, the ads of a sequence.
        filter: What each user may be shown, one row a user.

    Raises:
        ValueError: As for `beam_search`, and if ``next_n`` is below 1.
    """
    if next_n < 1:
        raise ValueError(f"next_n is {next_n}: a sequence has at least 1 ad")
    trie = move(trie, input_ids.device)
    widths = level_widths(beam_width, levels=len(sid_tokens))
    check_catalog(trie, sid_tokens)
    head = head_of(model, sid_tokens)
    users = torch.arange(len(input_ids), device=input_ids.device)
    open_ads = filter if filter is not None else _everything(trie, users)
    filters.check(open_ads, trie, users=len(users))
    with torch.no_grad():
        reading, hidden = read_prompt(model, input_ids, attention_mask, room=next_n * sum(widths))
        beams = start(hidden, users[:, None])
        ads = beams.rows.new_zeros((len(users), 1, 0))
        found: list[_Found] = []
        for _ in range(next_n):
            beams, current = _restarted(beams, ads, open_ads, trie)
            for level in range(len(widths)):
                beams = step(head, reading, beams, trie, level, sid_tokens, widths[level], normalizer, current)
            origin = beams.rows % ads.shape[1]  # the filter's row tells which beam of n ads each one continues
            earlier = ads.gather(1, origin[..., None].expand(-1, -1, ads.shape[2]))
            ads = torch.cat([earlier, beams.frontier.nodes[..., None]], 2)  # nodes of the last level are catalog rows
            found.append(_padded(ads, beams.frontier.scores, widths[-1]))
    return _joined(found)


def merge(sequences: Sequences, num_ads: int) -> Beams:
    """One list of distinct ads a user, ordered by how often an ad is expected among the next N.

    Our choice: each of the N places counts alike. The beams that were kept after n ads are taken as the distribution of
    the n-th ad; the probabilities of an ad at the N places add up. The list so holds likely next ads and those that
    are likely somewhat later, and at least as many ads as there were beams after the first. For N = 1 it is the
    plain list.

    Args:
        sequences: Of N ads, from W beams.
        num_ads: Length of the lists; -1 fills up.
    """
    totals = sequences.ad_scores.logsumexp(1, keepdim=True)  # (B, 1, N) of the beams that were kept
    weights = sequences.ad_scores + (totals[..., :1] - totals).nan_to_num(neginf=-torch.inf)
    rows, weights = sequences.ads.flatten(1), weights.flatten(1)  # (B, W N)
    order = rows.argsort(dim=1, stable=True)
    rows, weights = rows.gather(1, order), weights.gather(1, order)
    opens = torch.nn.functional.pad(rows[:, 1:] != rows[:, :-1], (1, 0), value=True)
    # 1. The entries of an ad stand together now. Not scatter_add, whose order of addition a GPU leaves open.
    lengths = torch.bincount(opens.flatten().cumsum(0) - 1)
    high = torch.segment_reduce(weights.flatten(), "max", lengths=lengths).clamp(min=torch.finfo(weights.dtype).min)
    shifted = (weights.flatten() - high.repeat_interleave(lengths)).exp()
    summed = torch.segment_reduce(shifted, "sum", lengths=lengths).log() + high
    # 2. Each ad stands at its first entry.
    distinct = torch.where(opens, rows, -1)
    scores = torch.full_like(weights, -torch.inf).masked_scatter(opens, summed)
    scores = scores.masked_fill(distinct < 0, -torch.inf)
    return best_first(distinct, scores, num_ads)


def _everything(trie: Trie, users: Tensor) -> Filter:
    ads = trie.codes[-1]
    allowed = torch.ones(1, len(ads), dtype=torch.bool, device=ads.device)
    return filters.make(trie, filters.counts(trie, allowed), torch.zeros_like(users), users.new_zeros((len(users), 0)))


def _restarted(beams: State, ads: Tensor, open_ads: Filter, trie: Trie) -> tuple[State, Filter]:
    """The beams at the root again, and a filter with a row a beam that leaves out the ads ``(B, W, n)`` it has."""
    users, width, length = ads.shape
    user = torch.arange(users, device=ads.device).repeat_interleave(width)
    seen = torch.cat([open_ads.seen[user], ads.reshape(users * width, length)], 1)
    current = filters.make(trie, open_ads.counts, open_ads.groups[user], seen)
    alive = beams.frontier.scores > -torch.inf
    roots = torch.where(alive, 0, -1)
    rows = torch.arange(users * width, device=ads.device).view(users, width)
    return beams._replace(frontier=beams.frontier._replace(nodes=roots), rows=rows), current


def _padded(ads: Tensor, scores: Tensor, width: int) -> _Found:
    """Sequences ``(B, W, n)`` and scores ``(B, W)``, best first, with -1 and -inf where there are fewer."""
    missing = width - scores.shape[1]
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    rows = torch.nn.functional.pad(ads, (0, 0, 0, missing), value=-1).masked_fill(scores[..., None] == -torch.inf, -1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return _Found(rows.gather(1, order[..., None].expand(-1, -1, rows.shape[2])), scores)


def _joined(found: list[_Found]) -> Sequences:
    """Of each user the longest sequences that were found, and the last ads of all."""
    rows, scores = found[0]
    for longer in found[1:]:
        goes_on = longer.scores[:, 0] > -torch.inf
        rows = torch.where(goes_on[:, None, None], longer.rows, torch.nn.functional.pad(rows, (0, 1), value=-1))
        scores = torch.where(goes_on[:, None], longer.scores, scores)
    return Sequences(
        rows,
        scores,
        ads=torch.stack([each.rows[..., -1] for each in found], 2),
        ad_scores=torch.stack([each.scores for each in found], 2),
    )

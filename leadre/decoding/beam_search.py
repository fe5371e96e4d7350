"""Exact constrained beam search over the trie of S-IDs, for any Transformers causal language model."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from leadre.catalog.sids import level_letter
from leadre.catalog.trie import Trie, move
from leadre.decoding.cache import roomy_cache
from leadre.decoding.checks import check_catalog, check_prompts, head_of, level_widths
from leadre.decoding.config import Normalizer
from leadre.decoding.filters import Filter, check
from leadre.decoding.selection import Frontier, candidates, select

_BLOCK = 2048
"""Tokens of the vocabulary whose logits are computed at a time."""


class Beams(NamedTuple):
    """The ads found for each user, best first; equal scores stand in the order of their S-IDs.

    Attributes:
        rows: ``(B, W)`` int64 rows of the catalog; -1 where fewer than W ads were found.
        scores: ``(B, W)`` float32 sums of log-probabilities; -inf where fewer than W ads were found.
    """

    rows: Tensor
    scores: Tensor


def sid_tokens(sid_offsets: Sequence[int], num_codes: Sequence[int]) -> tuple[range, ...]:
    """The token ids of each level's codes, from the model's offsets and the catalog's number of codes.

    Raises:
        ValueError: If the two have different numbers of levels: the model was made for another catalog.

    Example:
        >>> sid_tokens((100, 104), (4, 2))
        (range(100, 104), range(104, 106))
    """
    if len(sid_offsets) != len(num_codes):
        raise ValueError(
            f"sid_offsets has {len(sid_offsets)} levels, but num_codes has {len(num_codes)}: "
            "the model and the catalog do not belong together; train the model for this catalog"
        )
    return tuple(range(first, first + count) for first, count in zip(sid_offsets, num_codes, strict=True))


def beam_search(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    trie: Trie,
    sid_tokens: Sequence[range],
    beam_width: int | Sequence[int],
    normalizer: Normalizer,
    filter: Filter | None = None,
) -> Beams:
    """Generate the ``beam_width`` most probable ads of each user (LEADRE 3.4, A.3).

    The prompt is read once a user. From then on the beams of a user are further query rows behind the same
    prompt, with a mask that lets each row see the prompt and its own ancestors: the cache only grows, and is
    never repeated, reordered or copied for a beam. Nodes of the trie alone are scored, so that every result is an
    ad of the catalog and none comes twice. A code of probability zero is never generated.

    Our choice: the paper scores with "the LLM's output probabilities" over feasible codes, which can be read
    in several ways, and they rank differently; ``normalizer`` names the one.

    Args:
        model: Any causal language model with full attention, in evaluation mode.
        input_ids: ``(B, T)`` prompts, padded on either side.
        attention_mask: ``(B, T)`` 1 at prompt tokens and 0 at padding.
        trie: The catalog's trie, best on the model's device.
        sid_tokens: Token ids of each level's codes, see `sid_tokens`.
        beam_width: Beams kept at every level, or a number a level; W is the last.
        normalizer: What each code's log-probability is taken among: ``full`` the whole vocabulary, ``level``
            the codes of its level, ``trie`` the open children of its node. A code that is the only one there
            then has probability 1, and the model is not asked.
        filter: What each user may be shown, one row a user; None shows everything.

    Raises:
        ValueError: If the trie is empty, does not fit ``sid_tokens`` or the model's vocabulary, ``beam_width`` has
            another number of levels, a prompt is empty, the model is in training mode or of a kind that is not
            supported, or it gives NaN.
    """
    trie = move(trie, input_ids.device)
    widths = level_widths(beam_width, levels=len(sid_tokens))
    check_catalog(trie, sid_tokens)
    head = head_of(model, sid_tokens)
    if filter is not None:
        check(filter, trie, users=len(input_ids))
    with torch.no_grad():
        reading, hidden = read_prompt(model, input_ids, attention_mask, room=sum(widths[:-1]))
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None]
        beams = start(hidden, rows)
        for level in range(len(widths)):
            beams = step(head, reading, beams, trie, level, sid_tokens, widths[level], normalizer, filter)
    return best_first(beams.frontier.nodes, beams.frontier.scores, widths[-1])


class Reading(NamedTuple):
    """What the model has read: its cache, and which of it is prompt.

    Attributes:
        decoder: The model without its head.
        cache: Keys and values of the prompts and of all codes read so far.
        prompt: ``(B, T)`` bool, True at real prompt tokens.
        lengths: ``(B,)`` int64 real prompt tokens.
    """

    decoder: Any
    cache: Cache
    prompt: Tensor
    lengths: Tensor


class State(NamedTuple):
    """The beams between two steps.

    Attributes:
        frontier: Their nodes and scores.
        rows: ``(B, W)`` int64 the filter's row of each beam.
        ancestors: ``(B, W, S)`` bool, which of the S codes in the cache each beam continues.
        unread: ``(B, W, n)`` int64 tokens of the n codes of each beam that the model has not read; -1 where it has.
        hidden: ``(B, 1, D)`` the prompt's last hidden state, before the first step; then None.
    """

    frontier: Frontier
    rows: Tensor
    ancestors: Tensor
    unread: Tensor
    hidden: Tensor | None


def read_prompt(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, *, room: int
) -> tuple[Reading, Tensor]:
    """Read the prompts once; the hidden state ``(B, 1, D)`` is that of each one's last token.

    Args:
        model: The language model.
        input_ids: ``(B, T)`` prompts, padded on either side.
        attention_mask: ``(B, T)`` 1 at prompt tokens.
        room: Codes of a user that will be read behind them.

    Raises:
        ValueError: If there is no prompt, or one is empty.
    """
    prompt = attention_mask.bool()
    lengths = check_prompts(input_ids, prompt)
    decoder = cast(Any, model).get_decoder()
    cache = roomy_cache(model.config.num_hidden_layers, room=room)
    hidden = decoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(prompt.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    last = (prompt * torch.arange(prompt.shape[1], device=prompt.device)).argmax(1)
    return Reading(decoder, cache, prompt, lengths), hidden[torch.arange(len(last), device=last.device), last][:, None]


def start(hidden: Tensor, rows: Tensor) -> State:
    """One beam a user, at the root of the trie; ``rows`` ``(B, 1)`` is the filter's row of each user."""
    root = torch.zeros_like(rows)
    nothing = root.new_zeros((*root.shape, 0))  # (B, 1, 0)
    return State(Frontier(root, root.float(), root), rows, nothing.bool(), nothing, hidden)


def step(
    head: nn.Module,
    reading: Reading,
    beams: State,
    trie: Trie,
    level: int,
    sid_tokens: Sequence[range],
    beam_width: int,
    normalizer: Normalizer,
    filter: Filter | None,
) -> State:
    """Continue the beams, whose nodes lie on the level above (level 0: at the root), by a code each."""
    nodes = beams.frontier.nodes
    found = candidates(trie, level, nodes, filter, beams.rows)
    codes = trie.codes[level][found.node].long()
    # 1. The model is asked wherever its answer matters.
    number = torch.bincount(found.parent, minlength=nodes.numel()).view(nodes.shape)  # (B, W) children of each
    asked = number > (1 if normalizer == "trie" else 0)
    hidden, beams = _read_codes(reading, beams, asked)
    # 2. What each candidate adds.
    scored = asked.flatten()[found.parent]
    place = asked.flatten().cumsum(0) - 1  # of each beam among those asked
    gains = found.node.new_zeros(len(found.node), dtype=torch.float32)  # a forced code has probability 1
    gains[scored] = gains_of(head, hidden, place[found.parent[scored]], codes[scored], sid_tokens[level], normalizer)
    _check_finite(gains, level)
    # 3. The best of them are the beams of this level.
    frontier = select(found, beams.frontier.scores.flatten()[found.parent] + gains, nodes.shape, beam_width)
    tokens = sid_tokens[level].start + trie.codes[level][frontier.nodes.clamp(min=0)].long()
    inherit = frontier.parents[..., None]
    return State(
        frontier,
        beams.rows.gather(1, frontier.parents),
        beams.ancestors.gather(1, inherit.expand(-1, -1, beams.ancestors.shape[2])),
        torch.cat([beams.unread.gather(1, inherit.expand(-1, -1, beams.unread.shape[2])), tokens[..., None]], 2),
        hidden=None,
    )


def _read_codes(reading: Reading, beams: State, asked: Tensor) -> tuple[Tensor, State]:
    """The hidden states ``(A, D)`` of the A beams that are asked, after reading what they have unread.

    The tokens of a user stand in a row behind all that was read before; each sees the prompt and its own ancestors.
    """
    if beams.hidden is not None:
        return beams.hidden[asked], beams
    wanted = (beams.unread >= 0) & asked[..., None]  # (B, W, n)
    user, beam, place = wanted.nonzero(as_tuple=True)  # (R,) by user, then beam, then age
    counts = torch.bincount(user, minlength=len(asked))
    width = int(counts.max())
    if width == 0:
        return reading.prompt.new_zeros((0, 1)), beams
    slot = torch.arange(len(user), device=user.device) - (counts.cumsum(0) - counts)[user]
    shape = (len(asked), width)
    tokens, positions = beams.unread.new_zeros(shape), reading.lengths[:, None].repeat(1, width)
    owner = beams.unread.new_full(shape, -1)
    tokens[user, slot] = beams.unread[user, beam, place]
    positions[user, slot] += place
    owner[user, slot] = beam
    everyone = torch.arange(asked.shape[1], device=user.device)
    own = owner[:, None, :] == everyone[None, :, None]  # (B, W, R)
    ancestors = torch.cat([beams.ancestors, own], 2)
    read = _read_tokens(reading, tokens, positions, _visible(ancestors, owner))
    last = wanted.sum(2)[asked].cumsum(0) - 1  # the last token of each asked beam
    unread = beams.unread.masked_fill(asked[..., None], -1)
    return read[user[last], slot[last]], beams._replace(ancestors=ancestors, unread=unread)


def _visible(ancestors: Tensor, owner: Tensor) -> Tensor:
    """Which codes each token of a pass sees, ``(B, R, S)``: those of its beam, the later ones of the pass left out."""
    width = owner.shape[1]
    visible = ancestors.gather(1, owner.clamp(min=0)[..., None].expand(-1, -1, ancestors.shape[2]))
    visible[:, :, -width:] &= torch.ones(width, width, dtype=torch.bool, device=owner.device).tril()
    return visible


def _read_tokens(reading: Reading, tokens: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """The hidden states ``(B, R, D)`` of tokens ``(B, R)`` that see the prompt and some codes ``(B, R, S)``."""
    seen = torch.cat([reading.prompt[:, None].expand(-1, tokens.shape[1], -1), visible], 2)
    # An additive mask, since eager attention adds whatever mask it is given.
    mask = torch.zeros(seen.shape, dtype=reading.decoder.dtype, device=tokens.device)
    mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)[:, None]  # (B, 1, R, T + S)
    read = reading.decoder(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=reading.cache,
        use_cache=True,
    )
    return cast(Tensor, read.last_hidden_state)


def gains_of(
    head: nn.Module, hidden: Tensor, parent: Tensor, codes: Tensor, tokens: range, normalizer: Normalizer
) -> Tensor:
    """The log-probability ``(C,)`` of each candidate's code after its beam, in float32.

    Args:
        head: The model's head.
        hidden: ``(A, D)`` hidden states of the beams.
        parent: ``(C,)`` ascending, which of the beams each candidate continues.
        codes: ``(C,)`` its code.
        tokens: Token ids of the level's codes.
        normalizer: What the probability is taken among; ``trie`` takes a beam's candidates here.
    """
    if not len(parent):
        return hidden.new_zeros(0, dtype=torch.float32)
    if type(head) is not nn.Linear:  # only of a plain layer its weights are all there is; an adapter adds to them
        everything = cast(Tensor, head(hidden)).float()  # (A, V)
        logits = everything[:, tokens.start : tokens.stop]
        if normalizer == "full":
            return logits[parent, codes] - _finite(everything.logsumexp(1))[parent]
    else:
        logits = logits_of(head, hidden, tokens)  # (A, K)
        if normalizer == "full":
            return logits[parent, codes] - _finite(_log_normalizer(head, hidden))[parent]
    if normalizer == "level":
        return logits[parent, codes] - _finite(logits.logsumexp(1))[parent]
    return _log_softmax_by_parent(logits[parent, codes], parent, hidden.shape[0])


def logits_of(head: nn.Linear, hidden: Tensor, tokens: range) -> Tensor:
    """The logits ``(A, K)`` of some tokens alone, in float32."""
    bias = None if head.bias is None else head.bias[tokens.start : tokens.stop]
    return nn.functional.linear(hidden, head.weight[tokens.start : tokens.stop], bias).float()


def _log_normalizer(head: nn.Linear, hidden: Tensor) -> Tensor:
    """The logsumexp ``(A,)`` of the whole vocabulary's logits, which are never all in memory at once.

    A block of logits stays in the processor's cache until its sum is taken: that costs little beyond the product.
    """
    size = head.weight.shape[0]
    blocks = [range(first, min(first + _BLOCK, size)) for first in range(0, size, _BLOCK)]
    return torch.stack([logits_of(head, hidden, block).logsumexp(1) for block in blocks]).logsumexp(0)


def _finite(norms: Tensor) -> Tensor:
    """So that codes that are all impossible get -inf each, and not NaN, which stays what a broken model gives."""
    return norms.clamp(min=torch.finfo(norms.dtype).min)


def _log_softmax_by_parent(logits: Tensor, parent: Tensor, num_parents: int) -> Tensor:
    counts = torch.bincount(parent, minlength=num_parents)
    shifted = logits - _finite(torch.segment_reduce(logits, "max", lengths=counts))[parent]
    # Not index_add, whose order of addition, and so the last bit, is left open on a GPU.
    total = torch.segment_reduce(shifted.exp(), "sum", lengths=counts)
    return shifted - total.clamp(min=torch.finfo(logits.dtype).tiny)[parent].log()


def best_first(rows: Tensor, scores: Tensor, width: int) -> Beams:
    """The best ``width`` of each user's ads, ordered; equal scores stay in the order given; -1 fills up."""
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    missing = max(0, width - scores.shape[1])
    return Beams(
        nn.functional.pad(rows.gather(1, order)[:, :width], (0, missing), value=-1),
        nn.functional.pad(scores[:, :width], (0, missing), value=-torch.inf),
    )


def _check_finite(gains: Tensor, level: int) -> None:
    if bool(gains.isnan().any()):
        raise ValueError(
            f"model gives NaN for {int(gains.isnan().sum())} of {gains.numel()} codes at level "
            f"{level_letter(level)}: its weights or its prompt embeddings are broken; no list is made from them"
        )

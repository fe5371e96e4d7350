"""Exact constrained beam search over the trie of S-IDs, for any Transformers causal language model."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from leadre.catalog.sids import level_letter
from leadre.catalog.trie import Children, Trie, children, move
from leadre.decoding.config import Normalizer

_HEAD_SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")
"""Configuration keys of models that change the logits after the head, which the search would miss."""


class Beams(NamedTuple):
    """The ads found for each user, best first; equal scores stand in the order of their S-IDs.

    Attributes:
        rows: ``(B, W)`` int64 rows of the catalog; -1 where fewer than W ads were found.
        scores: ``(B, W)`` float32 sums of log-probabilities; -inf where fewer than W ads were found.
    """

    rows: Tensor
    scores: Tensor


class _Frontier(NamedTuple):
    """The beams after a level; within a user by ascending node, which is lexicographic order; dead ones last."""

    nodes: Tensor  # (B, W) int64, -1 where a beam is dead
    scores: Tensor  # (B, W) float32, -inf where a beam is dead
    parents: Tensor  # (B, W) int64, which beam of the level above each one continues


class _Context(NamedTuple):
    """What the model has read: its cache, and who may look at what."""

    decoder: Any  # the model without its head
    cache: DynamicCache
    prompt: Tensor  # (B, T) bool, True at real prompt tokens
    lengths: Tensor  # (B,) int64 real prompt tokens


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
    beam_width: int,
    normalizer: Normalizer,
) -> Beams:
    """Generate the ``beam_width`` most probable ads of each user (LEADRE 3.4, A.3).

    The prompt is read once a user. From then on the beams of a user are further query rows behind the same
    prompt, with a mask that lets each row see the prompt and its own ancestors: the cache only grows, and is
    never repeated or reordered for a beam. Nodes of the trie alone are scored, so that every result is an ad
    of the catalog and none comes twice. A code of probability zero is never generated.

    Our choice: the paper scores with "the LLM's output probabilities" over feasible codes, which can be read
    in several ways, and they rank differently; ``normalizer`` names the one.

    Args:
        model: Any causal language model with full attention, in evaluation mode.
        input_ids: ``(B, T)`` prompts, padded on either side.
        attention_mask: ``(B, T)`` 1 at prompt tokens and 0 at padding.
        trie: The catalog's trie, best on the model's device.
        sid_tokens: Token ids of each level's codes, see `sid_tokens`.
        beam_width: W, the same at every level.
        normalizer: What each code's log-probability is taken among: ``full`` the whole vocabulary, ``level``
            the codes of its level, ``trie`` the children of its node.

    Raises:
        ValueError: If the trie is empty, does not fit ``sid_tokens`` or the model's vocabulary, a prompt is
            empty, the model is in training mode or of a kind that is not supported, or it gives NaN.
    """
    trie = move(trie, input_ids.device)
    head = cast(nn.Module, cast(Any, model).get_output_embeddings())  # Transformers leaves it untyped
    _check_catalog(trie, sid_tokens, beam_width)
    _check_model(model, head, sid_tokens)
    with torch.no_grad():
        context, hidden = _read_prompt(model, input_ids, attention_mask)
        beams = _root(hidden)
        ancestors = hidden.new_zeros((*beams.nodes.shape, 0), dtype=torch.bool)  # (B, 1, 0)
        for level, tokens in enumerate(sid_tokens):
            if level > 0:
                ancestors = _descend(ancestors, beams.parents)
                codes = trie.codes[level - 1][beams.nodes.clamp(min=0)].long()
                hidden = _read_codes(context, sid_tokens[level - 1].start + codes, ancestors, level - 1)
            found = children(trie, level, beams.nodes.flatten())
            codes = trie.codes[level][found.node].long()
            gains = _gains(head, hidden.flatten(0, 1), found.parent, codes, tokens, normalizer)
            _check_finite(gains, level)
            beams = _best(found, beams.scores.flatten()[found.parent] + gains, beams.nodes.shape, beam_width)
    return _sorted(beams, beam_width)


def _read_prompt(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> tuple[_Context, Tensor]:
    """Read the prompts once; the hidden state ``(B, 1, D)`` is that of each one's last token."""
    prompt = attention_mask.bool()
    lengths = prompt.sum(1)
    if input_ids.shape != prompt.shape or not bool((lengths > 0).all()):
        raise ValueError(
            f"attention_mask {tuple(prompt.shape)} leaves {int((lengths == 0).sum())} prompts of "
            f"{tuple(input_ids.shape)} input_ids empty: every prompt needs a token, and a mask entry for each"
        )
    decoder = cast(Any, model).get_decoder()
    cache = DynamicCache()
    hidden = decoder(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(prompt.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    last = (prompt * torch.arange(prompt.shape[1], device=prompt.device)).argmax(1)
    return _Context(decoder, cache, prompt, lengths), hidden[torch.arange(len(last)), last][:, None]


def _root(hidden: Tensor) -> _Frontier:
    start = torch.zeros(hidden.shape[0], 1, dtype=torch.int64, device=hidden.device)
    return _Frontier(nodes=start, scores=start.float(), parents=start)


def _descend(ancestors: Tensor, parents: Tensor) -> Tensor:
    """The ancestor mask of new beams: the ancestors of each one's parent, and itself. ``(B, W, S)``."""
    inherited = ancestors.gather(1, parents[..., None].expand(-1, -1, ancestors.shape[2]))
    own = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)
    return torch.cat([inherited, own.expand(parents.shape[0], -1, -1)], 2)


def _read_codes(context: _Context, tokens: Tensor, ancestors: Tensor, level: int) -> Tensor:
    """Read one code token a beam, as query rows behind the prompt; their hidden states ``(B, W, D)``."""
    visible = torch.cat([context.prompt[:, None].expand(-1, tokens.shape[1], -1), ancestors], 2)
    dtype = context.decoder.dtype
    # An additive mask, since eager attention adds whatever mask it is given.
    mask = torch.zeros(visible.shape, dtype=dtype, device=tokens.device)
    mask = mask.masked_fill(~visible, torch.finfo(dtype).min)[:, None]  # (B, 1, W, T + S)
    positions = (context.lengths[:, None] + level).expand_as(tokens)
    read = context.decoder(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=context.cache,
        use_cache=True,
    )
    return cast(Tensor, read.last_hidden_state)


def _gains(
    head: nn.Module, hidden: Tensor, parent: Tensor, codes: Tensor, tokens: range, normalizer: Normalizer
) -> Tensor:
    """The log-probability ``(C,)`` of each child's code after its beam, in float32."""
    if normalizer == "full":
        everything = cast(Tensor, head(hidden)).float()  # (R, V)
        logits = everything[:, tokens.start : tokens.stop]
        return logits[parent, codes] - everything.logsumexp(1)[parent]
    logits = _level_logits(head, hidden, tokens)  # (R, K)
    if normalizer == "level":
        return logits[parent, codes] - logits.logsumexp(1)[parent]
    return _log_softmax_by_parent(logits[parent, codes], parent, hidden.shape[0])


def _level_logits(head: nn.Module, hidden: Tensor, tokens: range) -> Tensor:
    if type(head) is nn.Linear:  # only then are its weights all there is to it; an adapter adds to them
        bias = None if head.bias is None else head.bias[tokens.start : tokens.stop]
        return nn.functional.linear(hidden, head.weight[tokens.start : tokens.stop], bias).float()
    return cast(Tensor, head(hidden))[:, tokens.start : tokens.stop].float()


def _log_softmax_by_parent(logits: Tensor, parent: Tensor, num_parents: int) -> Tensor:
    counts = torch.bincount(parent, minlength=num_parents)
    high = torch.segment_reduce(logits, "max", lengths=counts)
    shifted = logits - high[parent]
    # Not index_add, whose order of addition, and so the last bit, is left open on a GPU.
    total = torch.segment_reduce(shifted.exp(), "sum", lengths=counts)
    return shifted - total[parent].log()


def _best(found: Children, scores: Tensor, shape: torch.Size, beam_width: int) -> _Frontier:
    """Keep the best ``beam_width`` children of each user; among equal scores those of the smaller S-ID."""
    users, width = shape
    owner = found.parent // width  # (C,) ascending
    counts = torch.bincount(owner, minlength=users)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(owner), device=owner.device) - starts[owner]
    table = scores.new_full((users, max(1, int(counts.max()))), -torch.inf)
    table[owner, column] = scores
    # 1. The score of the last place divides the children: those above are in, those at it as far as places last.
    places = min(beam_width, table.shape[1])
    bar = table.topk(places).values[:, -1:]
    above, level = table > bar, (table == bar) & (bar > -torch.inf)
    kept = above | (level & (level.cumsum(1) <= places - above.sum(1, keepdim=True)))
    # 2. They keep their order, which is by node since the beams themselves were.
    user, column = kept.nonzero(as_tuple=True)
    slot = kept.cumsum(1)[user, column] - 1
    chosen = starts[user] + column
    nodes = starts.new_full((users, places), -1)
    parents = torch.zeros_like(nodes)
    totals = scores.new_full((users, places), -torch.inf)
    nodes[user, slot] = found.node[chosen]
    parents[user, slot] = found.parent[chosen] % width
    totals[user, slot] = scores[chosen]
    return _Frontier(nodes, totals, parents)


def _sorted(beams: _Frontier, beam_width: int) -> Beams:
    scores, order = beams.scores.sort(dim=1, descending=True, stable=True)  # stable: equal scores stay by node
    missing = beam_width - scores.shape[1]
    return Beams(
        nn.functional.pad(beams.nodes.gather(1, order), (0, missing), value=-1),
        nn.functional.pad(scores, (0, missing), value=-torch.inf),
    )


def _check_catalog(trie: Trie, sid_tokens: Sequence[range], beam_width: int) -> None:
    if beam_width < 1:
        raise ValueError(f"beam_width is {beam_width}: it must be at least 1")
    if not trie.codes or not all(len(codes) for codes in trie.codes):
        raise ValueError("trie is empty: there is no ad to generate; index a catalog that has one")
    if len(trie.codes) != len(sid_tokens):
        raise ValueError(
            f"sid_tokens has {len(sid_tokens)} levels, but trie has {len(trie.codes)}: "
            "the model and the catalog do not belong together; train the model for this catalog"
        )
    for level, (codes, tokens) in enumerate(zip(trie.codes, sid_tokens, strict=True)):
        if int(codes.max()) >= len(tokens):
            raise ValueError(
                f"sid_tokens has {len(tokens)} codes at level {level_letter(level)}, but trie has the code "
                f"{int(codes.max())} there: train the model for this catalog"
            )


def _check_model(model: PreTrainedModel, head: nn.Module, sid_tokens: Sequence[range]) -> None:
    if model.training:
        raise ValueError("model is in training mode, where dropout makes scores random: call model.eval()")
    size = int(cast(Any, head).weight.shape[0])
    if max(tokens.stop for tokens in sid_tokens) > size:
        raise ValueError(
            f"sid_tokens reaches token {max(tokens.stop for tokens in sid_tokens) - 1}, but model has {size} "
            "tokens: extend its vocabulary for this catalog"
        )
    settings = model.config.to_dict()
    layers = set(settings.get("layer_types") or ()) - {"full_attention"}
    window = {"sliding_window"} if not settings.get("layer_types") and settings.get("sliding_window") else set()
    scaled = {name for name in _HEAD_SCALES if settings.get(name) not in (None, 1)}
    if unsupported := sorted(layers | window | scaled):
        raise ValueError(
            f"model is a {model.config.model_type} with {', '.join(unsupported)}, which the search "
            "does not support: use a model with full attention and a plain head"
        )


def _check_finite(gains: Tensor, level: int) -> None:
    if bool(gains.isnan().any()):
        raise ValueError(
            f"model gives NaN for {int(gains.isnan().sum())} of {gains.numel()} codes at level "
            f"{level_letter(level)}: its weights or its prompt embeddings are broken; no list is made from them"
        )

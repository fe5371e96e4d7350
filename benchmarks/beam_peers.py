"""Constrained beam search as others do it: Transformers' ``generate`` over a dictionary, and a cache copied a beam."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from benchmarks.inputs import zipf_sids
from leadre.catalog.sids import in_order
from leadre.catalog.trie import Trie, build
from leadre.decoding.beam_search import Beams, beam_search, best_first, gains_of, sid_tokens
from leadre.decoding.config import Normalizer
from leadre.decoding.selection import Frontier, candidates, select

TEXT_TOKENS = 8192
NUM_CODES = (1024, 1024, 1024, 1024, 256)
"""Codes of each level, the extra code's last."""
SID_TOKENS = sid_tokens([TEXT_TOKENS + sum(NUM_CODES[:level]) for level in range(len(NUM_CODES))], NUM_CODES)
VOCABULARY = TEXT_TOKENS + sum(NUM_CODES)
TOLERANCE = 1e-4
"""By how much scores of one ad may differ, which sums of other orders of addition do."""

Nested: TypeAlias = dict[int, "Nested | int"]
"""A trie of token ids as a dictionary a node; the last token of an S-ID leads to the ad's row."""


class Prompts(NamedTuple):
    """Prompts ``(B, T)``, padded on the left, and their mask of 1 and 0."""

    ids: Tensor
    mask: Tensor


def language_model(*, hidden: int = 256, layers: int = 4) -> PreTrainedModel:
    """A model of the form of Qwen2, with random weights; they are wide enough for scores of ads to lie apart."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = Qwen2ForCausalLM(config)
    return cast(PreTrainedModel, model.eval())


def prompts(lengths: Sequence[int], *, seed: int) -> Prompts:
    """Random texts of so many tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TEXT_TOKENS, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(-max(lengths), 0) >= -torch.tensor(lengths)[:, None]
    return Prompts(ids * mask, mask.long())


def sorted_catalog(ads: int) -> tuple[Trie, Tensor]:
    """The trie of a catalog, and its S-IDs ``(N, L)`` in order."""
    sids = zipf_sids(ads, seed=0)
    rows = torch.from_numpy(sids.take(in_order(sids)[0], axis=0))
    return build(rows), rows


def catalog(ads: int) -> tuple[Trie, Nested]:
    """The trie of a catalog in both forms."""
    trie, rows = sorted_catalog(ads)
    return trie, nested(as_tokens(rows))


def search(model: PreTrainedModel, given: Prompts, *, trie: Trie, beam_width: int, normalizer: Normalizer) -> Beams:
    """Our search."""
    return beam_search(
        model,
        given.ids,
        given.mask,
        trie=trie,
        sid_tokens=SID_TOKENS,
        beam_width=beam_width,
        normalizer=normalizer,
    )


def as_tokens(sids: Tensor) -> list[list[int]]:
    """The token ids of S-IDs ``(N, L)``."""
    tokens: list[list[int]] = (sids + torch.tensor([level.start for level in SID_TOKENS])).tolist()
    return tokens


def nested(sids: Iterable[Sequence[int]]) -> Nested:
    """The dictionaries of S-IDs, as token ids, in the order of the catalog."""
    root: Nested = {}
    for row, sid in enumerate(sids):
        node: Any = root
        for token in sid[:-1]:
            below = node.get(token)
            if below is None:
                below = node[token] = {}
            node = below
        node[sid[-1]] = row
    return root


def allowed_by(root: Nested, *, prompt: int) -> Callable[[int, Tensor], list[int]]:
    """Transformers' prefix function: the tokens that may follow one beam, whose prompt has so many tokens."""

    def allowed(_: int, tokens: Tensor) -> list[int]:
        node: Any = root
        for token in tokens[prompt:].tolist():
            node = node[token]
        return list(node)

    return allowed


def generate(
    model: PreTrainedModel, given: Prompts, *, root: Nested, beam_width: int, renormalize: bool = False
) -> Beams:
    """Transformers' own beam search, held to a dictionary's S-IDs, as LC-Rec and LETTER decode.

    Args:
        model: Any causal language model.
        given: The prompts.
        root: The dictionary trie.
        beam_width: Beams, all of which are returned.
        renormalize: Scores a code among those that may follow, and not among the whole vocabulary.
    """
    length = given.ids.shape[1]
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # Transformers leaves its __init__ untyped
        num_beams=beam_width,
        num_return_sequences=beam_width,
        max_new_tokens=len(SID_TOKENS),
        do_sample=False,
        length_penalty=0.0,
        renormalize_logits=renormalize,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = cast(Any, model).generate(
        given.ids,
        attention_mask=given.mask,
        generation_config=settings,
        prefix_allowed_tokens_fn=allowed_by(root, prompt=length),
    )
    rows = rows_of(root, found.sequences[:, length:])
    return Beams(rows.view(-1, beam_width), found.sequences_scores.view(-1, beam_width))


def rows_of(root: Nested, sequences: Tensor) -> Tensor:
    """The catalog rows ``(N,)`` of generated tokens ``(N, L)``."""
    rows = []
    for tokens in sequences.tolist():
        node: Any = root
        for token in tokens:
            node = node[token]
        rows.append(node)
    return torch.tensor(rows)


def expand(
    model: PreTrainedModel, given: Prompts, *, trie: Trie, beam_width: int, normalizer: Normalizer = "full"
) -> Beams:
    """Reads the prompt once a user, but then keeps a cache a beam, which is copied and put in order at each level.

    All but the cache is as in `leadre.decoding.beam_search.beam_search`: the trie, the head, the selection.
    """
    decoder, head = cast(Any, model).get_decoder(), cast(nn.Module, cast(Any, model).get_output_embeddings())
    users, lengths = torch.arange(len(given.ids))[:, None], given.mask.sum(1, keepdim=True)
    root = torch.zeros_like(users)
    beams, mask = Frontier(root, root.float(), root), given.mask
    cache: Any = DynamicCache()
    tokens, positions, width = given.ids, (mask.cumsum(1) - 1).clamp(min=0), 1
    with torch.no_grad():
        for level, codes in enumerate(SID_TOKENS):
            if level > 0:
                rows = (users * width + beams.parents).flatten()
                cache.reorder_cache(rows)
                width = beams.nodes.shape[1]
                mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], 1)
                tokens = (SID_TOKENS[level - 1].start + trie.codes[level - 1][beams.nodes].long()).view(-1, 1)
                positions = (lengths + level - 1).expand(-1, width).reshape(-1, 1)
            hidden = decoder(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            found = candidates(trie, level, beams.nodes)
            among = trie.codes[level][found.node].long()
            gains = gains_of(head, hidden, found.parent, among, codes, normalizer)
            scores = beams.scores.flatten()[found.parent] + gains
            beams = select(found, scores, beams.nodes.shape, beam_width)
    return best_first(beams.nodes, beams.scores, beam_width)


def prefill(model: PreTrainedModel, given: Prompts) -> None:
    """Reads the prompt once a user: what any search has to do."""
    with torch.no_grad():
        cast(Any, model).get_decoder()(
            input_ids=given.ids, attention_mask=given.mask, past_key_values=DynamicCache(), use_cache=True
        )


def steps_of_transformers(log_probs: Sequence[Tensor], *, root: Nested, users: int, beam_width: int) -> Beams:
    """The mask and the selection of Transformers' beam search, level by level, without the model.

    Args:
        log_probs: Level ``l``: ``(users * beam_width, V)`` log-probabilities.
        root: The dictionary trie.
        users: How many.
        beam_width: Beams of each, of which all but the first are dead at the start.
    """
    mask = PrefixConstrainedLogitsProcessor(allowed_by(root, prompt=0), beam_width)
    sequences = torch.zeros(users, beam_width, 0, dtype=torch.int64)
    scores = torch.zeros(users, beam_width)
    scores[:, 1:] = -1e9
    for level in log_probs:
        masked = mask(cast(Any, sequences.flatten(0, 1)), cast(Any, level))
        total = (masked.view(users, beam_width, -1) + scores[..., None]).flatten(1)
        best = total.topk(2 * beam_width)  # twice as many, since some could have ended
        scores, places = best.values[:, :beam_width], best.indices[:, :beam_width]
        parents, tokens = places // level.shape[1], places % level.shape[1]
        inherited = sequences.gather(1, parents[..., None].expand(-1, -1, sequences.shape[2]))
        sequences = torch.cat([inherited, tokens[..., None]], 2)
    return Beams(rows_of(root, sequences.flatten(0, 1)).view(users, beam_width), scores)


def steps_over_arrays(log_probs: Sequence[Tensor], *, trie: Trie, users: int, beam_width: int) -> Beams:
    """The same by the trie and the selection of `leadre.decoding.beam_search.beam_search`."""
    root = torch.zeros(users, 1, dtype=torch.int64)
    beams = Frontier(root, root.float(), root)
    for level, (given, tokens) in enumerate(zip(log_probs, SID_TOKENS, strict=True)):
        found = candidates(trie, level, beams.nodes)
        codes = trie.codes[level].index_select(0, found.node)
        alive = given.view(users, beam_width, -1)[:, : beams.nodes.shape[1]]  # at the root one beam a user
        gains = alive.take(found.parent * given.shape[1] + (tokens.start + codes))
        scores = beams.scores.flatten().index_select(0, found.parent) + gains
        beams = select(found, scores, beams.nodes.shape, beam_width)
    return best_first(beams.nodes, beams.scores, beam_width)


def assert_same_lists(ours: Beams, theirs: Beams) -> None:
    """Every user has the same ads in the same order, with the same scores but for rounding."""
    others = int((ours.rows != theirs.rows).sum())
    assert others == 0, f"{others} of {ours.rows.numel()} places hold other ads"
    apart = float((ours.scores - theirs.scores).abs().max())
    assert apart <= TOLERANCE, f"scores are up to {apart:.2g} apart"

"""Beam search with static shapes and no step on the host: on a GPU, one CUDA graph a shape (LEADRE 4.4.2)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from leadre.catalog.trie import Trie, move
from leadre.decoding.beam_search import Beams, check_catalog, head_of, level_widths
from leadre.decoding.cache import roomy_cache
from leadre.decoding.config import Normalizer
from leadre.decoding.filters import Filter
from leadre.decoding.kernels import Branches, branches, log_normalizer, select
from leadre.decoding.selection import Frontier

LENGTH_STEP = 64
"""Prompts are padded to a multiple of it, so that there are few shapes."""
_ATTENTION = "leadre_beams"
_WARM_UPS = 2


class StaticSearch:
    """`leadre.decoding.beam_search.beam_search` with the same results, for GPUs.

    Everything from the prompt to the list is one sequence of operations whose shapes depend on the batch's shape alone:
    every beam is read, dead or forced, and each level takes as many children a node as its largest node has. On CUDA
    the sequence is captured once a shape as one graph, with the prompts in it, and replayed from then on. On the CPU
    the same code runs as it is.

    Our choice: prompts are padded on the right to a multiple of `LENGTH_STEP`, and a batch is filled up to one of four
    sizes an octave (see `batch_size`), so that a user base needs few graphs. The graphs share their memory.

    Args:
        model: Any causal language model with full attention, in evaluation mode, on the device.
        trie: The catalog's trie.
        sid_tokens: Token ids of each level's codes, see `leadre.decoding.beam_search.sid_tokens`.
        beam_width: Beams kept at every level, or a number a level.
        normalizer: What each code's log-probability is taken among, as for `beam_search`.
        device: Where it runs.

    Raises:
        ValueError: As `beam_search` for what is wrong with these, and if the model's rotary frequencies depend on the
            length of the prompt.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        trie: Trie,
        sid_tokens: Sequence[range],
        beam_width: int | Sequence[int],
        normalizer: Normalizer,
        device: torch.device,
    ) -> None:
        self.widths = level_widths(beam_width, levels=len(sid_tokens))
        check_catalog(trie, sid_tokens)
        self.head = head_of(model, sid_tokens)
        _check_rotary(model)
        self.decoder: Any = cast(Any, model).get_decoder()
        self.config = model.config
        self.branches = branches(move(trie, device))
        self.sid_tokens = tuple(sid_tokens)
        self.normalizer = normalizer
        self.device = device
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._memory: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, attention_mask: Tensor, filter: Filter | None = None) -> Beams:
        """Generate the most probable ads of each user.

        Args:
            input_ids: ``(B, T)`` prompts, padded on either side.
            attention_mask: ``(B, T)`` 1 at prompt tokens and 0 at padding.
            filter: What each user may be shown, one row a user; None shows everything. Its ``counts`` are best the
                same tensors in every call: new ones make new graphs.

        Raises:
            ValueError: If a prompt is empty, or the model gives NaN.
        """
        users = len(input_ids)
        ids, lengths = _pack(input_ids.to(self.device), attention_mask.to(self.device))
        filter = None if filter is None else _padded_filter(filter, len(ids))
        with _attention(self.config), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            found = self._recording(ids, lengths, filter).play(ids, lengths, filter)
        beams = Beams(found.rows[:users].clone(), found.scores[:users].clone())
        _check_finite(beams.scores)
        return beams

    def _recording(self, ids: Tensor, lengths: Tensor, filter: Filter | None) -> "_Recording":
        key: tuple[object, ...] = tuple(ids.shape)
        if filter is not None:
            key += (*(id(counts) for counts in filter.counts), filter.spent[0].shape)
        if key not in self._recordings:
            self._recordings[key] = self._record(ids, lengths, filter)
        return self._recordings[key]

    def _record(self, ids: Tensor, lengths: Tensor, filter: Filter | None) -> "_Recording":
        """Run the search on copies of its inputs, which later inputs are written into."""
        given = _Inputs(ids.clone(), lengths.clone(), None if filter is None else _copied(filter))

        def run() -> Beams:
            return self._search(given)

        if self.device.type != "cuda":
            return _Recording(given, run)
        # What is made at first use, kernels and workspaces, is made outside of the graph, on a stream beside.
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # its own declaration
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            found = run()

        def replay() -> Beams:
            graph.replay()
            return found

        return _Recording(given, replay)

    def _search(self, given: "_Inputs") -> Beams:
        users, length = given.ids.shape
        cache = roomy_cache(self.config.num_hidden_layers, room=sum(self.widths[:-1]))
        # 1. No mask: what stands right of a prompt is never seen from within it, and masked for the codes.
        read = self.decoder(input_ids=given.ids, past_key_values=cache, use_cache=True).last_hidden_state
        columns = torch.arange(length, device=self.device)
        hidden = read.gather(1, (given.lengths - 1)[:, None, None].expand(-1, 1, read.shape[2]))  # (B, 1, D)
        seen = (columns < given.lengths[:, None])[:, None]  # (B, 1, T)
        root = torch.zeros(users, 1, dtype=torch.int64, device=self.device)
        beams = Frontier(root, root.float(), root)
        # 2. A level reads the codes of the level above, and chooses among their children.
        for level, below in enumerate(self.branches):
            if level > 0:
                codes = self.branches[level - 1].codes[beams.nodes.clamp(min=0)].long()
                seen = _descend(seen, beams.parents)
                positions = (given.lengths[:, None] + level - 1).expand_as(codes)
                hidden = self._read_codes(cache, self.sid_tokens[level - 1].start + codes, positions, seen)
            beams = self._choose(hidden.flatten(0, 1), beams, below, given.filter)
        scores, order = beams.scores.sort(dim=1, descending=True, stable=True)  # stable: equal scores stay by node
        missing = self.widths[-1] - scores.shape[1]
        rows = beams.nodes.gather(1, order)
        return Beams(
            nn.functional.pad(rows, (0, missing), value=-1), nn.functional.pad(scores, (0, missing), value=-torch.inf)
        )

    def _read_codes(self, cache: Cache, tokens: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Read a code a beam; hidden states ``(B, W, D)``. ``seen`` ``(B, W, S)`` are the keys each one looks at."""
        mask = torch.zeros(seen.shape, dtype=self.decoder.dtype, device=self.device)
        mask = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)[:, None]  # (B, 1, W, S)
        if self.config._attn_implementation == _ATTENTION:
            mask = mask.repeat(1, 1, _heads_a_group(self.config), 1)
        read = self.decoder(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        return cast(Tensor, read.last_hidden_state)

    def _choose(self, hidden: Tensor, beams: Frontier, below: Branches, filter: Filter | None) -> Frontier:
        tokens = self.sid_tokens[below.level]
        if self.normalizer == "full":
            logits, first_code = self.head(hidden), tokens.start
        else:
            logits, first_code = _level_logits(self.head, hidden, tokens), 0
        norms = log_normalizer(logits, beams.nodes, below, self.normalizer, filter)
        places = min(self.widths[below.level], len(below.codes), beams.nodes.shape[1] * below.most)
        return select(logits, norms, beams, below, first_code=first_code, beam_width=places, filter=filter)


class _Inputs(NamedTuple):
    ids: Tensor  # (B, T) int64 prompts, padded on the right
    lengths: Tensor  # (B,) int64
    filter: Filter | None


class _Recording(NamedTuple):
    """The search at one shape: where its inputs lie, and what runs it."""

    given: _Inputs
    run: Callable[[], Beams]

    def play(self, ids: Tensor, lengths: Tensor, filter: Filter | None) -> Beams:
        self.given.ids.copy_(ids)
        self.given.lengths.copy_(lengths)
        if filter is not None and self.given.filter is not None:
            self.given.filter.groups.copy_(filter.groups)
            for mine, new in zip(self.given.filter.spent, filter.spent, strict=True):
                mine.copy_(new)
        return self.run()


def batch_size(users: int) -> int:
    """The number of users that a batch is filled up to: 1 to 8, then 10, 12, 14, 16, 20, 24, 28, 32, 40, ...

    Example:
        >>> [batch_size(users) for users in (1, 7, 8, 9, 50, 64, 65)]
        [1, 7, 8, 10, 56, 64, 80]
    """
    step = 1 << max(0, (users - 1).bit_length() - 3)
    return -(-users // step) * step


def _pack(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts moved to the left, their batch filled up with copies of the last one; ids ``(B, T)`` and lengths."""
    prompt = attention_mask.bool()
    lengths = prompt.sum(1)
    if input_ids.shape != prompt.shape or not bool((lengths > 0).all()):
        raise ValueError(
            f"attention_mask {tuple(prompt.shape)} leaves {int((lengths == 0).sum())} prompts of "
            f"{tuple(input_ids.shape)} input_ids empty: every prompt needs a token, and a mask entry for each"
        )
    order = (~prompt).int().argsort(dim=1, stable=True)
    ids = input_ids.gather(1, order).masked_fill(
        torch.arange(prompt.shape[1], device=prompt.device) >= lengths[:, None], 0
    )
    longest = int(lengths.max())
    wide = -(-longest // LENGTH_STEP) * LENGTH_STEP
    ids = nn.functional.pad(ids[:, :longest], (0, wide - longest))
    filled = torch.arange(batch_size(len(ids)), device=ids.device).clamp(max=len(ids) - 1)
    return ids[filled].contiguous(), lengths[filled]


def _padded_filter(filter: Filter, users: int) -> Filter:
    """The filter of a batch that is filled up, with a rounded number of seen ads."""
    groups = torch.cat([filter.groups, filter.groups[-1:].expand(users - len(filter.groups))])
    size = -(-len(filter.spent[0]) // LENGTH_STEP) * LENGTH_STEP
    above_all = groups.new_full((size - len(filter.spent[0]),), torch.iinfo(torch.int64).max)
    return Filter(
        filter.counts, groups, filter.seen[:0], tuple(torch.cat([spent, above_all]) for spent in filter.spent)
    )


def _copied(filter: Filter) -> Filter:
    """A filter with places of its own for what changes from batch to batch."""
    spent = tuple(keys.clone() for keys in filter.spent)
    return filter._replace(groups=filter.groups.clone(), spent=spent)


def _descend(seen: Tensor, parents: Tensor) -> Tensor:
    """The keys that new beams see, ``(B, W, S + W)``: those of each one's parent, and its own."""
    inherited = seen.gather(1, parents[..., None].expand(-1, -1, seen.shape[2]))
    own = torch.eye(parents.shape[1], dtype=torch.bool, device=parents.device)
    return torch.cat([inherited, own.expand(len(parents), -1, -1)], 2)


def _level_logits(head: nn.Module, hidden: Tensor, tokens: range) -> Tensor:
    if type(head) is nn.Linear:  # only then are its weights all there is to it; an adapter adds to them
        bias = None if head.bias is None else head.bias[tokens.start : tokens.stop]
        return nn.functional.linear(hidden, head.weight[tokens.start : tokens.stop], bias)
    return cast(Tensor, head(hidden))[:, tokens.start : tokens.stop]


def _beam_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401  # what a model gives to whatever attention it is set to
) -> tuple[Tensor, None]:
    """Attention of beams that repeats no key or value for the heads that share it.

    Transformers' own repeats them wherever there is a mask. Here the heads of a group are further query rows, each
    with the mask of its beam.
    """
    if attention_mask is None:  # the prompt
        return sdpa_attention_forward(module, query, key, value, None, **options)
    users, heads, beams, size = query.shape
    rows = query.reshape(users, key.shape[1], -1, size)  # (B, H_kv, G * W, D)
    read = nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return read.reshape(users, heads, beams, -1).transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _beam_attention)


@contextmanager
def _attention(config: Any) -> Iterator[None]:  # noqa: ANN401  # Transformers leaves its settings untyped
    """A model with the usual attention uses that of beams for a while; one with another keeps it."""
    usual = config._attn_implementation
    if usual == "sdpa":
        config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = usual


def _heads_a_group(config: Any) -> int:  # noqa: ANN401
    return int(config.num_attention_heads) // int(config.num_key_value_heads)


def _check_rotary(model: PreTrainedModel) -> None:
    kind = (model.config.to_dict().get("rope_parameters") or {}).get("rope_type", "default")
    if kind in ("dynamic", "longrope") and not model.config.rope_parameters.get("alpha"):
        raise ValueError(
            f"model has rotary frequencies of the kind {kind}, which depend on the length of the prompt: "
            "search with engine eager"
        )


def _check_finite(scores: Tensor) -> None:
    users = scores.isnan().any(1)
    if bool(users.any()):
        raise ValueError(
            f"model gives NaN for {int(users.sum())} of {len(users)} users: its weights or its prompt embeddings are "
            "broken; no list is made from them"
        )

"""Beam search with static shapes and no step on the host: on a GPU, one CUDA graph a shape (LEADRE 4.4.2)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from leadre.catalog.trie import Trie, move
from leadre.decoding import kernels
from leadre.decoding.beam_search import Beams, best_first, logits_of
from leadre.decoding.branches import Branches, branches
from leadre.decoding.cache import roomy_cache
from leadre.decoding.checks import check_catalog, check_prompts, head_of, level_widths
from leadre.decoding.config import Normalizer
from leadre.decoding.filters import NO_KEY, Filter, check
from leadre.decoding.kernels import log_normalizer, select
from leadre.decoding.selection import Frontier

LENGTH_STEP = 64
"""Prompts are padded to a multiple of it, so that there are few shapes."""
_FEWEST_SEEN = 1024
"""Places for seen ads of a batch, where it has any; from there on a power of two."""
_MOST_RECORDINGS = 64
"""Shapes whose graphs are kept: each holds its inputs and results, and some megabytes of the driver's."""
_HEAD_ROWS = 4096
"""Beams whose logits of the whole vocabulary are in memory at a time."""
_ATTENTION = "leadre_beams"
_WARM_UPS = 2

log = logging.getLogger(__name__)


class StaticSearch:
    """`leadre.decoding.beam_search.beam_search` with the same results, for GPUs.

    Everything from the prompt to the list is one sequence of operations whose shapes depend on the batch's shape alone:
    every beam is read, dead or forced, and each level takes as many children a node as its largest node has. On CUDA
    the sequence is captured once a shape as one graph, with the prompts in it, and replayed from then on. On the CPU
    the same code runs as it is.

    Our choice: prompts are padded on the right to a multiple of `LENGTH_STEP`, and a batch is filled up to one of four
    sizes an octave (see `batch_size`), and its seen ads up to a power of two, so that a user base needs few graphs. The
    graphs share their memory; past 64 of them the one that was not used for longest is dropped.

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
        if device.type == "cuda" and not kernels.FUSED:
            _tell_of_twins()
        self.decoder: Any = cast(Any, model).get_decoder()
        self.config = model.config
        self.takes_attention = bool(cast(Any, model)._supports_attention_backend)
        self.trie = move(trie, device)
        self.branches = branches(self.trie)
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
            ValueError: If there is no prompt, one is empty, the filter is not one of these users and of this trie, or
                the model gives NaN.
        """
        users = len(input_ids)
        if filter is not None:
            check(filter, self.trie, users=users)
        ids, lengths = _pack(input_ids.to(self.device), attention_mask.to(self.device))
        filter = None if filter is None else _padded_filter(filter, len(ids))
        with self._attention(), torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            found = self._recording(ids, lengths, filter).play(ids, lengths, filter)
        beams = Beams(found.rows[:users].clone(), found.scores[:users].clone())
        _check_finite(beams.scores)
        return beams

    def _recording(self, ids: Tensor, lengths: Tensor, filter: Filter | None) -> "_Recording":
        key: tuple[object, ...] = tuple(ids.shape)
        if filter is not None:
            key += (*(id(counts) for counts in filter.counts), filter.spent[0].shape)
        found = self._recordings.pop(key, None) or self._record(ids, lengths, filter)
        self._recordings[key] = found  # the last one
        if len(self._recordings) > _MOST_RECORDINGS:
            del self._recordings[next(iter(self._recordings))]
        return found

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
        return best_first(beams.nodes, beams.scores, self.widths[-1])

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
        # As in `gains_of`: only of a plain layer its weights are all there is.
        if self.normalizer != "full" and type(self.head) is nn.Linear:
            logits = logits_of(self.head, hidden, tokens)
        else:
            logits, norms = self._read_head(hidden, beams.nodes, below)
        if self.normalizer != "full":
            norms = log_normalizer(logits, beams.nodes, below, self.normalizer, filter)
        places = min(self.widths[below.level], len(below.codes), beams.nodes.shape[1] * below.most)
        return select(logits, norms, beams, below, first_code=0, beam_width=places, filter=filter)

    def _read_head(self, hidden: Tensor, nodes: Tensor, below: Branches) -> tuple[Tensor, Tensor]:
        """Logits ``(B * W, K)`` of a level's codes, and the normalizers ``(B * W,)`` among the whole vocabulary.

        The logits of the whole vocabulary are in memory for a block of rows at a time.
        """
        tokens = self.sid_tokens[below.level]

        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            everything = cast(Tensor, self.head(rows))  # (R, V)
            norms = log_normalizer(everything, nodes, below, "full")
            return everything[:, tokens.start : tokens.stop].clone(), norms  # a view would keep everything

        blocks = (hidden[first : first + _HEAD_ROWS] for first in range(0, len(hidden), _HEAD_ROWS))
        logits, norms = zip(*map(read, blocks), strict=True)
        return torch.cat(logits), torch.cat(norms)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """A model with the usual attention uses that of beams for a while; one with another keeps it."""
        usual = self.config._attn_implementation
        if usual == "sdpa" and self.takes_attention:
            self.config._attn_implementation = _ATTENTION
        try:
            yield
        finally:
            self.config._attn_implementation = usual


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
    if not len(input_ids):
        raise ValueError("input_ids has no row: give the prompt of at least one user")
    prompt = attention_mask.bool()
    lengths = check_prompts(input_ids, prompt)
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
    number = len(filter.spent[0])
    size = 1 << (max(_FEWEST_SEEN, number) - 1).bit_length() if number else 0
    above_all = groups.new_full((size - number,), NO_KEY)
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


def _heads_a_group(config: Any) -> int:  # noqa: ANN401  # Transformers leaves its settings untyped
    return int(config.num_attention_heads) // int(
        getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    )


@cache
def _tell_of_twins() -> None:
    """Once a process."""
    log.warning("Triton is not installed: the search takes torch's kernels, which are slower; install it for the GPU")


def _check_rotary(model: PreTrainedModel) -> None:
    given = model.config.to_dict().get("rope_parameters") or {}
    for rope in (given, *(each for each in given.values() if isinstance(each, dict))):  # all layers' or one a kind's
        kind = rope.get("rope_type", "default")
        if kind in ("dynamic", "longrope") and not rope.get("alpha"):
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

"""The stage that turns prompt-response pairs into token ids (LEADRE 4.2, 5.1.1)."""

import json
import logging
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save_file

from leadre import tables
from leadre.lm.fragments import Fragments
from leadre.lm.vocabulary import load_vocabulary

VERSION = 2
ROWS = 10_000
"""Pairs encoded at a time."""
CHECKED = 300
"""Prompts of a file, or of a first batch, whose texts are also encoded whole, to see that joining them is the same."""
_PROMPT_COLUMNS = ["head", "lead", "behaviors", "tail"]
PROMPT, HISTORY_AD, RESPONSE = 0, 1, 2
"""Kinds of tokens: text and learnable tokens, the S-ID of an ad in the history, the response."""
_PARTS = ("opening", "head", "lead", "behaviors", "tail", "response")
_OPENING, _HEAD, _LEAD, _BEHAVIORS, _TAIL, _RESPONSE = range(len(_PARTS))

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]


class Prompts(NamedTuple):
    """N prompts without responses, T tokens in all.

    Attributes:
        ids: ``(T,)`` int32 token ids, one row after the other.
        offsets: ``(N+1,)`` int64; row n is ``ids[offsets[n]:offsets[n+1]]``.
    """

    ids: NDArray[np.int32]
    offsets: Ints


class Encoded(NamedTuple):
    """N prompts with their responses, T tokens in all.

    Attributes:
        ids: ``(T,)`` token ids, one row after the other.
        kinds: ``(T,)`` 0 prompt, 1 S-ID of an ad in the history, 2 response.
        offsets: ``(N+1,)`` row n is ``ids[offsets[n]:offsets[n+1]]``.
        targets: ``(N,)`` catalog row of the ad that the response names first.
        dropped: Behaviors that did not fit.
        cut: Tokens of descriptions that did not fit.
    """

    ids: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    offsets: Ints
    targets: NDArray[np.int32]
    dropped: int
    cut: int


class _Segments(NamedTuple):
    """S segments of N prompts, in their order, with B behaviors in all.

    Attributes:
        rows: ``(S,)`` the prompt.
        parts: ``(S,)`` the part that it belongs to, a place in `_PARTS`.
        behaviors: ``(S,)`` the behavior, numbered over all prompts; -1 outside the behaviors.
        fragments: ``(S,)`` its tokens.
        firsts: ``(N+1,)`` the first behavior of each prompt, and B.
    """

    rows: Ints
    parts: NDArray[np.uint8]
    behaviors: Ints
    fragments: Ints
    firsts: Ints


class _Fitted(NamedTuple):
    """The S segments of prompts that fit into a budget, texts joined.

    Attributes:
        parts: ``(S,)`` the part that each belongs to.
        fragments: ``(S,)`` its tokens.
        lengths: ``(S,)`` how many of them stay.
        tokens: ``(N,)`` how many tokens each row has, the response included.
        dropped: Behaviors that did not fit.
        cut: Tokens of descriptions that did not fit.
    """

    parts: NDArray[np.uint8]
    fragments: Ints
    lengths: Ints
    tokens: Ints
    dropped: int
    cut: int


def encode(base: Path, catalog: Path, pairs: Path, *, out: Path) -> None:
    """Write ``x.safetensors`` for each ``x.parquet`` of the pairs, and counts in ``encode.json``.

    The first prompts of every file are checked (`Fragments.check`) before any is encoded.

    Raises:
        ValueError: If the model does not fit the catalog and the pairs, if a prompt is longer than
            ``prompts.max_tokens`` even without its behaviors, or if the tokenizer cannot write a letter.
    """
    about = json.loads((pairs / "prompts.json").read_text(encoding="utf-8"))
    vocabulary = load_vocabulary(base)
    if len(vocabulary.soft_ids) < about["soft_tokens"]:
        raise ValueError(
            f"the model has {len(vocabulary.soft_ids)} learnable tokens, but prompts.soft_tokens is "
            f"{about['soft_tokens']}: make the base model from these pairs"
        )
    fragments = Fragments(vocabulary, tables.read(tables.SIDS, catalog / "sids.parquet"))
    counts, paths = {}, sorted(pairs.glob("*.parquet"))
    for path in paths:
        for batch in islice(pq.ParquetFile(path).iter_batches(CHECKED, columns=_PROMPT_COLUMNS), 1):
            _check_texts(batch, fragments)
    for path in paths:
        budget = {
            "max_tokens": about["max_tokens"],
            "num_ads": _most_ads(path),
            "cut": path.stem.startswith("explicit"),
        }
        batches = pq.ParquetFile(path).iter_batches(ROWS)
        encoded = _join([encode_pairs(batch, fragments, **budget) for batch in batches])
        arrays = {name: getattr(encoded, name) for name in ("ids", "kinds", "offsets", "targets")}
        save_file(arrays, out / f"{path.stem}.safetensors")
        counts[path.stem] = _counts(encoded)
        log.info("%s: %s", path.stem, counts[path.stem])
    (out / "encode.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def _most_ads(pairs: Path) -> int:
    """How many ads a response of a file names at most; at least 1."""
    following = pl.scan_parquet(pairs).select(pl.col("following").list.len().max()).collect().item()
    return 1 + int(following or 0)


def encode_pairs(pairs: Any, fragments: Fragments, *, max_tokens: int, num_ads: int, cut: bool) -> Encoded:  # noqa: ANN401
    """Encode prompts and responses within a budget of tokens.

    Texts that follow each other become the tokens of one text (`Fragments.join`). Where a prompt is too long, its
    oldest behaviors go, and ``lead`` with the last of them. Head, tail and response stay whole. Room is kept for
    ``num_ads`` ads in every row, so that the length of a prompt does not tell how many ads answer it.

    Our choice: a segment costs the tokens that it has by itself. Where texts together take more, and a prompt comes out
    too long, more of its oldest behaviors go.

    Args:
        pairs: A pyarrow record batch with the columns of the table PAIRS, N rows.
        fragments: The cache of token ids; it grows by the texts that are new.
        max_tokens: Tokens of prompt and response together.
        num_ads: Ads that a response may name.
        cut: Whether the last segment of ``head`` may lose its end: the description of the explicit task.

    Raises:
        ValueError: If a prompt does not fit without its behaviors, or a response names more than ``num_ads`` ads.
    """
    fitted = _fit(pairs, fragments, max_tokens=max_tokens, num_ads=num_ads, cut=cut)
    kinds = np.where(fitted.fragments < fragments.soft, np.uint8(HISTORY_AD), np.uint8(PROMPT))
    kinds[fitted.parts == _RESPONSE] = RESPONSE
    return Encoded(
        ids=fragments.gather(fitted.fragments, fitted.lengths),
        kinds=np.repeat(kinds, fitted.lengths),
        offsets=_cumulated(fitted.tokens),
        targets=fragments.ads(pairs.column("ad_id")).astype(np.int32),
        dropped=fitted.dropped,
        cut=fitted.cut,
    )


def encode_prompts(batch: Any, fragments: Fragments, *, max_tokens: int) -> Prompts:  # noqa: ANN401
    """Encode prompts alone: token for token what `encode_pairs` makes of them before a response of one ad.

    Args:
        batch: A pyarrow record batch with the columns of the table PROMPTS, N rows; others are not read.
        fragments: The cache of token ids; it grows by the texts that are new.
        max_tokens: Tokens of a prompt and of one ad together.

    Raises:
        ValueError: If a prompt does not fit without its behaviors.
    """
    fitted = _fit(batch.select(_PROMPT_COLUMNS), fragments, max_tokens=max_tokens, num_ads=1, cut=False)
    return Prompts(fragments.gather(fitted.fragments, fitted.lengths), _cumulated(fitted.tokens))


def _fit(batch: Any, fragments: Fragments, *, max_tokens: int, num_ads: int, cut: bool) -> _Fitted:  # noqa: ANN401
    """What stays of prompts, and of their responses where the batch has them."""
    if not fragments.checked:
        _check_texts(batch.select(_PROMPT_COLUMNS).slice(0, CHECKED), fragments)
    segments = _flatten(batch, fragments, num_ads)
    reserved, ends = num_ads * fragments.num_levels, segments.firsts[1:]
    oldest = _oldest(segments, fragments.lengths[segments.fragments], reserved, max_tokens, cut=cut)
    joined, lengths = segments.fragments.copy(), np.zeros_like(segments.fragments)
    tokens, is_cut = np.zeros_like(ends), np.zeros(len(ends), dtype=np.bool_)
    asked = np.ones(len(ends), dtype=np.bool_)
    while asked.any():
        places = np.flatnonzero(asked[segments.rows])
        lengths[places] = 0
        places = places[_stays(segments, oldest, places)]
        joined[places] = _joined(segments, places, is_cut, fragments)
        lengths[places] = fragments.lengths[joined[places]]
        tokens[asked] = _prompt_tokens(segments, lengths, places)[asked]
        asked &= (tokens > max_tokens - reserved) & ~is_cut
        bare = asked & (oldest == ends)
        if not cut:
            _check_fits(np.where(bare, tokens + reserved, 0), max_tokens)
        is_cut |= bare
        oldest[asked & ~bare] += 1
    excess = np.maximum(tokens - (max_tokens - reserved), 0)
    lengths[_descriptions(segments)[is_cut]] -= excess[is_cut]
    totals = (
        tokens
        - excess
        + fragments.num_levels * np.bincount(segments.rows[segments.parts == _RESPONSE], minlength=len(ends))
    )
    dropped = int((oldest - segments.firsts[:-1]).sum())
    return _Fitted(segments.parts, joined, lengths, totals, dropped, int(excess.sum()))


def _check_texts(prompts: Any, fragments: Fragments) -> None:  # noqa: ANN401
    """Check that the texts of some prompts, whole, are joined into what the tokenizer makes of them as one."""
    segments = _flatten(prompts, fragments, num_ads=0)
    is_text, opens = _texts(segments.fragments, segments.rows, fragments)
    fragments.check(segments.fragments[is_text], np.cumsum(opens, dtype=np.int64)[is_text])


def _flatten(batch: Any, fragments: Fragments, num_ads: int) -> _Segments:  # noqa: ANN401
    """Write the nested columns of prompts as flat arrays, with the opening before and the response behind."""
    num_rows = batch.num_rows
    parts = {_OPENING: (np.full(num_rows, len(fragments.opening)), np.tile(fragments.opening, num_rows))}
    for part in (_HEAD, _LEAD, _TAIL):
        segments = batch.column(_PARTS[part])
        parts[part] = (_lengths(segments), _fragments(pc.list_flatten(segments), fragments))
    lists = batch.column("behaviors")
    behaviors, firsts = pc.list_flatten(lists), _cumulated(_lengths(lists))
    sizes = _lengths(behaviors)
    parts[_BEHAVIORS] = (np.diff(_cumulated(sizes)[firsts]), _fragments(pc.list_flatten(behaviors), fragments))
    if "following" in batch.schema.names:
        parts[_RESPONSE] = _responses(batch, fragments, num_ads)
    counts = np.column_stack([parts[part][0] for part in sorted(parts)])  # (N, P)
    order = np.repeat(np.tile(np.array(sorted(parts), dtype=np.uint8), num_rows), counts.ravel())
    found, numbers = np.empty(len(order), dtype=np.int64), np.full(len(order), -1)
    for part, (_, values) in parts.items():
        found[order == part] = values
    numbers[order == _BEHAVIORS] = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.repeat(np.arange(num_rows), counts.sum(1))
    is_soft = found == fragments.soft
    of = rows[is_soft]
    found[is_soft] += np.arange(len(of)) - np.searchsorted(of, of)
    return _Segments(rows, order, numbers, found, firsts)


def _responses(pairs: Any, fragments: Fragments, num_ads: int) -> tuple[Ints, Ints]:  # noqa: ANN401
    """How many ads ``(N,)`` each response names, and the fragments of all: each row's ad, then those that follow it."""
    more = _lengths(pairs.column("following"))
    if more.max(initial=0) >= num_ads:
        raise ValueError(
            f"num_ads is {num_ads}, but the response of row {more.argmax()} names {more.max() + 1} ads: "
            f"keep room for {more.max() + 1}"
        )
    following = fragments.ads(pc.list_flatten(pairs.column("following")))
    return more + 1, np.insert(following, _cumulated(more)[:-1], fragments.ads(pairs.column("ad_id")))


def _lengths(lists: Any) -> Ints:  # noqa: ANN401
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)


def _cumulated(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _fragments(structs: Any, fragments: Fragments) -> Ints:  # noqa: ANN401
    """The fragment ``(S,)`` of each segment; the first learnable token stands for all of them."""
    kinds = pc.struct_field(structs, "kind").dictionary_encode()
    names, indices = kinds.dictionary.to_pylist(), kinds.indices.to_numpy()
    values = pc.struct_field(structs, "value")
    found = np.full(len(indices), fragments.soft)
    for name, look_up in (("ad", fragments.ads), ("text", fragments.texts)):
        if name in names:
            of_kind = indices == names.index(name)
            found[of_kind] = look_up(values.filter(pa.array(of_kind)))
    return found


def _oldest(segments: _Segments, lengths: Ints, reserved: int, max_tokens: int, *, cut: bool) -> Ints:
    """The first behavior ``(N,)`` of each prompt that fits, where each segment costs what it does by itself."""
    begins, ends = segments.firsts[:-1], segments.firsts[1:]
    in_lead, inside = segments.parts == _LEAD, segments.parts == _BEHAVIORS
    always = np.flatnonzero(~(in_lead | inside))
    needed = reserved + _prompt_tokens(segments, lengths, always)
    description = lengths[_descriptions(segments)] if cut else 0
    _check_fits(needed - description, max_tokens)
    left = np.maximum(max_tokens - needed, 0) - _prompt_tokens(segments, lengths, np.flatnonzero(in_lead))
    of_behaviors = np.bincount(segments.behaviors[inside], lengths[inside], segments.firsts[-1]).astype(np.int64)
    before = _cumulated(of_behaviors)  # (B+1,)
    return np.clip(np.searchsorted(before, before[ends] - left), begins, ends)


def _prompt_tokens(segments: _Segments, lengths: Ints, places: Ints) -> Ints:
    """The tokens ``(N,)`` of each prompt at some places, without the response."""
    places = places[segments.parts[places] != _RESPONSE]
    counts = np.bincount(segments.rows[places], lengths[places], len(segments.firsts) - 1)
    return counts.astype(np.int64)


def _descriptions(segments: _Segments) -> Ints:
    """The place ``(N,)`` of the last segment of each head."""
    last = np.zeros(len(segments.firsts) - 1, dtype=np.int64)
    in_head = np.flatnonzero(segments.parts == _HEAD)
    last[segments.rows[in_head]] = in_head  # of equal rows the last one stays
    return last


def _stays(segments: _Segments, oldest: Ints, places: Ints) -> NDArray[np.bool_]:
    """Which places stay, where behaviors older than each prompt's ``oldest`` go."""
    rows, parts, ends = segments.rows[places], segments.parts[places], segments.firsts[1:]
    newer = (parts != _BEHAVIORS) | (segments.behaviors[places] >= oldest[rows])
    found: NDArray[np.bool_] = newer & ((parts != _LEAD) | (oldest < ends)[rows])
    return found


def _joined(segments: _Segments, places: Ints, is_cut: NDArray[np.bool_], fragments: Fragments) -> Ints:
    """The fragments at some places, texts joined with their neighbors, but not behind a description that is cut."""
    found, rows = segments.fragments[places], segments.rows[places]
    is_text, opens = _texts(found, rows, fragments)
    if is_cut.any():
        opens[1:] |= (places == _descriptions(segments)[rows])[:-1] & is_cut[rows[1:]]
    found[is_text] = fragments.join(found[is_text], np.cumsum(opens, dtype=np.int64)[is_text])
    return found


def _texts(found: Ints, rows: Ints, fragments: Fragments) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which fragments are texts, and which are no text behind another one of the same row."""
    is_text = found >= fragments.first_text
    opens = np.ones(len(found), dtype=np.bool_)
    opens[1:] = ~(is_text[1:] & is_text[:-1]) | (rows[1:] != rows[:-1])
    return is_text, opens


def _check_fits(needed: Ints, max_tokens: int) -> None:
    if (needed > max_tokens).any():
        raise ValueError(
            f"prompts.max_tokens is {max_tokens}, but the prompt of row {needed.argmax()} needs {needed.max()} tokens "
            f"without its behaviors: set prompts.max_tokens to at least {needed.max()}"
        )


def _join(parts: list[Encoded]) -> Encoded:
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Encoded(
        ids=np.concatenate([np.empty(0, np.int32), *(part.ids for part in parts)]),
        kinds=np.concatenate([np.empty(0, np.uint8), *(part.kinds for part in parts)]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        targets=np.concatenate([np.empty(0, np.int32), *(part.targets for part in parts)]),
        dropped=sum(part.dropped for part in parts),
        cut=sum(part.cut for part in parts),
    )


def _counts(encoded: Encoded) -> dict[str, float]:
    tokens = np.diff(encoded.offsets)
    return {
        "rows": len(tokens),
        "tokens_mean": round(float(tokens.mean()), 2) if len(tokens) else 0.0,
        "tokens_max": int(tokens.max(initial=0)),
        "dropped_behaviors": encoded.dropped,
        "cut_tokens": encoded.cut,
    }

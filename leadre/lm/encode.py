"""The stage that turns prompt-response pairs into token ids (LEADRE 4.2, 5.1.1)."""

import json
import logging
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

VERSION = 1
ROWS = 10_000
"""Pairs encoded at a time."""
PROMPT, HISTORY_AD, RESPONSE = 0, 1, 2
"""Kinds of tokens: text and learnable tokens, the S-ID of an ad in the history, the response."""
_OPENING, _HEAD, _LEAD, _BEHAVIORS, _TAIL, _RESPONSE = range(6)
_NUM_PARTS = 6

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
    """S segments of N prompts, in any order.

    Attributes:
        rows: ``(S,)`` the prompt.
        parts: ``(S,)`` the place of its part: 0 opening, 1 head, 2 lead, 3 behaviors, 4 tail, 5 response.
        behaviors: ``(S,)`` the behavior, numbered over all prompts; -1 outside the behaviors.
        fragments: ``(S,)`` its tokens.
        kinds: ``(S,)`` the kind of its tokens.
        lengths: ``(S,)`` how many of its tokens stay.
    """

    rows: Ints
    parts: Ints
    behaviors: Ints
    fragments: Ints
    kinds: Ints
    lengths: Ints


class _Fitted(NamedTuple):
    """The segments of the prompts that fit into a budget, and what did not."""

    segments: _Segments
    dropped: int
    cut: int


def encode(base: Path, catalog: Path, pairs: Path, *, out: Path) -> None:
    """Write ``x.safetensors`` for each ``x.parquet`` of the pairs, and counts in ``encode.json``.

    Raises:
        ValueError: If the model does not fit the catalog and the pairs, or if a prompt is longer than
            ``prompts.max_tokens`` even without its behaviors.
    """
    about = json.loads((pairs / "prompts.json").read_text(encoding="utf-8"))
    vocabulary = load_vocabulary(base)
    if len(vocabulary.soft_ids) < about["soft_tokens"]:
        raise ValueError(
            f"the model has {len(vocabulary.soft_ids)} learnable tokens, but prompts.soft_tokens is "
            f"{about['soft_tokens']}: make the base model from these pairs"
        )
    fragments = Fragments(vocabulary, tables.read(tables.SIDS, catalog / "sids.parquet"))
    counts = {}
    for path in sorted(pairs.glob("*.parquet")):
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

    Where a prompt is too long, its oldest behaviors go, and ``lead`` with the last of them. Head, tail and response
    stay whole. Room is kept for ``num_ads`` ads in every row, so that the length of a prompt does not tell how many
    ads answer it.

    Args:
        pairs: A pyarrow record batch with the columns of the table PAIRS, N rows.
        fragments: The cache of token ids; it grows by the texts that are new.
        max_tokens: Tokens of prompt and response together.
        num_ads: Ads that a response may name.
        cut: Whether the last segment of ``head`` may lose its end: the description of the explicit task.

    Raises:
        ValueError: If a prompt does not fit without its behaviors, or a response names more than ``num_ads`` ads.
    """
    prompts = _fit(pairs, fragments, max_tokens=max_tokens, num_ads=num_ads, cut=cut)
    responses = _responses(pairs, fragments, num_ads)
    segments = _ordered(_Segments(*map(np.concatenate, zip(prompts.segments, responses, strict=True))))
    return Encoded(
        ids=fragments.gather(segments.fragments, segments.lengths),
        kinds=np.repeat(segments.kinds.astype(np.uint8), segments.lengths),
        offsets=_offsets(segments, pairs.num_rows),
        targets=fragments.ads(pairs.column("ad_id")).astype(np.int32),
        dropped=prompts.dropped,
        cut=prompts.cut,
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
    segments = _ordered(_fit(batch, fragments, max_tokens=max_tokens, num_ads=1, cut=False).segments)
    return Prompts(fragments.gather(segments.fragments, segments.lengths), _offsets(segments, batch.num_rows))


def _fit(batch: Any, fragments: Fragments, *, max_tokens: int, num_ads: int, cut: bool) -> _Fitted:  # noqa: ANN401
    """The segments of the prompts that stay, in any order."""
    segments = _flatten(batch, fragments)
    reserved = num_ads * fragments.num_levels
    lengths, num_cut = _fit_heads(segments, batch.num_rows, max_tokens, reserved, cut=cut)
    segments = segments._replace(lengths=lengths)
    kept, num_dropped = _fit_behaviors(segments, batch.num_rows, max_tokens - reserved)
    return _Fitted(_Segments(*(field[kept] for field in segments)), num_dropped, num_cut)


def _ordered(segments: _Segments) -> _Segments:
    """Rows in order, the parts of a row in order, and the segments of a part as they came."""
    order = np.argsort(segments.rows * _NUM_PARTS + segments.parts, kind="stable")
    return _Segments(*(field[order] for field in segments))


def _offsets(segments: _Segments, num_rows: int) -> Ints:
    tokens = np.bincount(segments.rows, segments.lengths, num_rows).astype(np.int64)  # (N,)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens)])


def _flatten(batch: Any, fragments: Fragments) -> _Segments:  # noqa: ANN401
    """Write the nested columns of prompts as flat arrays, the opening included."""
    rows, parts, behaviors, structs = [], [], [], []
    every = np.arange(batch.num_rows)
    for part, name in ((_HEAD, "head"), (_LEAD, "lead"), (_TAIL, "tail")):
        inside = np.repeat(every, _lengths(batch.column(name)))
        rows.append(inside)
        parts.append(np.full(len(inside), part))
        behaviors.append(np.full(len(inside), -1))
        structs.append(pc.list_flatten(batch.column(name)))
    lists = pc.list_flatten(batch.column("behaviors"))  # one behavior after the other
    inside = np.repeat(np.arange(len(lists)), _lengths(lists))
    rows.append(np.repeat(every, _lengths(batch.column("behaviors")))[inside])
    parts.append(np.full(len(inside), _BEHAVIORS))
    behaviors.append(inside)
    structs.append(pc.list_flatten(lists))
    found, kinds = _fragments(pa.concat_arrays(structs), np.concatenate(rows), fragments)
    opening = np.repeat(every, len(fragments.opening))
    found = np.concatenate([found, np.tile(fragments.opening, len(every)).astype(np.int64)])
    return _Segments(
        rows=np.concatenate([*rows, opening]),
        parts=np.concatenate([*parts, np.full(len(opening), _OPENING)]),
        behaviors=np.concatenate([*behaviors, np.full(len(opening), -1)]),
        fragments=found,
        kinds=np.concatenate([kinds, np.full(len(opening), PROMPT)]),
        lengths=fragments.lengths[found],
    )


def _responses(pairs: Any, fragments: Fragments, num_ads: int) -> _Segments:  # noqa: ANN401
    """One segment an ad: each row's first ad, then those that follow it in order."""
    every, more = np.arange(pairs.num_rows), _lengths(pairs.column("following"))
    if more.max(initial=0) >= num_ads:
        raise ValueError(
            f"num_ads is {num_ads}, but the response of row {more.argmax()} names {more.max() + 1} ads: "
            f"keep room for {more.max() + 1}"
        )
    ads = [pairs.column("ad_id"), pc.list_flatten(pairs.column("following"))]
    found = np.concatenate([fragments.ads(column) for column in ads])
    return _Segments(
        rows=np.concatenate([every, np.repeat(every, more)]),
        parts=np.full(len(found), _RESPONSE),
        behaviors=np.full(len(found), -1),
        fragments=found,
        kinds=np.full(len(found), RESPONSE),
        lengths=fragments.lengths[found],
    )


def _lengths(lists: Any) -> Ints:  # noqa: ANN401
    return np.asarray(pc.list_value_length(lists), dtype=np.int64)


def _fragments(structs: Any, rows: Ints, fragments: Fragments) -> tuple[Ints, Ints]:  # noqa: ANN401
    """The fragment ``(S,)`` and the kind of token ``(S,)`` of each segment."""
    kinds = np.asarray(pc.struct_field(structs, "kind"), dtype=object)
    values = pc.struct_field(structs, "value")
    found = np.empty(len(kinds), dtype=np.int64)
    is_ad, is_text, is_soft = kinds == "ad", kinds == "text", kinds == "soft"
    found[is_ad] = fragments.ads(values.filter(pa.array(is_ad)))
    found[is_text] = fragments.texts(values.filter(pa.array(is_text)))
    of = rows[is_soft]  # ascending: learnable tokens stand in the head alone
    found[is_soft] = fragments.soft + np.arange(len(of)) - np.searchsorted(of, of)
    return found, np.where(is_ad, HISTORY_AD, PROMPT)


def _fit_heads(segments: _Segments, num_rows: int, max_tokens: int, reserved: int, *, cut: bool) -> tuple[Ints, int]:
    """Check that all but lead and behaviors fit; where `cut`, shorten the last segment of the head until they do."""
    always = (segments.parts != _LEAD) & (segments.parts != _BEHAVIORS)
    needed = reserved + np.bincount(segments.rows[always], segments.lengths[always], num_rows).astype(np.int64)  # (N,)
    if not cut:
        _check_fits(needed, max_tokens)
        return segments.lengths, 0
    last = np.zeros(num_rows, dtype=np.int64)
    in_head = segments.parts == _HEAD
    last[segments.rows[in_head]] = np.flatnonzero(in_head)  # of equal rows the last one stays
    _check_fits(needed - segments.lengths[last], max_tokens)
    excess = np.maximum(needed - max_tokens, 0)
    lengths = segments.lengths.copy()
    lengths[last] -= excess
    return lengths, int(excess.sum())


def _check_fits(needed: Ints, max_tokens: int) -> None:
    if (needed > max_tokens).any():
        raise ValueError(
            f"prompts.max_tokens is {max_tokens}, but the prompt of row {needed.argmax()} needs {needed.max()} tokens "
            f"without its behaviors: set prompts.max_tokens to at least {needed.max()}"
        )


def _fit_behaviors(segments: _Segments, num_rows: int, max_tokens: int) -> tuple[NDArray[np.bool_], int]:
    """Which segments stay ``(S,)``: the newest behaviors that fit; and the number of behaviors that go."""
    inside = segments.parts == _BEHAVIORS
    lengths = segments.lengths
    others = np.bincount(segments.rows[~inside], lengths[~inside], num_rows).astype(np.int64)  # (N,)
    numbers = segments.behaviors[inside]
    num_behaviors = int(numbers.max(initial=-1)) + 1
    rows = np.zeros(num_behaviors, dtype=np.int64)
    rows[numbers] = segments.rows[inside]
    cost = np.bincount(numbers, lengths[inside], num_behaviors).astype(np.int64)
    until_row_end = np.cumsum(np.bincount(rows, cost, num_rows).astype(np.int64))[rows]
    with_newer = until_row_end - np.cumsum(cost) + cost  # tokens of a behavior and of all newer ones of its row
    fits = with_newer <= (max_tokens - others)[rows]
    kept = np.ones(len(inside), dtype=np.bool_)
    kept[inside] = fits[numbers]
    in_lead = segments.parts == _LEAD
    kept[in_lead] = (np.bincount(rows[fits], minlength=num_rows) > 0)[segments.rows[in_lead]]
    return kept, int(np.count_nonzero(~fits))


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

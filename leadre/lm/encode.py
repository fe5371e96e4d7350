"""The stage that turns prompt-response pairs into token ids (LEADRE 4.2, 5.1.1)."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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


class Encoded(NamedTuple):
    """N prompts with their responses, T tokens in all.

    Attributes:
        ids: ``(T,)`` token ids, one row after the other.
        kinds: ``(T,)`` 0 prompt, 1 S-ID of an ad in the history, 2 response.
        offsets: ``(N+1,)`` row n is ``ids[offsets[n]:offsets[n+1]]``.
        targets: ``(N,)`` catalog row of the ad that the response names.
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
    """

    rows: Ints
    parts: Ints
    behaviors: Ints
    fragments: Ints
    kinds: NDArray[np.uint8]


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
        batches = pq.ParquetFile(path).iter_batches(ROWS)
        encoded = _join(
            [
                encode_pairs(batch, fragments, max_tokens=about["max_tokens"], cut=path.stem.startswith("explicit"))
                for batch in batches
            ]
        )
        arrays = {name: getattr(encoded, name) for name in ("ids", "kinds", "offsets", "targets")}
        save_file(arrays, out / f"{path.stem}.safetensors")
        counts[path.stem] = _counts(encoded)
        log.info("%s: %s", path.stem, counts[path.stem])
    (out / "encode.json").write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


def encode_pairs(pairs: Any, fragments: Fragments, *, max_tokens: int, cut: bool) -> Encoded:  # noqa: ANN401
    """Encode prompts and responses within a budget of tokens.

    Where a prompt is too long, its oldest behaviors go, and ``lead`` with the last of them. Head, tail and response
    stay whole.

    Args:
        pairs: A pyarrow batch or table with the columns of the table PAIRS, N rows.
        fragments: The cache of token ids; it grows by the texts that are new.
        max_tokens: Tokens of prompt and response together.
        cut: Whether the last segment of ``head`` may lose its end: the description of the explicit task.

    Raises:
        ValueError: If a prompt does not fit without its behaviors.
    """
    num_rows = pairs.num_rows
    segments = _flatten(pairs, fragments)
    lengths, num_cut = _fit_heads(segments, fragments.lengths[segments.fragments], num_rows, max_tokens, cut=cut)
    kept, num_dropped = _fit_behaviors(segments, lengths, num_rows, max_tokens)
    # Rows in order, the parts of a row in order, and the segments of a part as they came.
    order = np.argsort(np.where(kept, segments.rows * _NUM_PARTS + segments.parts, -1), kind="stable")
    order = order[np.count_nonzero(~kept) :]
    lengths = lengths[order]
    tokens = np.bincount(segments.rows[order], lengths, num_rows).astype(np.int64)  # (N,)
    return Encoded(
        ids=fragments.gather(segments.fragments[order], lengths),
        kinds=np.repeat(segments.kinds[order], lengths),
        offsets=np.concatenate([[0], np.cumsum(tokens)]),
        targets=fragments.ads(pairs.column("ad_id")).astype(np.int32),
        dropped=num_dropped,
        cut=num_cut,
    )


def _flatten(pairs: Any, fragments: Fragments) -> _Segments:  # noqa: ANN401
    """Write the nested columns as flat arrays, the opening and the response included."""
    rows, parts, behaviors, structs = [], [], [], []
    every = np.arange(pairs.num_rows)
    for part, name in ((_HEAD, "head"), (_LEAD, "lead"), (_TAIL, "tail")):
        inside = np.repeat(every, _lengths(pairs.column(name)))
        rows.append(inside)
        parts.append(np.full(len(inside), part))
        behaviors.append(np.full(len(inside), -1))
        structs.append(pc.list_flatten(pairs.column(name)))
    lists = pc.list_flatten(pairs.column("behaviors"))  # one behavior after the other
    inside = np.repeat(np.arange(len(lists)), _lengths(lists))
    rows.append(np.repeat(every, _lengths(pairs.column("behaviors")))[inside])
    parts.append(np.full(len(inside), _BEHAVIORS))
    behaviors.append(inside)
    structs.append(pc.list_flatten(lists))
    found, kinds = _fragments(pa.concat_arrays(structs), np.concatenate(rows), fragments)
    opening = np.repeat(every, len(fragments.opening))
    return _Segments(
        rows=np.concatenate([*rows, opening, every]),
        parts=np.concatenate([*parts, np.full(len(opening), _OPENING), np.full(len(every), _RESPONSE)]),
        behaviors=np.concatenate([*behaviors, np.full(len(opening) + len(every), -1)]),
        fragments=np.concatenate(
            [found, np.tile(fragments.opening, len(every)).astype(np.int64), fragments.ads(pairs.column("ad_id"))]
        ),
        kinds=np.concatenate([kinds, np.full(len(opening), PROMPT), np.full(len(every), RESPONSE)]).astype(np.uint8),
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


def _fit_heads(segments: _Segments, lengths: Ints, num_rows: int, max_tokens: int, *, cut: bool) -> tuple[Ints, int]:
    """Check that all but lead and behaviors fit; where `cut`, shorten the last segment of the head until they do."""
    always = (segments.parts != _LEAD) & (segments.parts != _BEHAVIORS)
    needed = np.bincount(segments.rows[always], lengths[always], num_rows).astype(np.int64)  # (N,)
    last = np.zeros(num_rows, dtype=np.int64)
    in_head = segments.parts == _HEAD
    last[segments.rows[in_head]] = np.flatnonzero(in_head)  # of equal rows the last one stays
    excess = np.maximum(needed - max_tokens, 0)
    least = needed - lengths[last] if cut else needed
    if (least > max_tokens).any():
        raise ValueError(
            f"prompts.max_tokens is {max_tokens}, but the prompt of row {least.argmax()} needs {least.max()} tokens "
            f"without its behaviors: set prompts.max_tokens to at least {least.max()}"
        )
    lengths = lengths.copy()
    lengths[last] -= excess
    return lengths, int(excess.sum())


def _fit_behaviors(segments: _Segments, lengths: Ints, num_rows: int, max_tokens: int) -> tuple[NDArray[np.bool_], int]:
    """Which segments stay ``(S,)``: the newest behaviors that fit; and the number of behaviors that go."""
    inside = segments.parts == _BEHAVIORS
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

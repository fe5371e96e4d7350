"""Token ids of the pieces of prompts, each encoded once and apart from all others."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numpy.typing import NDArray

from leadre.lm.tokenizer import plain_tokenizer, reserved_ids
from leadre.lm.vocabulary import Vocabulary

Ints = NDArray[np.int64]


class Fragments:
    """A growing cache from a segment to its token ids.

    Fragment n < N is the S-ID of catalog row n; then come the learnable tokens, the beginning-of-sequence token if
    there is one, and every distinct text in the order of its first appearance. Text is encoded without added tokens,
    so whatever it says, it becomes text tokens.

    Args:
        vocabulary: What the tokens mean.
        sids: The table SIDS.

    Attributes:
        num_levels: Tokens of an S-ID.
        soft: Fragment of the first learnable token; the others follow.
        opening: Fragments that begin every prompt: the beginning-of-sequence token, if the tokenizer adds one.

    Raises:
        ValueError: If the model has another number of S-ID levels than the catalog, or if S-ID or learnable tokens
            lie inside the tokenizer's vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, sids: pl.DataFrame) -> None:
        _check(vocabulary, sids)
        self._plain = plain_tokenizer(vocabulary.tokenizer)
        self._reserved = np.array(sorted(reserved_ids(vocabulary.tokenizer)), dtype=np.int64)
        self._rows = {ad_id: row for row, ad_id in enumerate(sids["ad_id"])}
        self._texts: dict[str, int] = {}
        self.num_levels = len(vocabulary.sid_offsets)
        self.soft = sids.height
        bos = _bos(vocabulary)
        self.opening = [sids.height + len(vocabulary.soft_ids)] if bos else []
        codes = np.array(sids["sid"].to_list(), dtype=np.int64).reshape(sids.height, self.num_levels)
        singles = np.array([*vocabulary.soft_ids, *bos], dtype=np.int64)
        self._tokens = np.concatenate([(codes + np.array(vocabulary.sid_offsets)).ravel(), singles])
        self.lengths: Ints = np.repeat([self.num_levels, 1], [sids.height, len(singles)])

    def ads(self, ad_ids: Any) -> Ints:  # noqa: ANN401  # a pyarrow array, which has no types
        """The fragments of ads, which are their catalog rows.

        Raises:
            ValueError: If an ad is not in the catalog.
        """
        names = pc.unique(ad_ids).to_pylist()
        if unknown := [ad_id for ad_id in names if ad_id not in self._rows]:
            raise ValueError(
                f"pairs hold the ad {unknown[0]!r} (and {len(unknown) - 1} more) that the catalog does not: "
                "compose the pairs from this catalog"
            )
        return _look_up(ad_ids, self._rows)

    def texts(self, values: Any) -> Ints:  # noqa: ANN401  # a pyarrow array, which has no types
        """The fragments of texts; those that are new are encoded now.

        Raises:
            ValueError: If the tokenizer makes a control token of a text all the same.
        """
        new = [text for text in pc.unique(values).to_pylist() if text not in self._texts]
        if new:
            self._add(new)
        return _look_up(values, self._texts)

    def gather(self, fragments: Ints, lengths: Ints) -> NDArray[np.int32]:
        """Concatenate the first ``lengths[i]`` tokens of each fragment."""
        starts = np.cumsum(self.lengths) - self.lengths
        skipped = np.cumsum(lengths) - lengths
        places = np.arange(lengths.sum()) + np.repeat(starts[fragments] - skipped, lengths)
        found: NDArray[np.int32] = self._tokens[places].astype(np.int32)
        return found

    def _add(self, texts: Sequence[str]) -> None:
        encoded = [code.ids for code in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        tokens = np.array([token for ids in encoded for token in ids], dtype=np.int64)
        if (wrong := np.isin(tokens, self._reserved)).any():
            culprit = texts[int(np.repeat(np.arange(len(texts)), lengths)[wrong.argmax()])]
            raise ValueError(
                f"the tokenizer makes the control token {tokens[wrong.argmax()]} of the text {culprit[:80]!r}: "
                "choose a language model whose tokenizer can write every byte"
            )
        self._texts |= {text: len(self.lengths) + place for place, text in enumerate(texts)}
        self._tokens = np.concatenate([self._tokens, tokens])
        self.lengths = np.concatenate([self.lengths, lengths])


def _look_up(values: Any, known: Mapping[str, int]) -> Ints:  # noqa: ANN401  # a pyarrow array, which has no types
    coded = values.dictionary_encode()
    places = np.array([known[name] for name in coded.dictionary.to_pylist()], dtype=np.int64)
    found: Ints = places[coded.indices.to_numpy()]
    return found


def _check(vocabulary: Vocabulary, sids: pl.DataFrame) -> None:
    levels = sids["sid"].list.len().unique().to_list()
    if levels != [len(vocabulary.sid_offsets)]:
        raise ValueError(
            f"the model has tokens for {len(vocabulary.sid_offsets)} S-ID levels, but the catalog has {levels}: "
            "make the base model from this catalog"
        )
    first = min((*vocabulary.sid_offsets, *vocabulary.soft_ids))
    if first < len(vocabulary.tokenizer):
        raise ValueError(
            f"token {first} is an S-ID or learnable token, but also one of the {len(vocabulary.tokenizer)} tokens of "
            "the tokenizer, so text could become it: put the new tokens behind the vocabulary"
        )


def _bos(vocabulary: Vocabulary) -> list[int]:
    """The beginning-of-sequence token, if the tokenizer has one and sets it by itself."""
    bos = vocabulary.tokenizer.bos_token_id
    return [bos] if bos is not None and vocabulary.tokenizer.encode("a")[0] == bos else []

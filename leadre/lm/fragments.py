"""Token ids of the pieces of prompts, each encoded once, such that together they are the ids of the whole."""

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from leadre.lm.tokenizer import Words, plain_tokenizer, reserved_ids
from leadre.lm.vocabulary import Vocabulary

Ints = NDArray[np.int64]
ROUNDS = 8
"""How often texts are cut anew where they meet before a run of them is encoded as one."""
REACH = 8
"""Letters on each side that tell whether words end where texts meet. Our choice: the tested pre-tokenizers (GPT-2's,
Llama 3's, o200k's, digits and Chinese apart) look at one letter, or at three of ``'re``. Others may look farther, such
as digits that are grouped from the right: `Fragments.check` finds them out."""
_PAIR = 1 << 32

log = logging.getLogger(__name__)


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
        first_text: The first fragment that is a text.
        lengths: Tokens of each fragment.
        checked: Whether `check` was called.

    Raises:
        ValueError: If the model has another number of S-ID levels than the catalog, or if S-ID or learnable tokens
            lie inside the tokenizer's vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary, sids: pl.DataFrame) -> None:
        _check(vocabulary, sids)
        self._plain = plain_tokenizer(vocabulary.tokenizer)
        self._words = Words(self._plain)
        self._letters: set[str] = set()
        self.checked = False
        self._reserved = np.array(sorted(reserved_ids(vocabulary.tokenizer)), dtype=np.int64)
        self._rows = {ad_id: row for row, ad_id in enumerate(sids["ad_id"])}
        self.num_levels = len(vocabulary.sid_offsets)
        self.soft = sids.height
        bos = _bos(vocabulary)
        self.opening = [sids.height + len(vocabulary.soft_ids)] if bos else []
        codes = np.array(sids["sid"].to_list(), dtype=np.int32).reshape(sids.height, self.num_levels)
        singles = np.array([*vocabulary.soft_ids, *bos], dtype=np.int32)
        self._tokens = np.concatenate([(codes + np.array(vocabulary.sid_offsets, np.int32)).ravel(), singles])
        self.lengths: Ints = np.repeat([self.num_levels, 1], [sids.height, len(singles)])
        self._starts = np.cumsum(self.lengths) - self.lengths
        self.first_text = len(self.lengths)
        self._texts: dict[str, int] = {}
        self._normal: list[str] = []  # of fragment `first_text` and those that follow
        self._word_ids: dict[str, int] = {}
        self._word_names: list[str] = []
        # Of each text how its first word begins and its last one ends, its last word, and the text without it; -1 for
        # none, and where it was not yet asked for.
        self._begin, self._end, self._last, self._rest = (np.empty(0, dtype=np.int64) for _ in range(4))
        self._apart: dict[int, int] = {}
        self._prefixed: dict[int, int] = {}

    def ads(self, ad_ids: Any) -> Ints:  # noqa: ANN401  # a pyarrow array, which has no types
        """The fragments of ads, which are their catalog rows.

        Raises:
            ValueError: If an ad is not in the catalog.
        """

        def refuse(unknown: Sequence[str]) -> Iterable[int]:
            raise ValueError(
                f"pairs hold the ad {unknown[0]!r} (and {len(unknown) - 1} more) that the catalog does not: "
                "compose the pairs from this catalog"
            )

        return _look_up(ad_ids, self._rows, refuse)

    def texts(self, values: Any) -> Ints:  # noqa: ANN401  # a pyarrow array, which has no types
        """The fragments of texts; those that are new are encoded now.

        Raises:
            ValueError: If the tokenizer cannot write a letter, or makes a control token of a text all the same.
        """
        return _look_up(values, self._texts, self._add)

    def join(self, fragments: Ints, runs: Ints) -> Ints:
        """Cut texts that follow each other anew, so that their ids in turn are those of the whole run as one text.

        Where the tokenizer would not end a word at the end of a text, the text's last word is moved to the front of the
        next one, until all words end where texts do. These are again texts that prompts repeat. A run that takes more
        than `ROUNDS` is encoded as one text.

        Args:
            fragments: ``(S,)`` texts, in turn.
            runs: ``(S,)`` ascending numbers, the same for texts of the same run.

        Returns:
            ``(S,)`` texts; some of them empty.
        """
        joined, moved = fragments.copy(), np.ones(len(fragments), dtype=np.bool_)
        for _ in range(ROUNDS if self._words.known else 0):
            left, right = self._meetings(joined, runs, moved)
            if not len(left):
                return joined
            words = self._last[joined[left] - self.first_text]
            joined[left] = self._without_last(joined[left])
            joined[right] = self._with_first(words, joined[right])
            moved[:] = False
            moved[left] = moved[right] = True
        return self._as_one(joined, runs, moved)

    def check(self, fragments: Ints, runs: Ints) -> None:
        """Compare what `join` makes of runs with the runs encoded as one text each, arguments as of `join`.

        Where they differ, the tokenizer looks farther than `REACH` letters, so each distinct run is encoded whole from
        now on, and a warning says so.
        """
        self.checked = True
        if not self._words.known or not len(runs):
            return
        joined = self.join(fragments, runs)
        ids = np.split(self.gather(joined, self.lengths[joined]), np.cumsum(self.lengths[joined])[_ends(runs)])
        texts = self._written(fragments, runs)
        distinct = list(dict.fromkeys(texts))
        encoded = self._plain.encode_batch_fast(distinct, add_special_tokens=False)
        wholes = {text: code.ids for text, code in zip(distinct, encoded, strict=True)}
        for text, found in zip(texts, ids[:-1], strict=True):
            if found.tolist() != wholes[text]:
                log.warning(
                    "the tokenizer cuts words by letters farther than %s away, as in %r: "
                    "each distinct run of texts is encoded whole, which takes longer",
                    *(REACH, text[:80]),
                )
                self._words.known = False
                return

    def gather(self, fragments: Ints, lengths: Ints) -> NDArray[np.int32]:
        """Concatenate the first ``lengths[i]`` tokens of each fragment."""
        some = np.flatnonzero(lengths)
        starts, lengths = self._starts[fragments[some]], lengths[some]
        steps = np.ones(lengths.sum(), dtype=np.int64)
        ends = np.cumsum(lengths)
        if len(some):
            steps[0] = starts[0]
            steps[ends[:-1]] = starts[1:] - starts[:-1] - lengths[:-1] + 1
        found: NDArray[np.int32] = self._tokens[np.cumsum(steps, out=steps)]
        return found

    def _meetings(self, joined: Ints, runs: Ints, moved: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """The places of neighbors in a run whose words do not end where they meet; one of the two was moved."""
        texts = joined - self.first_text
        some = np.flatnonzero(self._last[texts] >= 0)
        left, right = some[:-1], some[1:]
        asked = (runs[left] == runs[right]) & (moved[left] | moved[right])
        left, right = left[asked], right[asked]
        pairs = self._end[texts[left]] * _PAIR + self._begin[texts[right]]
        together = ~_look_up(pa.array(pairs), self._apart, self._compare).astype(np.bool_)
        return left[together], right[together]

    def _compare(self, pairs: Iterable[int]) -> list[int]:
        names = self._word_names
        return [self._words.apart(names[pair // _PAIR], names[pair % _PAIR]) for pair in pairs]

    def _without_last(self, fragments: Ints) -> Ints:
        texts = fragments - self.first_text
        new = np.unique(texts[self._rest[texts] < 0])
        cut = [self._normal[text][: -len(self._word_names[self._last[text]])] for text in new]
        found = self.texts(pa.array(cut, pa.string()))
        self._rest[new] = found
        return self._rest[texts]

    def _with_first(self, words: Ints, fragments: Ints) -> Ints:
        return _look_up(pa.array(words * _PAIR + fragments), self._prefixed, self._prefix)

    def _prefix(self, pairs: Iterable[int]) -> Ints:
        texts = [self._word_names[pair // _PAIR] + self._normal[pair % _PAIR - self.first_text] for pair in pairs]
        return self.texts(pa.array(texts, pa.string()))

    def _as_one(self, joined: Ints, runs: Ints, moved: NDArray[np.bool_]) -> Ints:
        """Put each run that something moved in into its last place, and nothing into the others."""
        places = np.flatnonzero(np.isin(runs, runs[moved]))
        wholes = self._written(joined[places], runs[places])
        joined[places] = self.texts(pa.array([""]))
        joined[places[_ends(runs[places])]] = self.texts(pa.array(wholes, pa.string()))
        return joined

    def _written(self, fragments: Ints, runs: Ints) -> list[str]:
        """Each run as one text, normal where its texts are."""
        texts = [self._normal[text] for text in fragments - self.first_text]
        ends = (_ends(runs) + 1).tolist()
        return ["".join(texts[start:end]) for start, end in pairwise([0, *ends])]

    def _add(self, texts: Sequence[str]) -> range:
        normal = [self._words.normal(text) for text in texts]
        self._check_letters(normal)
        normal = normal if self._words.known else list(texts)
        encoded = [code.ids for code in self._plain.encode_batch_fast(normal, add_special_tokens=False)]
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        tokens = np.array([token for ids in encoded for token in ids], dtype=np.int32)
        if (wrong := np.isin(tokens, self._reserved)).any():
            culprit = texts[int(np.repeat(np.arange(len(texts)), lengths)[wrong.argmax()])]
            raise ValueError(
                f"the tokenizer makes the control token {tokens[wrong.argmax()]} of the text {culprit[:80]!r}: "
                "choose a language model whose tokenizer can write every byte"
            )
        begin, end, last = np.array([self._ends(text) for text in normal], dtype=np.int64).reshape(-1, 3).T
        self._normal += normal
        self._begin, self._end = np.append(self._begin, begin), np.append(self._end, end)
        self._last = np.append(self._last, last)
        self._rest = np.append(self._rest, np.full(len(texts), -1))
        self._starts = np.append(self._starts, len(self._tokens) + np.cumsum(lengths) - lengths)
        self._tokens = np.concatenate([self._tokens, tokens])
        self.lengths = np.concatenate([self.lengths, lengths])
        return range(len(self.lengths) - len(texts), len(self.lengths))

    def _check_letters(self, normal: Sequence[str]) -> None:
        """Refuse letters that the tokenizer would leave out or replace; each is tried once."""
        new = set("".join(normal)) - self._letters
        for letter in sorted(new):
            if not self._words.writes(letter, self._plain.model):
                raise ValueError(
                    f"the tokenizer cannot write the letter {letter!r} of a text: "
                    "choose a language model whose tokenizer can write every byte"
                )
        self._letters |= new

    def _ends(self, text: str) -> tuple[int, int, int]:
        """The numbers of how a text's first word begins, of how its last one ends, and of its last word."""
        if not text or not self._words.known:
            return -1, -1, -1
        words = self._words.cut(text)
        return self._word(words[0][:REACH]), self._word(words[-1][-REACH:]), self._word(words[-1])

    def _word(self, name: str) -> int:
        if name not in self._word_ids:
            self._word_ids[name] = len(self._word_names)
            self._word_names.append(name)
        return self._word_ids[name]


def _ends(runs: Ints) -> Ints:
    """The place of the last text of each run."""
    return np.flatnonzero(np.diff(runs, append=-1))


def _look_up(keys: Any, known: dict[Any, int], make: Callable[[list[Any]], Iterable[int]]) -> Ints:  # noqa: ANN401
    """The values of keys, a pyarrow array; those that are not known yet are made, all at once."""
    coded = keys.dictionary_encode()
    names = coded.dictionary.to_pylist()
    if new := [name for name in names if name not in known]:
        known.update(zip(new, make(new), strict=True))
    found: Ints = np.array([known[name] for name in names], dtype=np.int64)[coded.indices.to_numpy()]
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

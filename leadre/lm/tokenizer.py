"""The tokenizer of the tiny model, and the way in which any tokenizer reads text that others wrote."""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import repeat
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BYTES = 256
TEXTS = 250_000
_SEPARATOR = Regex(r"[;/:,.；：，。、] ?")
_NUMBER = Regex(r"[0-9]{1,3}")
_NORMAL_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose words are phrases: ``" days ago^play short video^"`` becomes one token.

    Our choice: words end after ``; / : , .`` (and their Chinese kin) and around numbers of up to three digits, but
    not at spaces nor at ``^``. Prompts repeat the same phrases, so that a prompt becomes a few tokens, and a short
    prompt is what makes a small machine enough. Every byte is in the vocabulary: any text can be written and
    decoded back. There are no special tokens: a response has a fixed length and needs no end. The same texts
    give the same tokenizer.

    Our choice: of a large corpus, each text counts in proportion, but at least once, so that about a quarter of a
    million texts are read: prompts repeat so much that more would only take time.

    Args:
        texts: The corpus; how often a text is given matters.
        vocabulary: Number of tokens, at most; a small corpus gives fewer.

    Raises:
        ValueError: If the vocabulary cannot hold every byte.
    """
    if vocabulary < BYTES:
        raise ValueError(
            f"vocabulary is {vocabulary}, but every byte needs a token, or some text could not be written: "
            f"give at least {BYTES}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SEPARATOR, behavior="merged_with_previous"),
            pre_tokenizers.Split(_NUMBER, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_thinned(texts), trainer)
    wrap: Any = PreTrainedTokenizerFast  # Transformers leaves its __init__ untyped
    return cast(PreTrainedTokenizerFast, wrap(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False))


def _thinned(texts: Iterable[str]) -> Iterator[str]:
    counts = Counter(texts)
    share = math.ceil(counts.total() / TEXTS) if counts else 1
    for text, count in counts.items():
        yield from repeat(text, math.ceil(count / share))


def reserved_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """The ids of tokens that were added to a tokenizer and that no text of others may become."""
    return frozenset(tokenizer.added_tokens_decoder)


def plain_tokenizer(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Copy a tokenizer without its added tokens: ``<|endoftext|>`` in a title is then text like any other.

    Neither ``split_special_tokens`` nor ``encode_special_tokens`` is enough: they let alone the added tokens that
    are not marked as special (``<think>``, ``<tool_call>``).

    Raises:
        ValueError: If the tokenizer is no BPE. Other models find the words of their vocabulary in a text whether
            they were added or not.
    """
    described = json.loads(cast(Any, tokenizer.backend_tokenizer).to_str())
    if described["model"]["type"] != "BPE":
        raise ValueError(
            f"the tokenizer's model is {described['model']['type']}, but only BPE keeps control tokens out of text "
            "that others wrote: choose a language model with a BPE tokenizer"
        )
    described |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(described))


class Words:
    """How a tokenizer cuts a text into words. No token reaches over the end of a word.

    Args:
        plain: The tokenizer, without its added tokens.

    Attributes:
        known: Whether what happens to a text can be told from its words: there are words, and what is done to letters
            before is nothing or a normal form of Unicode.
    """

    def __init__(self, plain: Tokenizer) -> None:
        self._normalizer, self._cutter = plain.normalizer, plain.pre_tokenizer
        self.known = self._cutter is not None and _only_normal_forms(self._normalizer)
        self._alone = lru_cache(1 << 16)(lambda text: [piece for piece, _ in self._pieces(text)])

    def normal(self, text: str) -> str:
        """The text as the tokenizer's normalizer writes it."""
        return text if self._normalizer is None else str(self._normalizer.normalize_str(text))

    def cut(self, text: str) -> list[str]:
        """The words of a normal text, which make it up again; the whole as one word where they would not."""
        words = [text[begin:end] for _, (begin, end) in self._pieces(text)]
        return words if "".join(words) == text else [text]

    def writes(self, letter: str, model: models.BPE) -> bool:
        """Whether a model has tokens for a letter of a normal text; a letter that is no part of any word needs none."""
        pieces = [letter] if self._cutter is None else [piece for piece, _ in self._pieces(letter)]
        units = [[token.value for token in model.tokenize(unit)] for piece in pieces for unit in piece]
        return all(names and model.unk_token not in names for names in units)

    def apart(self, left: str, right: str) -> bool:
        """Whether the end of a word and the beginning of the next one, in normal texts, stay words where they meet.

        Where the right one begins with a combining mark, they do not, whatever stands before: the mark may reach over
        several others to a letter.
        """
        both = left + right
        if not both.isascii() and (unicodedata.category(right[0]).startswith("M") or self.normal(both) != both):
            return False
        return self._alone(left) + self._alone(right) == [piece for piece, _ in self._pieces(both)]

    def _pieces(self, text: str) -> list[tuple[str, tuple[int, int]]]:
        """The words as the model gets them, each with its place in the text."""
        found: list[tuple[str, tuple[int, int]]] = self._cutter.pre_tokenize_str(text)
        return found


def _only_normal_forms(normalizer: normalizers.Normalizer | None) -> bool:
    if normalizer is None:
        return True
    told = json.loads(normalizer.__getstate__())
    return all(part["type"] in _NORMAL_FORMS for part in told.get("normalizers", [told]))

"""Texts that follow each other become the tokens of one text, whatever the tokenizer's words are."""

from itertools import product

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from leadre import tables
from leadre.lm import fragments as room
from leadre.lm.fragments import Fragments
from leadre.lm.tokenizer import Words, plain_tokenizer, reserved_ids, train_tokenizer
from leadre.lm.vocabulary import Vocabulary

SIDS = pl.DataFrame({"ad_id": ["A"], "sid": [[0]], "name": ["<a_0>"]}, schema=tables.SIDS.schema)
CORPUS = [
    "32 days ago^play short video^Home Alone; 1234 days ago^click on ad^'s. It's we're  they'll\n\n I'd \r\n x",
    "最近的互动行为：汽车，é ö e\u0301 q\u0323\u0307 각 HELLO helloWorld 12,345.67",
    "!!! ?! ... ^Home^ (a) \t\t b", "rere sst ll ve d m T 'S 'RE",
] * 3  # fmt: skip
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
FROM_THE_RIGHT = LLAMA.replace(r"\p{N}{1,3}", r"\d{1,3}(?=(?:\d{3})*\b)")
HOSTILE = ["<|im_end|>", "<think>", "<a_51>", "</think>", "<s>"]


def _trained(pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _with_added(PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False))


def _with_added(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<|im_end|>"})
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<a_51>", special=False, normalized=False)])
    return tokenizer


def _split(pattern, *more):
    pieces = [pre_tokenizers.Split(Regex(one), behavior="isolated") for one in (*more, pattern)]
    return pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _bytes(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": True} | options)


TOKENIZERS = {
    "tiny": _with_added(train_tokenizer(CORPUS, 400)),
    "gpt2": _trained(_bytes()),
    "llama": _trained(_split(LLAMA), normalizers.NFC()),
}
OTHERS = {
    "o200k": _trained(_split(O200K)),
    "walls of digits": _trained(_split(LLAMA, r"\p{N}{1,3}", "[一-龥]+"), normalizers.Sequence([normalizers.NFKC()])),
    "space before": _trained(_bytes(add_prefix_space=True)),
    "no words": _trained(_bytes(use_regex=False)),
    "spaces go": _trained(pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), _bytes(use_regex=False)])),
    "other letters": _trained(_bytes(), normalizers.Replace("'r", "w")),
    "small letters": _trained(_bytes(), normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])),
}
FAR = {
    "digits from the right": _trained(_split(FROM_THE_RIGHT)),
    "scripts": _trained(pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts(), _bytes(use_regex=False)])),
}
EVERY = TOKENIZERS | OTHERS | FAR


FAR_RUNS = [["x 12", "22", "a"], ["漢", "é" * 5, " " * 9, " " * 9, "é"]]


def _unchecked(tokenizer):
    first = len(tokenizer)
    return Fragments(Vocabulary(tokenizer, (first,), ()), SIDS)


def _given(fragments, runs):
    """The texts of runs, and the number of the run of each."""
    texts = fragments.texts(pa.array([text for run in runs for text in run], pa.string()))
    return texts, np.repeat(np.arange(len(runs)), [len(run) for run in runs])


def _fragments(tokenizer):
    fragments = _unchecked(tokenizer)
    fragments.check(*_given(fragments, FAR_RUNS))
    return fragments


CACHES = {name: _fragments(tokenizer) for name, tokenizer in EVERY.items()}  # they grow over all examples of all tests
PLAIN = {name: plain_tokenizer(tokenizer) for name, tokenizer in EVERY.items()}


def _joined(fragments, runs):
    """The ids of runs of texts."""
    texts, numbers = _given(fragments, runs)
    joined = fragments.join(texts, numbers)
    lengths = fragments.lengths[joined]
    ids = fragments.gather(joined, lengths)
    ends = np.cumsum(np.bincount(numbers, lengths, len(runs)).astype(int))
    return [part.tolist() for part in np.split(ids, ends[:-1])] if runs else []


def _whole(name, runs):
    return [PLAIN[name].encode("".join(run), add_special_tokens=False).ids for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_text_of_four_letters_is_whole_letter_by_letter(name):
    runs = [list(text) for text in product("'reA \n1^;漢\u0301\tl", repeat=4)]
    assert _joined(_fragments(EVERY[name]), runs) == _whole(name, runs)


TRICKY = ["'", "s", "S", "r", "e", "'re", "l", "ll", " ", "  ", "\n", "\r\n", "\t", "12", "3", "3456", "٣", "^",
          "Home", "; ", ";", ".", "!", "/", "é", "e", "\u0301", "\u0323", "\u0338", "ſ", "漢", "A", "ab", "B", "ᄀ", "ᅡ",
          "ᆨ", "가",
          "\u200f", "\x00", "😀", "\u3000", "\xa0", "ﾞ", "カ", "\u0e33", "",
          "Homesteadings", " " * 12, "\n" * 10, "!" * 11, "1234567", "漢" * 10, "ABCDEFGHIJK"]  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(TRICKY + HOSTILE),
    st.text(max_size=5),
    st.lists(st.sampled_from(TRICKY), max_size=4).map("".join),
)
RUNS = st.lists(st.lists(TEXTS, min_size=1, max_size=7), max_size=4)


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=40)
@given(runs=RUNS)
@example(runs=[["12", "3456", "7"], ["'", "r", "e"], ["a\n", "  ", "\n", " b"], ["e", "\u0338", "\u0301"]])
@example(runs=[[], ["^", "Home"], [""], ["", " ", ""]])
def test_joined_texts_are_the_tokens_of_the_whole(name, runs):
    runs = [run for run in runs if run]
    assert _joined(CACHES[name], runs) == _whole(name, runs)


@pytest.mark.parametrize("name", EVERY)
def test_every_short_text_is_whole_letter_by_letter(name):
    letters = ["'", "r", "e", "A", " ", "\n", "1", "^", ";", "漢", "\u0301", "\t"]
    runs = [list(text) for text in product(letters, repeat=3)]
    assert _joined(CACHES[name], runs) == _whole(name, runs)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(runs=RUNS)
def test_no_text_becomes_a_reserved_token_however_it_is_joined(name, runs):
    runs = [run for run in runs if run]
    ids = {token for row in _joined(CACHES[name], runs) for token in row}
    assert not ids & reserved_ids(TOKENIZERS[name])
    assert max(ids, default=0) < min(reserved_ids(TOKENIZERS[name]))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_control_token_in_pieces_stays_text(name):
    runs = [["<a", "_51", ">"], ["<|im", "_end|>"], ["<th", "ink>"], ["<", "/think>"]]
    ids = {token for row in _joined(CACHES[name], runs) for token in row}
    assert not ids & reserved_ids(TOKENIZERS[name])
    assert TOKENIZERS[name]("<a_51>", add_special_tokens=False)["input_ids"][0] in reserved_ids(TOKENIZERS[name])


def test_a_word_over_two_texts_is_encoded_once_and_what_repeats_is_not_encoded_again():
    fragments = _fragments(TOKENIZERS["llama"])
    assert _joined(fragments, [["32 days ago^play short video^", "Home Alone", "; "]]) == _whole(
        "llama", [["32 days ago^play short video^Home Alone; "]]
    )
    assert "^Home Alone" in fragments._texts
    known = len(fragments.lengths)
    _joined(fragments, [["32 days ago^play short video^", "Home Alone", "; ", "32 days ago^play short video^"]] * 2)
    assert len(fragments.lengths) == known


@pytest.mark.parametrize("name", TOKENIZERS)
def test_runs_that_do_not_settle_are_encoded_whole(name, monkeypatch):
    runs = [list("1234567890"), ["a", "b"], ["; "], list("abc def^ghi")]
    for rounds in (0, 1, 2):
        monkeypatch.setattr(room, "ROUNDS", rounds)
        assert _joined(_fragments(TOKENIZERS[name]), runs) == _whole(name, runs)


def test_without_the_care_at_borders_ids_would_differ(monkeypatch):
    monkeypatch.setattr(Words, "apart", lambda *_: True)
    for name in TOKENIZERS:
        runs = [["12", "34"], ["play", " short^", "Ho", "me"], ["'", "s"]]
        assert _joined(_unchecked(TOKENIZERS[name]), runs) != _whole(name, runs)


def test_nothing_joined_is_nothing():
    assert _joined(CACHES["tiny"], []) == []


@pytest.mark.parametrize("name", FAR)
def test_a_tokenizer_that_looks_far_is_found_out_by_a_check_and_encoded_whole_from_then_on(name, caplog):
    fragments = _unchecked(EVERY[name])
    assert _joined(fragments, FAR_RUNS) != _whole(name, FAR_RUNS)
    fragments.check(*_given(fragments, [["a", "b"], *FAR_RUNS, ["a"]]))
    (told,) = caplog.messages
    assert told.startswith("the tokenizer cuts words by letters farther than 8 away, as in '")
    assert told.endswith("each distinct run of texts is encoded whole, which takes longer")
    assert _joined(fragments, FAR_RUNS) == _whole(name, FAR_RUNS)
    fragments.check(*_given(fragments, FAR_RUNS))
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_check_that_finds_nothing_changes_nothing(name, caplog):
    fragments = _unchecked(TOKENIZERS[name])
    runs = [["12", "34"], ["play", " short^", "Ho", "me"], ["play short^", "Home"], ["e", "\u0301"], ["", ""]]
    fragments.check(*_given(fragments, []))
    fragments.check(*_given(fragments, runs))
    assert fragments.checked
    assert fragments._words.known
    assert not caplog.messages
    assert _joined(fragments, runs) == _whole(name, runs)


@pytest.mark.parametrize("options", [{}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "byte_fallback": True}])
def test_a_letter_that_the_tokenizer_cannot_write_is_refused(options):
    tokenizer = Tokenizer(models.BPE({"<unk>": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")], **options))
    fragments = _unchecked(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert _joined(fragments, [["ab", "a"]]) == [[3, 1]]
    for _ in range(2):
        with pytest.raises(ValueError, match="the tokenizer cannot write the letter '漢' of a text: choose a language"):
            _joined(fragments, [["ab漢"]])


def test_letters_in_bytes_of_a_fallback_are_written():
    names = ["a", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE({name: place for place, name in enumerate(names)}, [], byte_fallback=True))
    fragments = _unchecked(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert _joined(fragments, [["a漢"]]) == [[0, *(1 + byte for byte in "漢".encode())]]

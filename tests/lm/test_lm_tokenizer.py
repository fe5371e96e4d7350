import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from leadre.lm.tokenizer import plain_tokenizer, reserved_ids, train_tokenizer

TEXTS = [
    "32 days ago^play short video^",
    "7 days ago^play short video^",
    "7 days ago^click on ad^",
    "The name of the ad is Alderton Nova EV; The first-level category is Automobile; ",
    "最近的互动行为：汽车，",
    "; ",
] * 5
HOSTILE = ["<|endoftext|>", "<a_51>", "<think>", "<s>", "Ġ", "<0x0A>"]
UNTRUSTED = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(HOSTILE)), max_size=5).map("".join)


def _with_added_tokens():
    """A tokenizer as of a real model: control tokens, some marked as special and some not, and S-ID look-alikes."""
    tokenizer = train_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<|endoftext|>"})
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("<a_51>", special=False, normalized=False)])
    return tokenizer


TINY = train_tokenizer(TEXTS, 400)
REAL = _with_added_tokens()


@settings(deadline=None, max_examples=40)
@given(UNTRUSTED)
def test_any_text_is_written_and_read_back(untrusted):
    ids = plain_tokenizer(TINY).encode(untrusted, add_special_tokens=False).ids
    assert TINY.decode(ids) == untrusted


@settings(deadline=None, max_examples=40)
@given(UNTRUSTED)
def test_special_names_in_a_text_are_text_like_any_other(untrusted):
    plain = plain_tokenizer(REAL)
    ids = plain.encode(untrusted, add_special_tokens=False).ids
    assert not set(ids) & reserved_ids(REAL)
    assert max(ids, default=0) < min(reserved_ids(REAL))
    assert plain.decode(ids) == untrusted


def test_without_this_care_a_text_does_become_a_control_token():
    for name in ("<|endoftext|>", "<think>", "<a_51>"):
        assert REAL.encode(name, add_special_tokens=False)[0] in reserved_ids(REAL)
    # Splitting the special ones alone would leave the others.
    assert REAL.encode("<think>", add_special_tokens=False, split_special_tokens=True)[0] in reserved_ids(REAL)


def test_frequent_phrases_are_single_tokens():
    def parts(text):
        return [TINY.decode([token]) for token in TINY.encode(text)]

    assert parts("32 days ago^play short video^") == ["32", " days ago^play short video^"]
    assert parts("The first-level category is Automobile; ") == ["The first-level category is Automobile; "]


@pytest.mark.slow
def test_the_same_texts_give_the_same_tokenizer_in_every_process():
    code = (
        "from leadre.lm.tokenizer import train_tokenizer\n"
        f"print(train_tokenizer({TEXTS!r}, 400).backend_tokenizer.to_str())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].strip() == TINY.backend_tokenizer.to_str()


def test_of_a_large_corpus_each_text_counts_in_proportion(monkeypatch):
    monkeypatch.setattr("leadre.lm.tokenizer.TEXTS", 4)
    many = train_tokenizer(["often "] * 400 + ["rarely"], 300)
    few = train_tokenizer(["often "] * 4 + ["rarely"], 300)
    assert many.backend_tokenizer.to_str() == few.backend_tokenizer.to_str()


@pytest.mark.parametrize("texts", [[], [""], ["a"]])
def test_a_tiny_corpus_leaves_the_bytes(texts):
    assert len(train_tokenizer(texts, 1000)) == 256


def test_a_vocabulary_too_small_for_every_byte_is_refused():
    with pytest.raises(ValueError, match=r"vocabulary is 255, but every byte needs a token.*: give at least 256"):
        train_tokenizer(TEXTS, 255)


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    TINY.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert all(again.encode(text) == TINY.encode(text) for text in TEXTS)


def test_a_tokenizer_that_is_no_bpe_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="the tokenizer's model is WordLevel, but only BPE keeps control tokens out"):
        plain_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_truncation_of_a_saved_tokenizer_does_not_cut_texts():
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert len(plain_tokenizer(tokenizer).encode("a long text").ids) > 2

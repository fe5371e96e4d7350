import functools
import itertools
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from leadre import tables
from leadre.lm import encode as stage
from leadre.lm.encode import encode, encode_pairs, encode_prompts
from leadre.lm.fragments import Fragments
from leadre.lm.model import ABOUT
from leadre.lm.tokenizer import plain_tokenizer, train_tokenizer
from leadre.lm.vocabulary import Vocabulary, load_vocabulary
from leadre.prompts.segments import ad, soft, text

SIDS = pl.DataFrame(
    {"ad_id": ["A", "B", "C"], "sid": [[0, 1], [0, 2], [3, 0]], "name": ["<a_0> <b_1>", "<a_0> <b_2>", "<a_3> <b_0>"]},
    schema=tables.SIDS.schema,
)
HOSTILE = ["<a_0>", "<a_0> <b_1>", "<|endoftext|>", "<think>", "<s>", "<Learnable Token>"]
UNTRUSTED = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from(HOSTILE), st.text("abcde", max_size=5)), max_size=4
).map("".join)


def _vocabulary(*, bos=False):
    tokenizer = train_tokenizer(["1 days ago^click on ad^", "; ", "title"] * 3, 300)
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<|endoftext|>"})
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    first = len(tokenizer)
    return Vocabulary(tokenizer, sid_offsets=(first + 2, first + 12), soft_ids=(first, first + 1))


def _merging():
    """All is one word; ``abcd`` and ``e`` are a token each, but ``abcde`` is three: ``ab``, ``c``, ``de``."""
    pairs = [("d", "e"), ("a", "b"), ("c", "d"), ("ab", "cd")]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    first = len(names)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return Vocabulary(wrapped, sid_offsets=(first + 2, first + 12), soft_ids=(first, first + 1))


def _far():
    """Digits are grouped from the right, but only where no letter follows them, which a text behind may tell."""
    pairs = [("1", "2"), ("2", "2"), ("12", "22")]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, pairs)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, pairs))
    digits = pre_tokenizers.Split(Regex(r"\p{L}+|\d{1,3}(?=(?:\d{3})*\b)|[^\p{L}\d]+"), behavior="isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    first = len(names)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return Vocabulary(wrapped, sid_offsets=(first + 2, first + 12), soft_ids=(first, first + 1))


PLAIN, WITH_BOS, MERGING, FAR = _vocabulary(), _vocabulary(bos=True), _merging(), _far()
FIRST = len(PLAIN.tokenizer)


def _pair(ad_id="C", *, head=(), lead=(), behaviors=(), tail=(), following=()):
    return {
        "user_id": "u",
        "ad_id": ad_id,
        "head": list(head),
        "lead": list(lead),
        "behaviors": [list(behavior) for behavior in behaviors],
        "tail": list(tail),
        "following": list(following),
    }


def _batch(*pairs):
    return _arrow(pl.DataFrame(list(pairs), schema=tables.PAIRS.schema))


def _arrow(frame):
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pa.RecordBatch.from_struct_array(table.to_struct_array().combine_chunks())


def _encode(*pairs, max_tokens=10_000, num_ads=1, cut=False, vocabulary=PLAIN):
    fragments = Fragments(vocabulary, SIDS)
    return encode_pairs(_batch(*pairs), fragments, max_tokens=max_tokens, num_ads=num_ads, cut=cut)


def _rows(encoded):
    return [
        list(zip(encoded.ids[begin:end].tolist(), encoded.kinds[begin:end].tolist(), strict=True))
        for begin, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)
    ]


def _reference(pair, max_tokens, vocabulary=PLAIN, num_ads=1):
    """One prompt, one run of texts at a time, dropping one behavior at a time."""
    reserved, behaviors = num_ads * len(vocabulary.sid_offsets), list(pair["behaviors"])

    def prompt():
        middle = [*pair["lead"], *itertools.chain(*behaviors)] if behaviors else []
        return [*pair["head"], *middle, *pair["tail"]]

    # Each segment by itself, then together.
    while behaviors and sum(len(_tokens([one], vocabulary)) for one in prompt()) + reserved > max_tokens:
        behaviors.pop(0)
    while behaviors and len(_tokens(prompt(), vocabulary)) + reserved > max_tokens:
        behaviors.pop(0)
    response = _tokens([ad(ad_id) for ad_id in (pair["ad_id"], *pair["following"])], vocabulary, ad_kind=2)
    return [*_tokens(prompt(), vocabulary), *response]


_plain = functools.cache(plain_tokenizer)


def _tokens(segments, vocabulary, ad_kind=1):
    plain, softs = _plain(vocabulary.tokenizer), iter(vocabulary.soft_ids)
    codes, found = dict(SIDS.select("ad_id", "sid").iter_rows()), []
    for kind, alike in itertools.groupby(segments, key=lambda segment: segment["kind"]):
        values = [segment["value"] for segment in alike]
        match kind:
            case "text":
                found += [(token, 0) for token in plain.encode("".join(values), add_special_tokens=False).ids]
            case "ad":
                found += [
                    (code + offset, ad_kind)
                    for value in values
                    for code, offset in zip(codes[value], vocabulary.sid_offsets, strict=True)
                ]
            case "soft":
                found += [(next(softs), 0) for _ in values]
    return found


def _needed(pair, vocabulary=PLAIN, num_ads=1):
    """Tokens without behaviors, each segment by itself or together, whichever is more."""
    bare = [*pair["head"], *pair["tail"]]
    apart = sum(len(_tokens([one], vocabulary)) for one in bare)
    return max(apart, len(_tokens(bare, vocabulary))) + num_ads * len(vocabulary.sid_offsets)


SEGMENTS = st.lists(st.one_of(UNTRUSTED.map(text), st.sampled_from("ABC").map(ad)), max_size=3)
FULL_SEGMENTS = st.lists(st.one_of(UNTRUSTED.map(text), st.sampled_from("ABC").map(ad)), min_size=1, max_size=3)
PAIRS = st.builds(
    lambda softs, ad_id, head, lead, behaviors, tail, following: _pair(
        ad_id, head=[*[soft()] * softs, *head], lead=lead, behaviors=behaviors, tail=tail, following=following
    ),
    st.integers(0, 2),
    st.sampled_from("ABC"),
    SEGMENTS,
    SEGMENTS,
    st.lists(FULL_SEGMENTS, max_size=4),
    SEGMENTS,
    st.lists(st.sampled_from("ABC"), max_size=2),
)


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(PAIRS, min_size=1, max_size=3),
    num_ads=st.integers(3, 4),
    spare=st.integers(0, 60),
    vocabulary=st.sampled_from([PLAIN, MERGING]),
)
def test_cached_fragments_equal_encoding_whole_runs_of_text_within_any_budget(pairs, num_ads, spare, vocabulary):
    max_tokens = max(_needed(pair, vocabulary, num_ads) for pair in pairs) + spare
    encoded = _encode(*pairs, max_tokens=max_tokens, num_ads=num_ads, vocabulary=vocabulary)
    assert _rows(encoded) == [_reference(pair, max_tokens, vocabulary, num_ads) for pair in pairs]
    assert np.diff(encoded.offsets).max() <= max_tokens


@settings(deadline=None, max_examples=40)
@given(pairs=st.lists(PAIRS, max_size=3), spare=st.integers(0, 60), bos=st.booleans())
def test_prompts_alone_are_the_prompts_of_pairs_with_one_ad(pairs, spare, bos):
    vocabulary = WITH_BOS if bos else PLAIN
    pairs = [{**pair, "following": []} for pair in pairs]
    max_tokens = max((_needed(pair) for pair in pairs), default=0) + 1 + spare
    encoded = _encode(*pairs, max_tokens=max_tokens, vocabulary=vocabulary)
    frame = pl.DataFrame(pairs, schema=tables.PAIRS.schema).select(list(tables.PROMPTS.columns))
    prompts = encode_prompts(_arrow(frame), Fragments(vocabulary, SIDS), max_tokens=max_tokens)
    assert prompts.ids.tobytes() == encoded.ids[encoded.kinds != 2].tobytes()
    assert prompts.offsets.tolist() == (encoded.offsets - 2 * np.arange(len(pairs) + 1)).tolist()
    assert [array.dtype for array in prompts] == [np.int32, np.int64]


def test_a_response_of_several_ads_is_their_sids_one_after_the_other():
    tokens = {"A": [FIRST + 2, FIRST + 13], "B": [FIRST + 2, FIRST + 14], "C": [FIRST + 5, FIRST + 12]}
    pairs = [_pair("C", following="AB"), _pair("B"), _pair("A", following="C")]
    encoded = _encode(*pairs, num_ads=3, max_tokens=6)
    assert encoded.ids.tolist() == [token for ad_id in "CABBAC" for token in tokens[ad_id]]
    assert encoded.offsets.tolist() == [0, 6, 8, 12]
    assert encoded.targets.tolist() == [2, 1, 0]
    assert set(encoded.kinds.tolist()) == {2}


def test_room_for_all_ads_is_kept_also_where_fewer_follow():
    pair = _pair(behaviors=[[text(n)] for n in "1234"], following="A")
    for num_ads, shown in ((2, "1234"), (3, "34"), (4, "")):
        encoded = _encode(pair, num_ads=num_ads, max_tokens=8)
        assert PLAIN.tokenizer.decode(encoded.ids[encoded.kinds == 0]) == shown
    with pytest.raises(ValueError, match=r"max_tokens is 8, but the prompt of row 0 needs 10 tokens"):
        _encode(pair, num_ads=5, max_tokens=8)


def test_a_response_of_more_ads_than_there_is_room_for_is_refused():
    with pytest.raises(ValueError, match=r"num_ads is 1, but the response of row 1 names 3 ads: keep room for 3"):
        _encode(_pair(), _pair(following="AB"))


@settings(deadline=None, max_examples=40)
@given(UNTRUSTED)
def test_no_text_becomes_a_reserved_token(untrusted):
    encoded = _encode(_pair(head=[text(untrusted)], behaviors=[[text(untrusted), ad("A"), text(untrusted)]]))
    of_text = encoded.ids[encoded.kinds == 0]
    assert of_text.max(initial=0) < min(PLAIN.tokenizer.added_tokens_decoder)
    assert PLAIN.tokenizer.decode(of_text) == untrusted * 3


def test_ids_kinds_and_targets_are_as_by_hand():
    pair = _pair(
        "C", head=[text("a"), soft(), soft()], lead=[text("b")], behaviors=[[ad("B"), text("c")]], tail=[text("d")]
    )
    a, b, c, d = (PLAIN.tokenizer.encode(letter)[0] for letter in "abcd")
    history, response = [FIRST + 2 + 0, FIRST + 12 + 2], [FIRST + 2 + 3, FIRST + 12 + 0]
    encoded = _encode(pair, _pair("A"))
    assert encoded.ids.tolist() == [a, FIRST, FIRST + 1, b, *history, c, d, *response, FIRST + 2, FIRST + 12 + 1]
    assert encoded.kinds.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 2, 2, 2, 2]
    assert encoded.offsets.tolist() == [0, 10, 12]
    assert encoded.targets.tolist() == [2, 0]
    assert [array.dtype for array in encoded[:4]] == [np.int32, np.uint8, np.int64, np.int32]


@pytest.mark.parametrize(("max_tokens", "kept"), [(100, 3), (11, 3), (10, 2), (8, 1), (7, 1), (6, 0), (4, 0)])
def test_the_newest_behaviors_stay_and_the_lead_goes_with_the_last(max_tokens, kept):
    # Head, tail and response take 4 tokens, the lead 1, the behaviors 2 each, by hand.
    pair = _pair(head=[text("h")], lead=[text("l")], tail=[text("t")], behaviors=[[text(n), text(";")] for n in "123"])
    encoded = _encode(pair, max_tokens=max_tokens)
    shown = "hl" + "".join(f"{n};" for n in "123"[3 - kept :]) + "t" if kept else "ht"
    assert PLAIN.tokenizer.decode(encoded.ids[encoded.kinds == 0]) == shown
    assert (encoded.dropped, encoded.cut) == (3 - kept, 0)


def test_a_prompt_that_does_not_fit_without_its_behaviors_is_refused():
    pair = _pair(head=[text("x" * 20)], behaviors=[[text("y")]], tail=[text("z")])
    with pytest.raises(ValueError, match=r"max_tokens is 20, but the prompt of row 1 needs 23 .* to at least 23"):
        _encode(_pair(), pair, max_tokens=20)


def test_of_a_long_description_the_end_is_cut_but_never_the_question():
    long = _pair(head=[soft(), text("Given "), text("x" * 50)], tail=[text("?")])
    short = _pair(head=[soft(), text("Given "), text("x")], tail=[text("?")])
    encoded = _encode(long, short, max_tokens=20, cut=True)
    begin, end = encoded.offsets[:2]
    assert end - begin == 20
    assert PLAIN.tokenizer.decode(encoded.ids[begin + 1 : end - 2]) == "Given " + "x" * 10 + "?"
    assert encoded.cut == 40
    assert _rows(encoded)[1] == _reference(short, 20)
    with pytest.raises(ValueError, match="needs 10 tokens"):
        _encode(long, max_tokens=9, cut=True)


def test_a_tokenizer_that_begins_texts_with_a_token_begins_prompts_with_it_once():
    pair = _pair(head=[text("a")], tail=[text("b")], behaviors=[[text("c")]])
    encoded = _encode(pair, vocabulary=WITH_BOS, max_tokens=6)
    bos = WITH_BOS.tokenizer.bos_token_id
    assert encoded.ids.tolist() == [bos, *(token for token, _ in _reference(pair, 5, WITH_BOS))]
    assert encoded.kinds[0] == 0
    assert PLAIN.tokenizer.bos_token_id == bos
    assert bos not in _encode(pair).ids


def test_where_texts_together_take_more_tokens_the_oldest_behaviors_go():
    pair = _pair(behaviors=[[text("abcd")], [text("abcd")], [text("e")]])
    encoded = _encode(pair, max_tokens=6, vocabulary=MERGING)
    assert MERGING.tokenizer.decode(encoded.ids[:4]) == "abcdabcde"
    assert (len(encoded.ids), encoded.dropped) == (6, 0)
    encoded = _encode(pair, max_tokens=5, vocabulary=MERGING)  # by themselves, all three would fit
    assert MERGING.tokenizer.convert_ids_to_tokens(encoded.ids[:3]) == ["ab", "c", "de"]
    assert (len(encoded.ids), encoded.dropped) == (5, 1)


def test_texts_that_only_fit_by_themselves_are_refused_or_cut():
    pair = _pair(head=[text("abcd"), text("e")])
    with pytest.raises(ValueError, match="max_tokens is 4, but the prompt of row 0 needs 5 tokens without its behav"):
        _encode(pair, max_tokens=4, vocabulary=MERGING)
    encoded = _encode(pair, max_tokens=4, vocabulary=MERGING, cut=True)
    assert MERGING.tokenizer.convert_ids_to_tokens(encoded.ids[:2]) == ["ab", "c"]
    assert (encoded.offsets.tolist(), encoded.cut) == ([0, 4], 1)


def test_a_description_that_is_cut_is_not_joined_with_the_question():
    pair = _pair(head=[text("h"), text("abcdabcd")], tail=[text("e")])
    encoded = _encode(pair, max_tokens=5, vocabulary=MERGING, cut=True)
    assert MERGING.tokenizer.convert_ids_to_tokens(encoded.ids[:3]) == ["h", "abcd", "e"]
    assert encoded.cut == 1


FAR_TEXTS = [text("x 12"), text("22"), text("a")]


def test_a_tokenizer_that_looks_far_is_found_out_by_the_first_batch_and_encoded_whole(caplog):
    pair = _pair(head=[*FAR_TEXTS, soft()], behaviors=[FAR_TEXTS, [ad("B"), *FAR_TEXTS]], tail=FAR_TEXTS[::-1])
    expected = _reference(pair, 10_000, FAR)
    fragments = Fragments(FAR, SIDS)
    fragments.checked = True
    unchecked = encode_pairs(_batch(pair), fragments, max_tokens=10_000, num_ads=1, cut=False)
    assert _rows(unchecked) != [expected]
    assert not caplog.messages
    assert _rows(_encode(pair, vocabulary=FAR)) == [expected]
    prompts = encode_prompts(_batch(pair), Fragments(FAR, SIDS), max_tokens=10_000)
    assert prompts.ids.tolist() == [token for token, kind in expected if kind != 2]
    assert [told.startswith("the tokenizer cuts words by letters farther") for told in caplog.messages] == [True, True]


def test_an_ad_outside_the_catalog_is_refused():
    with pytest.raises(ValueError, match=r"pairs hold the ad 'Z' \(and 0 more\) that the catalog does not"):
        _encode(_pair(behaviors=[[ad("Z")]]))


def test_a_model_of_another_catalog_is_refused():
    with pytest.raises(ValueError, match=r"tokens for 1 S-ID levels, but the catalog has \[2\]: make the base model"):
        Fragments(PLAIN._replace(sid_offsets=(FIRST,)), SIDS)
    with pytest.raises(ValueError, match="is an S-ID or learnable token, but also one of the"):
        Fragments(PLAIN._replace(soft_ids=(5,)), SIDS)


def test_a_tokenizer_that_cannot_keep_control_tokens_out_is_refused():
    tokenizer = train_tokenizer(["ab"] * 3, 257)
    tokenizer.add_special_tokens({"eos_token": "ab"})  # a control token that is also a word of the vocabulary
    first = len(tokenizer)
    fragments = Fragments(Vocabulary(tokenizer, (first, first + 1), ()), SIDS)
    with pytest.raises(ValueError, match="makes the control token 256 of the text 'xab'"):
        encode_pairs(_batch(_pair(head=[text("xab")])), fragments, max_tokens=50, num_ads=1, cut=False)


@pytest.fixture
def folders(tmp_path):
    base, catalog, pairs, out = (tmp_path / name for name in ("base", "catalog", "pairs", "out"))
    for folder in (base, catalog, pairs, out):
        folder.mkdir()
    PLAIN.tokenizer.save_pretrained(base)
    (base / ABOUT).write_text(json.dumps({"sid_offsets": PLAIN.sid_offsets, "soft_ids": PLAIN.soft_ids}))
    tables.write(tables.SIDS, SIDS, catalog / "sids.parquet")
    (pairs / "prompts.json").write_text(json.dumps({"max_tokens": 12, "soft_tokens": 1}))
    return base, catalog, pairs, out


def _write(pairs, folder, name):
    tables.write(tables.PAIRS, pl.DataFrame(pairs, schema=tables.PAIRS.schema), folder / f"{name}.parquet")


def test_every_file_of_pairs_becomes_a_file_of_tokens(folders, monkeypatch):
    base, catalog, pairs, out = folders
    main = [_pair(ad_id, head=[text("q"), soft()], behaviors=[[ad("A"), text(";")]] * 5) for ad_id in "CAB"]
    _write(main, pairs, "main.train")
    _write([_pair("A", head=[text("d" * 30)], tail=[text("?")])], pairs, "explicit.train")
    _write([], pairs, "main.valid")
    _write([{**main[0], "following": ["B"]}], pairs, "next_n.train")
    monkeypatch.setattr(stage, "ROWS", 2)  # more than one batch
    encode(base, catalog, pairs, out=out)
    found = load_file(out / "main.train.safetensors")
    assert found["targets"].tolist() == [2, 0, 1]
    expected = [token for pair in main for token, _ in _reference(pair, 12)]
    assert found["ids"].tolist() == expected
    assert found["offsets"].tolist() == [0, 10, 20, 30]
    assert load_file(out / "main.valid.safetensors")["offsets"].tolist() == [0]
    several = [token for token, _ in _reference({**main[0], "following": ["B"]}, 12, num_ads=2)]
    assert load_file(out / "next_n.train.safetensors")["ids"].tolist() == several
    assert json.loads((out / "encode.json").read_text()) == {
        "explicit.train": {"rows": 1, "tokens_mean": 12.0, "tokens_max": 12, "dropped_behaviors": 0, "cut_tokens": 21},
        "main.train": {"rows": 3, "tokens_mean": 10.0, "tokens_max": 10, "dropped_behaviors": 9, "cut_tokens": 0},
        "main.valid": {"rows": 0, "tokens_mean": 0.0, "tokens_max": 0, "dropped_behaviors": 0, "cut_tokens": 0},
        "next_n.train": {"rows": 1, "tokens_mean": 12.0, "tokens_max": 12, "dropped_behaviors": 3, "cut_tokens": 0},
    }


def test_all_files_are_encoded_whole_where_one_tells_that_the_tokenizer_looks_far(folders, caplog):
    base, catalog, pairs, out = folders
    FAR.tokenizer.save_pretrained(base)
    (base / ABOUT).write_text(json.dumps({"sid_offsets": FAR.sid_offsets, "soft_ids": FAR.soft_ids}))
    (pairs / "prompts.json").write_text(json.dumps({"max_tokens": 500, "soft_tokens": 1}))
    found = {"explicit.train": _pair(head=[text("x"), text("y")]), "main.train": _pair(head=FAR_TEXTS)}
    hidden = _pair("A", tail=FAR_TEXTS)
    _write([found["explicit.train"]] * stage.CHECKED + [hidden], pairs, "explicit.train")
    _write([found["main.train"]], pairs, "main.train")
    encode(base, catalog, pairs, out=out)
    assert len(caplog.messages) == 1
    ids = load_file(out / "explicit.train.safetensors")["ids"].tolist()
    last = [token for token, _ in _reference(hidden, 500, FAR)]
    assert ids[-len(last) :] == last
    assert load_file(out / "main.train.safetensors")["ids"].tolist() == [
        token for token, _ in _reference(found["main.train"], 500, FAR)
    ]


def test_a_model_with_too_few_learnable_tokens_is_refused(folders):
    base, catalog, pairs, out = folders
    (pairs / "prompts.json").write_text(json.dumps({"max_tokens": 12, "soft_tokens": 3}))
    with pytest.raises(ValueError, match=r"has 2 learnable tokens, but prompts.soft_tokens is 3: make the base model"):
        encode(base, catalog, pairs, out=out)


def test_the_vocabulary_of_a_folder_is_read_without_weights(folders):
    base, *_ = folders
    vocabulary = load_vocabulary(base)
    assert vocabulary[1:] == PLAIN[1:]
    assert vocabulary.tokenizer.encode("1 days ago^") == PLAIN.tokenizer.encode("1 days ago^")


def test_a_folder_without_token_ids_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"which has no leadre.json, so it is not a model that knows S-IDs"):
        load_vocabulary(tmp_path)

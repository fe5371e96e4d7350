"""Text that was written to do harm, from the file to the world."""

import json
import time
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.data.ad_text import MAX_CHARACTERS, cleaned, num_cut, paired_surrogates
from leadre.data.config import TablesData
from leadre.data.gather import gather

ANY_TEXT = st.text(st.characters(), max_size=40)  # unpaired surrogates too: JSON can escape them
MARKS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def world_of(root, **rows):
    """Gather a world of JSON lines; its tables by name, ``world.json`` and the refused rows."""
    root.mkdir(parents=True, exist_ok=True)
    for name, records in rows.items():
        lines = [json.dumps(record) for record in records]
        (root / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = root / "out"
    out.mkdir(exist_ok=True)
    gather(
        TablesData(kind="tables", root=str(root), language="en", end_time=None, min_ads=2, max_bad_share=1.0), out=out
    )
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    frames = {name: pl.read_parquet(out / f"{name}.parquet") for name in ("ads", "users", "contents", "behaviors")}
    return frames, json.loads((out / "world.json").read_text(encoding="utf-8")), refused


def is_safe(text):
    return (
        unicodedata.is_normalized("NFC", text)
        and not any(unicodedata.category(letter) in {"Cc", "Cs", "Zl", "Zp"} or letter in MARKS for letter in text)
        and len(text) <= MAX_CHARACTERS
    )


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), min_size=1, max_size=5))
def test_whatever_text_is_given_what_is_written_reads_back_and_is_safe(tmp_path_factory, texts):
    root = tmp_path_factory.mktemp("hostile")
    frames, _, refused = world_of(
        root,
        ads=[{"ad_id": "sound", "name": "Shoes"}]
        + [
            {"ad_id": f"a{n}", "name": name, "attributes": [other], "spu": third, "product_type": "p"}
            for n, (name, other, third) in enumerate(texts)
        ],
        users=[{"user_id": f"u{n}", "age": age, "region": region} for n, (age, region, _) in enumerate(texts)],
        contents=[{"item_id": f"c{n}", "title": a, "category": b, "spu": c} for n, (a, b, c) in enumerate(texts)],
    )
    for frame in frames.values():
        for row in frame.rows():
            flat = [each for cell in row for each in (cell if isinstance(cell, list) else [cell])]
            assert all(is_safe(cell) for cell in flat if isinstance(cell, str))
    assert frames["ads"].height + frames["contents"].height + len(refused) >= 2 * len(texts)
    halves = {
        n for n, row in enumerate(texts) if any("\ud800" <= letter <= "\udfff" for text in row for letter in text)
    }
    if not halves:
        assert not refused
        assert frames["contents"]["title"].to_list() == [
            pl.select(cleaned(pl.lit(title))).item() or None for title, _, _ in texts
        ]


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40), st.integers(1, 30))
def test_cleaning_and_counting_what_was_cut_agree(text, times):
    frame = pl.DataFrame({"text": [text * times, text]})
    once = frame.select(cleaned(pl.col("text")))
    assert once.select(cleaned(pl.col("text"))).equals(once)
    assert once.select(num_cut(pl.col("text"))).item() == 0
    whole = unicodedata.normalize("NFC", "".join(once.item(1, 0)))
    if frame.select(num_cut(pl.col("text"))).item() == 0 and times == 1:
        assert once.item(0, 0) == whole


@pytest.mark.parametrize("letter", ["x", "\u0958", "\ufb2c", "汉", "\U0001f600"])
def test_text_is_counted_as_cut_just_above_the_limit(letter):
    size = len(unicodedata.normalize("NFC", letter))
    fits = MAX_CHARACTERS // size
    frame = pl.DataFrame({"text": [letter * fits, letter * (fits + 1), "  " + letter * fits + "\n" * 600, None]})
    assert frame.select(num_cut(pl.col("text"))).item() == 1
    assert frame.select(cleaned(pl.col("text")))["text"].str.len_chars().max() <= MAX_CHARACTERS


def test_a_name_of_64_kilobytes_loses_its_end_and_is_counted(tmp_path):
    frames, world, refused = world_of(
        tmp_path,
        ads=[{"ad_id": "a", "name": "x" * 65_536, "attributes": ["y" * 600, "z"]}, {"ad_id": "b", "name": "Shoes"}],
        contents=[{"item_id": "c", "title": "t" * 513}, {"item_id": "d", "title": "t" * 512}],
    )
    assert not refused
    assert frames["ads"]["name"].str.len_chars().to_list() == [MAX_CHARACTERS, 5]
    assert frames["ads"]["attributes"].to_list() == [["y" * MAX_CHARACTERS, "z"], []]
    assert world["cut_texts"] == {"ads.name": 1, "ads.attributes": 1, "contents.title": 1}


def test_half_a_character_is_refused_and_a_whole_one_is_not(tmp_path):
    (tmp_path / "ads.jsonl").write_text(
        '{"ad_id": "a", "name": "lone\\ud800"}\n{"ad_id": "b", "name": "pair\\ud83d\\ude00"}\n'
        '{"ad_id": "c", "name": {"\\udfff": 1}}\n{"ad_id": "d", "name": "\\ude00\\ud83d"}\n'
    )
    frames, _, refused = world_of(tmp_path)
    assert frames["ads"]["name"].to_list() == ["pair😀"]
    half = "a surrogate without its partner, which is half a character"
    assert [row["reason"] for row in refused] == [half, "name holds dict where one value must stand", half]
    assert refused[0]["row"] == {"ad_id": "a", "name": "lone\ud800"}  # as JSON escapes it


@pytest.mark.parametrize("name", ["a\x00b", "a\u202eb", "a\nb", " a", "e\u0301", "x" * 513, "a\u200f"])
def test_an_id_is_not_mended_but_refused(tmp_path, name):
    frames, _, refused = world_of(
        tmp_path, ads=[{"ad_id": name, "name": "Shoes"}, {"ad_id": "ok", "name": "Boots"}], users=[{"user_id": name}]
    )
    assert frames["ads"]["ad_id"].to_list() == ["ok"]
    assert frames["users"].is_empty()
    assert {row["reason"].partition(" has ")[2][:17] for row in refused} == {"hidden characters"}


def test_a_pair_of_surrogates_is_a_character_and_half_of_one_is_none():
    assert paired_surrogates("\ud83d\ude00 汉 a") == "😀 汉 a"
    assert paired_surrogates("\ufeffa") == "\ufeffa"
    with pytest.raises(ValueError, match="a surrogate without its partner, which is half a character"):
        paired_surrogates("汉\udc00")


@pytest.mark.slow
def test_a_million_rows_are_cleaned_in_seconds():
    frame = pl.DataFrame({"text": ["buy promoted product", "caf\u0301e \x00 手机", "x" * 600, None] * 350_000})
    start = time.perf_counter()
    frame.select(cleaned(pl.col("text")), num_cut(pl.col("text")).alias("cut"))
    assert time.perf_counter() - start < 30


def test_the_tables_that_are_written_are_those_declared(tmp_path):
    world_of(tmp_path, ads=[{"ad_id": "a", "name": "\u202eShoes\x00"}])
    assert tables.read(tables.ADS, tmp_path / "out" / "ads.parquet")["name"].to_list() == ["Shoes"]

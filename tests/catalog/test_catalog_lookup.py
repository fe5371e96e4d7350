"""From S-ID to ad and back, at the command line and as LETTER's index."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from leadre import tables
from leadre.catalog import lookup
from leadre.catalog.sids import name, parse
from leadre.quantizer.imported import imported_codes

ROOT = Path(__file__).parents[2]
ACTIVE = {"d": [0, 5, 0], "ad 1": [4, 0, 0], "c": [4, 0, 2], "e": [4, 1, 0]}
RETIRED = {"b": [4, 0, 1]}


@pytest.fixture
def catalog(tmp_path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    for file, sids in (("sids.parquet", ACTIVE), ("retired.parquet", RETIRED)):
        rows = {"ad_id": list(sids), "sid": list(sids.values()), "name": [name(sid) for sid in sids.values()]}
        tables.write(tables.SIDS, pl.DataFrame(rows, schema=tables.SIDS.schema), folder / file)
    (folder / "tokens.json").write_text(json.dumps({"levels": [5, 6, 4], "tokens": []}))
    return folder


def found(catalog, query):
    return lookup.find(lookup.read(catalog), query).select("ad_id", "state").rows()


def test_every_ad_leads_to_its_sid_and_back(catalog):
    read = lookup.read(catalog)
    for ad, sid in (ACTIVE | RETIRED).items():
        row = lookup.find(read, ad)
        assert row["sid"].to_list() == [sid]
        assert lookup.find(read, row["name"][0])["ad_id"].to_list() == [ad]


def test_an_sid_is_read_as_prompts_show_it_too(catalog):
    assert found(catalog, "<a_4, b_0, c_2>") == [("c", "active")]


def test_the_beginning_of_an_sid_lists_the_ads_below_it_and_says_which_are_retired(catalog):
    assert found(catalog, "<a_4> <b_0>") == [("ad 1", "active"), ("b", "retired"), ("c", "active")]
    assert len(found(catalog, "<a_4>")) == 4


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("x", r"no ad 'x' is or was in this catalog; an S-ID is written '<a_0> <b_0> <c_0>'"),
        ("", r"no ad '' is or was in this catalog"),
        ("<", r"'<' names no code; an S-ID is written '<a_0> <b_0> <c_0>'"),
        ("<>", r"'<>' names no code"),
        ("<a_1>", r"no ad has, or ever had, an S-ID that begins with '<a_1>'"),
        ("<a_4> <b_6>", r"'b_6' is no token number 2 of an S-ID: these are <b_0> to <b_5>"),
        ("<b_0>", r"'b_0' is no token number 1 of an S-ID: these are <a_0> to <a_4>"),
        ("<a_4> <b_0> <c_0> <d_0>", r"has 4 tokens, but an S-ID of this catalog has 3"),
    ],
)
def test_what_is_not_there_is_told(catalog, query, told):
    with pytest.raises(ValueError, match=told):
        found(catalog, query)


def test_an_ad_whose_id_looks_like_an_sid_is_found_by_its_id(catalog):
    rows = tables.read(tables.SIDS, catalog / "sids.parquet")
    tables.write(tables.SIDS, rows.with_columns(ad_id=pl.col("ad_id").replace("c", "<a_4>")), catalog / "sids.parquet")
    assert found(catalog, "<a_4>") == [("<a_4>", "active")]


def test_the_command_line_shows_a_line_an_ad_with_its_name(catalog, tmp_path, capsys):
    ads = [
        {"ad_id": ad, "name": named, "attributes": [], "description": ""} for ad, named in (("c", "[b]"), ("e", None))
    ]
    frame = pl.DataFrame(ads, schema={k: v for k, v in tables.ADS.schema.items() if k in ads[0]})
    missing = [pl.lit(None, dtype).alias(k) for k, dtype in tables.ADS.schema.items() if k not in frame.columns]
    tables.write(tables.ADS, frame.with_columns(missing), tmp_path / "ads.parquet")
    lookup.main([str(catalog), "<a_4>", "--world", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == [
        "ad 1\t<a_4> <b_0> <c_0>\tactive\t",
        "b\t<a_4> <b_0> <c_1>\tretired\t",
        "c\t<a_4> <b_0> <c_2>\tactive\t[b]",
        "e\t<a_4> <b_1> <c_0>\tactive\t",
    ]


def test_the_command_line_ends_with_the_error(catalog, tmp_path):
    with pytest.raises(SystemExit, match="no ad 'nobody' is or was in this catalog"):
        lookup.main([str(catalog), "nobody"])
    with pytest.raises(SystemExit, match=r"is no catalog, it has no sids\.parquet, retired\.parquet, tokens\.json"):
        lookup.main([str(tmp_path), "c"])


def test_a_folder_that_is_not_there_is_told_and_not_traced_back(catalog, tmp_path):
    with pytest.raises(
        SystemExit, match=r"--world is .*nope, but it has no ads\.parquet: name a folder store/world/KEY"
    ):
        lookup.main([str(catalog), "c", "--world", str(tmp_path / "nope")])
    for path in (tmp_path / "nope" / "index.json", tmp_path):
        with pytest.raises(SystemExit, match=r"--export is .*, but must be a file in a folder that is there"):
            lookup.main([str(catalog), "--export", str(path)])


def test_a_question_is_asked_for(catalog, capsys):
    with pytest.raises(SystemExit, match="2"):
        lookup.main([str(catalog)])
    assert "ask for an ad_id or an S-ID, or give --export" in capsys.readouterr().err


def test_the_module_is_a_command(catalog):
    done = subprocess.run(
        [sys.executable, "-m", "leadre.catalog.lookup", str(catalog), "c"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "c\t<a_4> <b_0> <c_2>\tactive\n"


def test_the_export_is_letters_index_and_can_be_read_back(catalog, tmp_path):
    lookup.main([str(catalog), "--export", str(tmp_path / "index.json")])
    index = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert index["c"] == ["<a_4>", "<b_0>", "<c_2>"]
    assert imported_codes(tmp_path / "index.json", list(ACTIVE)) == ACTIVE
    read = lookup.read(catalog)
    assert {ad: parse("".join(tokens), read.num_codes) for ad, tokens in index.items()} == ACTIVE

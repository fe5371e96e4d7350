"""Negative feedback: rows that the source names, and impressions that were not clicked."""

import json
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.data import check
from leadre.data.check import Found, with_origin
from leadre.data.config import TablesData
from leadre.data.fingerprint import fingerprint
from leadre.data.gather import gather
from leadre.data.quarantine import EMPTY

SHOWN = ("user_id", "ad_id", "time", "clicked")
ADS, CONTENTS = "ad_id,name\na1,Shoes\na2,Boots\n", "item_id,title\nc1,A diary\n"
BEHAVIORS = "user_id,item_id,domain,action,time\nu1,a1,ad,click,100\n"
NEGATIVES = """\
user_id,item_id,domain,action,time
u2,c1,content,skip,300
u1,a2,ad,hide\u202e,200
u1,a2,ad,hide,200
u1,a9,ad,hide,200
u1,c9,content,skip,200
u1,a1,shop,skip,200
u1,a1,ad,,200
u1,a1,ad,hide,-1
u1,a1,ad,hide,9999
,a1,ad,hide,200
u1,a2,ad,no_click,150
"""
IMPRESSIONS = """\
user_id,ad_id,time,ecpm,clicked
u1,a2,150,1,false
u1,a1,100,1,true
u2,a1,120,1,false
u1,a2,110,1,
"""


@pytest.fixture
def given_tables(tmp_path):
    root = tmp_path / "given"
    root.mkdir()
    for name, text in (("ads", ADS), ("contents", CONTENTS), ("behaviors", BEHAVIORS), ("negatives", NEGATIVES)):
        (root / f"{name}.csv").write_text(text)
    (root / "impressions.csv").write_text(IMPRESSIONS)
    return root


def gathered(root, out):
    out.mkdir()
    end = "1970-01-01T00:16:40"
    gather(
        TablesData(kind="tables", root=str(root), language="en", end_time=end, min_ads=3, max_bad_share=1.0), out=out
    )
    refused = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    world = json.loads((out / "world.json").read_text())
    return tables.read(tables.NEGATIVES, out / "negatives.parquet"), world, refused


def test_negatives_are_those_of_the_table_and_the_impressions_that_were_not_clicked(given_tables, tmp_path):
    negatives, world, _ = gathered(given_tables, tmp_path / "out")
    assert negatives.rows() == [
        ("u1", "a2", "ad", "no_click", 150),  # named and shown: once
        ("u1", "a2", "ad", "hide", 200),
        ("u2", "a1", "ad", "no_click", 120),
        ("u2", "c1", "content", "skip", 300),
    ]
    assert (world["counts"]["ad_negatives"], world["counts"]["content_negatives"]) == (3, 1)


def test_negatives_are_refused_for_the_reasons_of_behaviors(given_tables, tmp_path):
    _, world, refused = gathered(given_tables, tmp_path / "out")
    assert [row["reason"] for row in refused if row["file"] == "negatives.csv"] == [
        "exact duplicate",
        "unknown ad",
        "unknown content",
        "domain is neither ad nor content",
        "no action",
        "negative time",
        "future time",
        "no user_id",
    ]
    assert world["read"]["negatives.csv"] == len(NEGATIVES.splitlines()) - 1


def test_a_user_of_negatives_alone_has_a_row_without_a_profile(given_tables, tmp_path):
    gathered(given_tables, tmp_path / "out")
    users = tables.read(tables.USERS, tmp_path / "out" / "users.parquet")
    assert users.rows() == [(user, *[None] * 6) for user in ("u1", "u2")]


def test_negatives_are_no_behaviors_and_no_targets(given_tables, tmp_path):
    gathered(given_tables, tmp_path / "out")
    assert tables.read(tables.BEHAVIORS, tmp_path / "out" / "behaviors.parquet").rows() == [
        ("u1", "a1", "ad", "click", 100)
    ]
    assert tables.read(tables.SPLIT, tmp_path / "out" / "split.parquet").rows() == [("u1", "train", "a1", 100)]


def test_the_table_is_there_without_any_negative(given_tables, tmp_path):
    (given_tables / "negatives.csv").unlink()
    (given_tables / "impressions.csv").unlink()
    negatives, world, _ = gathered(given_tables, tmp_path / "out")
    assert negatives.is_empty()
    assert world["counts"]["ad_negatives"] == 0


def test_the_table_is_part_of_the_fingerprint(given_tables):
    config = TablesData(
        kind="tables", root=str(given_tables), language="en", end_time=None, min_ads=3, max_bad_share=1.0
    )
    before = fingerprint(config)
    (given_tables / "negatives.csv").write_text(NEGATIVES + "u2,a1,ad,hide,400\n")
    assert fingerprint(config) != before


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("ab"), st.integers(0, 5), st.sampled_from((0, 1, None)))),
    st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("ab"), st.integers(0, 5)), unique=True),
)
def test_negatives_equal_a_plain_loop_over_impressions_and_named_rows(shown, hidden):
    impressions = pl.DataFrame(
        [(user, ad, time, None if clicked is None else bool(clicked)) for user, ad, time, clicked in shown],
        schema=dict.fromkeys(SHOWN, pl.String) | {"time": pl.Int64, "clicked": pl.Boolean},
        orient="row",
    )
    named = [(user, ad, "ad", "no_click", time) for user, ad, time in hidden]
    expected = named + [
        row
        for user, ad, time, clicked in shown
        if clicked == 0 and (row := (user, ad, "ad", "no_click", time)) not in named
    ]
    found = check.check(_found(impressions, named), distinct=False).negatives
    assert Counter(found.rows()) == Counter(expected)
    assert found.equals(found.sort("user_id", "time", maintain_order=True))


def _found(impressions, named):
    ads = pl.DataFrame({"ad_id": ["a", "b"], "name": ["A", "B"], "attributes": [[], []]}, strict=False)
    ads = ads.with_columns(
        pl.lit(None, dtype=column.dtype).alias(name)
        for name, column in check.ADS.columns.items()
        if name not in ads.columns
    )
    users = pl.DataFrame({"user_id": ["u", "v"]}).with_columns(
        pl.lit(None, dtype=pl.String).alias(name) for name in tables.USERS.columns if name != "user_id"
    )
    negatives = pl.DataFrame(named, schema=tables.NEGATIVES.schema, orient="row")
    priced = impressions.with_columns(ecpm=pl.lit(1.0), pctr=pl.lit(None, dtype=pl.Float64))
    return Found(
        ads=with_origin(ads.cast(check.ADS.schema), "ads"),
        users=with_origin(users, "users"),
        contents=check.empty(tables.CONTENTS),
        behaviors=check.empty(tables.BEHAVIORS),
        impressions=with_origin(priced.select(list(tables.IMPRESSIONS.columns)), "impressions"),
        negatives=with_origin(negatives, "negatives"),
        refused=EMPTY,
        totals={},
    )

import json
import random

import polars as pl
import pytest

from leadre import tables
from leadre.prompts import audience as stage
from leadre.prompts.audience import compose_audience
from leadre.prompts.compose import compose

DAY = 86_400
NOW = 1_700_000_000


@pytest.fixture
def folders(write):
    """One user of each kind: with both, with behaviors alone, with a profile alone, with neither, and too long gone."""
    return write(
        ads={"A": ("cars", "Ad A"), "B": ("tea", "Ad B"), "new": ("tea", "Ad of today")},
        sids={"A": (0, 1), "B": (1, 0)},
        contents=[("c", "a review", "tea", None)],
        users=[
            {"user_id": "told", "gender": "male"},
            {"user_id": "both", "gender": "male"},
            {"user_id": "silent"},
            {"user_id": "gone"},
        ],
        behaviors=[
            ("both", "A", "ad", "click", NOW - 40 * DAY),
            ("both", "new", "ad", "click", NOW - 3 * DAY),
            ("both", "B", "ad", "click", NOW),
            ("did", "c", "content", "search", NOW - 2 * DAY),
            ("gone", "A", "ad", "click", NOW - 300 * DAY),
        ],
        split=[("both", "test", "B", NOW)],
    )


def _random_world(write, seed):
    """A dozen users with a few dozen behaviors each, some at one time; every user's last ad is the test target."""
    draw = random.Random(seed)
    names, contents = [f"ad{i}" for i in range(6)], [f"c{i}" for i in range(6)]
    behaviors, split = [], []
    for user in range(12):
        times = sorted(draw.randrange(0, 200) * DAY // 2 + NOW for _ in range(draw.randrange(3, 30)))
        did = [
            (f"u{user}", *draw.choice([(draw.choice(names), "ad"), (draw.choice(contents), "content")]), "click", time)
            for time in times
        ]
        behaviors += did
        asked = [(item, time) for _, item, domain, _, time in did if domain == "ad" and item != "ad5"]
        split += [(f"u{user}", "test", *asked[-1])] if asked else []
    negatives = [
        (f"u{draw.randrange(14)}", *draw.choice([("ad1", "ad"), ("ad2", "ad"), ("c3", "content")]), "no", time)
        for time in [*(draw.randrange(NOW, NOW + 100 * DAY) for _ in range(300)), *(row[4] for row in behaviors[::3])]
    ]
    return write(
        negatives=negatives,
        ads={name: (draw.choice(["cars", "tea", None]), f"description of {name}", f"SPU {name}") for name in names},
        sids={name: (i, 0) for i, name in enumerate(names[:5])},  # ad5 has no S-ID
        contents=[(item, f"title of {item}", draw.choice(["cars", "tea"]), None) for item in contents],
        users=[{"user_id": f"u{user}", "age": draw.choice([None, "22"])} for user in range(12)],
        behaviors=behaviors,
        split=split,
    )


def _made(folders, config, *, as_of=None, **changes):
    for path in folders.out.glob("prompts-*"):
        path.unlink()
    compose_audience(config(**changes), folders.world, folders.catalog, out=folders.out, as_of=as_of)
    parts = sorted(folders.out.glob("prompts-*.parquet"))
    return pl.concat(tables.read(tables.PROMPTS, part) for part in parts)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"window_days": 20, "arrangement": ("behaviors", "summary", "profile"), "max_content_behaviors": 2},
        {"summary_by": ("spu", "category"), "summary_negatives": True, "window_days": 30},
        {"times": "since_last", "arrangement": ("profile", "behaviors", "summary"), "summary_negatives": True},
        {"template_seed": 0, "profile_seed": 0, "reuse_every": 2, "reuse_seed": 0},
    ],
)
def test_at_the_time_of_a_test_target_the_prompt_is_the_test_prompt(write, config, seed, changes):
    folders = _random_world(write, seed)
    compose(config(**changes), folders.world, folders.catalog, out=folders.out)
    pairs = folders.pairs("main.test")
    times = tables.read(tables.SPLIT, folders.world / "split.parquet").sort("time")
    compared = 0
    for user, time in times.select("user_id", "time").iter_rows():
        if time == times["time"].min():
            continue  # nobody has a behavior before the first
        prompts = _made(folders, config, as_of=time, **changes).filter(pl.col("user_id") == user)
        expected = pairs.filter(pl.col("user_id") == user).select(list(tables.PROMPTS.columns))
        if prompts.is_empty():  # neither profile nor behavior: a test target has a prompt all the same
            assert expected["behaviors"].list.len().item() == 0
            continue
        assert prompts.to_dicts() == expected.to_dicts()
        compared += 1
    assert compared >= 6


def test_every_user_with_a_behavior_in_the_window_or_a_profile_has_one_prompt(folders, config):
    prompts = _made(folders, config)
    assert sorted(prompts["user_id"]) == ["both", "did", "told"]
    assert folders.about()["audience"] == {"users": 3, "without_behavior": 1, "left_out": 2}
    shown = dict(zip(prompts["user_id"], prompts["behaviors"].list.len(), strict=True))
    assert shown == {"both": 3, "did": 1, "told": 0}


def test_only_behaviors_strictly_before_the_time_are_seen(folders, config):
    lengths = {}
    for as_of in (NOW - 3 * DAY, NOW - 3 * DAY + 1, NOW, NOW + 1, None):
        prompts = _made(folders, config, as_of=as_of).filter(pl.col("user_id") == "both")
        lengths[as_of] = prompts["behaviors"].list.len().item()
    assert lengths == {NOW - 3 * DAY: 1, NOW - 3 * DAY + 1: 2, NOW: 2, NOW + 1: 3, None: 3}
    assert folders.about()["as_of"] == NOW + 1


def test_an_ad_that_the_catalog_does_not_hold_is_shown_by_its_description(folders, config):
    (prompt,) = _made(folders, config).filter(pl.col("user_id") == "both").to_dicts()
    assert [behavior[1] for behavior in prompt["behaviors"]] == [
        {"kind": "ad", "value": "A"},
        {"kind": "text", "value": "Ad of today"},
        {"kind": "ad", "value": "B"},
    ]


@pytest.mark.parametrize(("part", "rows"), [(1, 1), (2, 1), (5, 2), (100, 3)])
def test_many_small_parts_hold_the_same_prompts_in_the_order_of_the_users(write, config, monkeypatch, part, rows):
    folders = _random_world(write, seed=0)
    counted = {"summary_negatives": True}
    whole = _made(folders, config, **counted)
    monkeypatch.setattr(stage, "PART_USERS", part)
    monkeypatch.setattr(stage, "ROWS", rows)
    monkeypatch.setattr(stage, "BEHAVIORS", 3 * rows)
    assert _made(folders, config, **counted).to_dicts() == whole.to_dicts()
    assert whole["user_id"].is_sorted()
    names = [f"prompts-{number:07d}.parquet" for number in range(-(-12 // part))]
    assert sorted(path.name for path in folders.out.glob("prompts-*.parquet")) == names


def test_a_sample_of_the_users_is_enough_to_cut_them(write, config, monkeypatch):
    folders = _random_world(write, seed=0)
    whole = _made(folders, config)
    monkeypatch.setattr(stage, "PART_USERS", 4)
    monkeypatch.setattr(stage, "SAMPLE", 6)
    assert _made(folders, config).to_dicts() == whole.to_dicts()
    sizes = [tables.read(tables.PROMPTS, path).height for path in folders.out.glob("prompts-*.parquet")]
    assert len(sizes) == 3
    assert max(sizes) <= 8


def test_prompts_json_is_that_of_the_pairs_and_tells_the_time_and_the_users(folders, config):
    compose(config(), folders.world, folders.catalog, out=folders.out)
    pairs = folders.about()
    _made(folders, config, as_of=NOW)
    audience = folders.about()
    assert audience.keys() - pairs.keys() == {"as_of", "audience"}
    assert pairs.keys() - audience.keys() == {"pairs", "next_n"}  # what responses hold is none of an audience's
    shared = pairs.keys() & audience.keys()
    assert {name: audience[name] for name in shared} == {name: pairs[name] for name in shared}


@pytest.mark.parametrize("as_of", [0, NOW - 300 * DAY, NOW * 1000])
def test_a_time_that_no_behavior_lies_before_is_refused(folders, config, as_of):
    ends = rf"from {NOW - 300 * DAY} to {NOW}: give UTC seconds from {NOW - 300 * DAY + 1} to {NOW + 90 * DAY}, or "
    told = rf"as_of is {as_of}, but no behavior lies in the 90 days before it, and the behaviors reach {ends}"
    with pytest.raises(ValueError, match=told):
        _made(folders, config, as_of=as_of)


def test_the_times_that_the_refusal_names_are_the_first_and_the_last_that_pass(folders, config):
    for as_of in (NOW - 300 * DAY + 1, NOW + 90 * DAY):
        assert _made(folders, config, as_of=as_of).height > 0
    for as_of in (NOW - 300 * DAY, NOW + 90 * DAY + 1):
        with pytest.raises(ValueError, match=rf"as_of is {as_of}, but"):
            _made(folders, config, as_of=as_of)


def test_a_world_without_behaviors_is_refused(write, config):
    folders = write(ads={"A": (None, "Ad A")}, sids={"A": (0,)}, behaviors=[], split=[])
    with pytest.raises(ValueError, match=r"behaviors\.parquet has no row: lists are made from what users did"):
        _made(folders, config)


def test_an_audience_with_a_behavior_of_an_unknown_item_is_refused(write, config):
    folders = write(
        ads={"A": (None, "Ad A")}, sids={"A": (0,)}, behaviors=[("u", "x", "content", "read", NOW)], split=[]
    )
    with pytest.raises(ValueError, match=r"behaviors\.parquet names 1 items, such as 'x', that"):
        _made(folders, config)


def test_an_ad_of_the_catalog_that_runs_no_more_is_no_fault(write, config):
    folders = write(
        ads={"A": (None, "Ad A")},
        sids={"A": (0,), "yesterday's": (1,)},
        behaviors=[("u", "A", "ad", "click", NOW)],
        split=[],
    )
    assert _made(folders, config)["user_id"].to_list() == ["u"]
    assert json.loads((folders.out / "prompts.json").read_text())["audience"]["users"] == 1


def test_an_audience_whose_world_has_no_negatives_is_refused_where_they_are_counted(folders, config):
    with pytest.raises(ValueError, match=r"summary_negatives is true, but the world has no negatives\.parquet"):
        _made(folders, config, summary_negatives=True)


def test_a_user_with_negatives_alone_is_left_out(write, config):
    folders = write(
        ads={"A": ("tea", "Ad A")},
        sids={"A": (0,)},
        users=[{"user_id": "shown"}, {"user_id": "u"}],
        behaviors=[("u", "A", "ad", "click", NOW)],
        negatives=[("shown", "A", "ad", "no_click", NOW)],
        split=[],
    )
    assert _made(folders, config, summary_negatives=True)["user_id"].to_list() == ["u"]
    assert folders.about()["audience"] == {"users": 1, "without_behavior": 0, "left_out": 1}

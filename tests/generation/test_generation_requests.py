"""Filters on disk: what each user may be shown, and lists that keep to it."""

import json

import polars as pl
import pytest
import torch

from leadre import tables
from leadre.catalog import trie as tries
from leadre.generation import shards
from leadre.generation.generate import generate_audience
from leadre.generation.requests import filter_of, fingerprint, not_running, read_rules, requests_of


@pytest.fixture
def rules(tiny, tmp_path):
    """Write filters and read them."""
    folder = tmp_path / "filters"
    folder.mkdir()
    trie = tries.build(torch.tensor(tiny.sids))

    def write(closed=(), **given):
        for name, rows in given.items():
            table = getattr(tables, name.upper())
            tables.write(table, pl.DataFrame(rows, schema=table.schema, orient="row"), folder / f"{name}.parquet")
        return read_rules(folder, pl.Series(tiny.ads), trie, pl.Series(closed, dtype=pl.String()))

    write.folder, write.trie = folder, trie
    return write


@pytest.fixture
def listed(tiny, rules, compute):
    """Lists of all users as long as the catalog, under filters."""

    def make(*, filters=True, **changes):
        settings = {"num_ads": 6, "filters": str(rules.folder) if filters else None} | changes
        generate_audience(tiny.config(**settings), *tiny.inputs, out=tiny.out, compute=compute)
        lists = tables.read(tables.LISTS, tiny.out / "lists")
        return {user: lists.filter(user_id=user)["ad_id"].to_list() for user in tiny.users}

    return make


def test_lists_are_those_without_filters_less_what_may_not_be_shown(tiny, rules, listed):
    free = listed(filters=False)
    rules(
        taken_down=[("ad1",), ("never indexed",)],
        seen=[("u00", "ad0"), ("u00", "ad0"), ("u00", "ad5"), ("u04", "ad1"), ("stranger", "ad2"), ("u09", "gone")],
        ad_sets=[("shoes", "ad0"), ("shoes", "ad1"), ("shoes", "ad3"), ("tea", "ad5"), ("tea", "gone")],
        user_sets=[("u00", "shoes"), ("u02", "tea"), ("u03", "shoes"), ("stranger", "tea")],
    )
    sets = {"u00": {"ad3"}, "u02": {"ad5"}, "u03": {"ad0", "ad3"}}
    everything = set(tiny.ads) - {"ad1"}
    expected = {user: [ad for ad in ads if ad in sets.get(user, everything)] for user, ads in free.items()}
    assert listed() == expected
    assert listed(shard_users=10, tokens_per_batch=1000) == expected
    told = json.loads((tiny.out / "generation.json").read_text())
    assert (told["users_without_list"], told["listed_ads"]) == (0, sum(map(len, expected.values())))


def test_a_narrow_beam_still_finds_as_many_ads_as_it_is_wide(tiny, rules, listed):
    rules(taken_down=[("ad0",), ("ad1",), ("ad2",)], seen=[("u01", "ad3"), ("u01", "ad4")])
    found = listed(beam_width=2, num_ads=2)
    assert found.pop("u01") == ["ad5"]
    assert {len(ads) for ads in found.values()} == {2}


def test_a_user_who_has_seen_everything_has_no_list_and_is_counted(tiny, rules, listed, caplog):
    rules(seen=[("u05", ad) for ad in tiny.ads])
    assert listed()["u05"] == []
    assert json.loads((tiny.out / "generation.json").read_text())["users_without_list"] == 1
    assert "1 users have no list: no ad may be shown to them" in caplog.text


def test_filters_hold_for_several_ads_a_beam(rules, listed):
    rules(taken_down=[("ad0",)], seen=[("u01", "ad3")])
    found = listed(next_n=2, beam_width=30)
    assert sorted(found["u01"]) == ["ad1", "ad2", "ad4", "ad5"]
    assert sorted(found["u02"]) == ["ad1", "ad2", "ad3", "ad4", "ad5"]


def test_parts_made_under_other_filters_are_not_reused(rules, listed, caplog):
    rules(taken_down=[("ad0",)])
    listed()
    rules(taken_down=[("ad1",)])
    assert all("ad1" not in ads and "ad0" in ads for ads in listed().values())
    assert "parts of another plan are removed (other filters)" in caplog.text


def test_the_requests_of_users_are_read_in_their_order(rules):
    found = rules(
        seen=[("c", "ad5"), ("a", "ad2"), ("c", "ad1"), ("b", "gone"), ("c", "ad5")],
        ad_sets=[("y", "ad0"), ("x", "ad1"), ("unused", "ad3")],
        user_sets=[("b", "y"), ("d", "x")],
    )
    assert found.sets.rows() == [("x", 1), ("y", 2)]  # a set that no user has takes no room
    requests = requests_of(found, pl.Series(["c", "a", "b"]))
    assert requests.groups.tolist() == [0, 0, 2]
    assert requests.seen.tolist() == [1, 5, 2]
    assert requests.offsets.tolist() == [0, 2, 3, 3]
    allowed = filter_of(found, requests, [2, 0], rules.trie)
    assert allowed.groups.tolist() == [2, 0]
    assert allowed.seen.tolist() == [[-1, -1], [1, 5]]


def test_nobody_asks_for_nothing(rules):
    requests = requests_of(rules(seen=[("c", "ad5")]), pl.Series([], dtype=pl.String()))
    assert (requests.groups.tolist(), requests.offsets.tolist()) == ([], [0])


def test_ads_that_the_catalog_does_not_hold_are_counted(rules, caplog):
    with caplog.at_level("INFO"):
        rules(taken_down=[("ad0",), ("gone",), ("too",)], ad_sets=[("x", "ad0"), ("x", "gone")])
    assert "2 of 3 rows of taken_down name an ad that the catalog does not hold" in caplog.text
    assert "1 of 2 rows of ad_sets name an ad that the catalog does not hold" in caplog.text
    assert "5 of 6 ads may be shown, 0 allowed sets" in caplog.text


def test_a_set_whose_ads_are_all_taken_down_is_warned_of(rules, caplog):
    rules(taken_down=[("ad0",)], ad_sets=[("x", "ad0")], user_sets=[("u", "x")])
    assert "every ad of the set 'x' is taken down or does not run: its users get no list" in caplog.text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"holds none of taken_down\.parquet, seen\.parquet, .*: give a folder with one of them, or null"),
        ({"prompts": []}, r"holds prompts\.parquet: a filter is one of taken_down\.parquet, seen"),
        ({"user_sets": [("u", "x")]}, r"has user_sets\.parquet, but no ad_sets\.parquet: it tells which ads a set has"),
        (
            {"ad_sets": [("x", "ad0")], "user_sets": [("u", "x"), ("v", "y"), ("w", "z")]},
            r"user_sets\.parquet names the set 'y' \(one of 2\), which ad_sets\.parquet does not have: add its ads",
        ),
        (
            {"ad_sets": [("x", "gone"), ("y", "ad1")]},
            r"ad_sets\.parquet has the set 'x' \(one of 1\) without an ad of the catalog: .*; leave the set out or add",
        ),
        ({"taken_down": [(f"ad{row}",) for row in range(6)]}, "takes down all 6 ads that run: nothing is left to show"),
    ],
)
def test_filters_that_cannot_be_meant_are_refused(rules, given, told):
    with pytest.raises(ValueError, match=told):
        rules(**given)


def test_a_user_with_two_allowed_sets_is_refused(rules):
    found = rules(ad_sets=[("x", "ad0"), ("y", "ad1")], user_sets=[("u", "x"), ("u", "y")])
    with pytest.raises(ValueError, match=r"user_sets\.parquet has the user 'u' twice: .*; join the two into one"):
        requests_of(found, pl.Series(["u"]))
    assert requests_of(found, pl.Series(["v"])).groups.tolist() == [0]


def test_tables_of_users_that_are_not_as_declared_are_refused(rules):
    found = rules(taken_down=[("ad0",)])
    pl.DataFrame({"user_id": ["u"], "ad_id": [3]}).write_parquet(rules.folder / "seen.parquet")
    with pytest.raises(tables.TableError, match=r"seen\.parquet is no seen table: column 'ad_id' is Int64"):
        requests_of(found, pl.Series(["u"]))


@pytest.mark.parametrize("row", [("stranger", None), (None, "ad0")])
def test_a_null_is_refused_even_in_a_row_of_no_user_of_the_prompts(rules, row):
    pl.DataFrame([row], schema=tables.SEEN.schema, orient="row").write_parquet(rules.folder / "seen.parquet")
    with pytest.raises(
        tables.TableError, match=r"seen\.parquet is no seen table: column '.*' has 1 nulls, may have none"
    ):
        rules()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("seen.csv", r"holds seen\.csv: filters are Parquet alone; write it as seen\.parquet"),
        ("notes.txt", r"holds notes\.txt: a filter is one of taken_down\.parquet, seen\.parquet"),
    ],
)
def test_nothing_in_the_folder_is_passed_over_without_a_word(rules, name, told):
    (rules.folder / "_SUCCESS").write_text("")
    (rules.folder / ".hidden").write_text("")
    rules(taken_down=[("ad0",)])
    before = fingerprint(rules.folder)
    (rules.folder / "_SUCCESS").write_text("of tomorrow")
    assert fingerprint(rules.folder) == before
    (rules.folder / name).write_text("")
    with pytest.raises(ValueError, match=told):
        rules()
    with pytest.raises(ValueError, match=told):
        fingerprint(rules.folder)


def test_other_tables_have_another_fingerprint(rules):
    rules(taken_down=[("ad0",)])
    before = fingerprint(rules.folder)
    rules(taken_down=[("ad1",)])
    assert fingerprint(rules.folder) != before


def test_users_with_filters_are_counted_over_all_parts(tiny, rules, listed, caplog):
    rules(
        seen=[("u00", "ad0"), ("u00", "ad1"), ("u09", "gone"), ("stranger", "ad2")],
        ad_sets=[("tea", "ad5")],
        user_sets=[("u000", "tea")],
    )
    listed()
    told = json.loads((tiny.out / "generation.json").read_text())
    assert (told["users_with_seen"], told["users_with_set"]) == (2, 0)
    assert "users_with_set is 0: no user of the prompts is in this table" in caplog.text
    assert "users_with_seen is 0" not in caplog.text


def test_filters_that_change_under_way_are_refused(rules, listed, monkeypatch):
    rules(taken_down=[("ad0",)])
    wait = shards.wait
    monkeypatch.setattr(shards, "wait", lambda *a, **k: (rules(taken_down=[("ad1",)]), wait(*a, **k))[1])
    with pytest.raises(ValueError, match=r"decoding\.filters changed while lists were made: give each day a folder"):
        listed()


@pytest.fixture
def world(tmp_path):
    """Today's ads; each row is an id, a start and an end."""
    folder = tmp_path / "world"
    folder.mkdir()

    def write(*rows):
        frame = pl.DataFrame(rows, schema=["ad_id", "start_time", "end_time"], orient="row")
        gaps = [
            pl.lit(None, dtype).alias(name) for name, dtype in tables.ADS.schema.items() if name not in frame.columns
        ]
        whole = frame.with_columns(gaps).with_columns(
            attributes=pl.lit([], pl.List(pl.String())), description=pl.lit("")
        )
        whole = whole.cast(dict(tables.ADS.schema))
        tables.write(tables.ADS, whole.select(list(tables.ADS.columns)), folder / "ads.parquet")
        return folder

    return write


DAY = [
    ("ad0", None, None),
    ("ad1", 100, None),
    ("ad2", None, 100),
    ("ad3", 101, None),
    ("ad4", 50, 101),
    ("new", None, None),
]


def test_an_ad_runs_from_its_start_to_just_before_its_end(tiny, world):
    assert not_running(pl.Series(tiny.ads), world(*DAY), 100).to_list() == ["ad2", "ad3", "ad5"]


@pytest.mark.parametrize("filters", [False, True])
def test_ads_that_do_not_run_are_listed_for_nobody_and_counted(tiny, rules, world, compute, caplog, filters):
    rules(taken_down=[("ad0",)])
    about = json.loads((tiny.audience / "prompts.json").read_text())
    (tiny.audience / "prompts.json").write_text(json.dumps(about | {"as_of": 100}))
    config = tiny.config(num_ads=6, filters=str(rules.folder) if filters else None)
    with caplog.at_level("INFO"):
        generate_audience(config, *tiny.inputs, world(*DAY), out=tiny.out, compute=compute)
    lists = tables.read(tables.LISTS, tiny.out / "lists")
    for _, own in lists.group_by("user_id"):
        assert sorted(own["ad_id"]) == (["ad1", "ad4"] if filters else ["ad0", "ad1", "ad4"])
    assert json.loads((tiny.out / "generation.json").read_text())["ads_not_running"] == 3
    assert "3 of 6 ads of the catalog do not run at 100: nobody is shown them" in caplog.text


def test_a_platform_that_runs_none_of_the_ads_is_refused(tiny, world):
    with pytest.raises(
        ValueError, match=r"none of the catalog's 6 ads runs at as_of 100: give the tables .*, or train anew"
    ):
        not_running(pl.Series(tiny.ads), world(("new", None, None)), 100)

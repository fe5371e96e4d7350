import json
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.data.split import leave_one_out
from leadre.prompts import compose as stage
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.following import following, shuffled

DAY = 86_400
NOW = 1_700_000_000
LOGS = st.lists(st.text("ABCD", max_size=9), max_size=5)


def _targets(*ads_of_users):
    rows = [{"user_id": f"u{n}", "ad_id": ad_id} for n, ads in enumerate(ads_of_users) for ad_id in ads]
    return pl.DataFrame(rows, schema={"user_id": pl.String, "ad_id": pl.String})


def _named(lists):
    return ["".join(ads) for ads in lists.to_list()]


def test_what_follows_a_target_is_as_by_hand():
    targets = _targets("ABABC", "C", "DDA")
    assert _named(following(targets, ads=1)) == ["B", "A", "B", "C", "", "", "A", "A", ""]
    assert _named(following(targets, ads=3)) == ["BC", "AC", "BC", "C", "", "", "A", "A", ""]


@given(LOGS, st.integers(1, 4))
def test_what_follows_equals_a_plain_loop_over_the_users_later_ads(logs, ads):
    expected = []
    for log in logs:
        for place, ad_id in enumerate(log):
            later = dict.fromkeys(log[place + 1 :])  # a set that keeps its order
            later.pop(ad_id, None)
            expected.append("".join(later)[:ads])
    assert _named(following(_targets(*logs), ads=ads)) == expected


@settings(deadline=None)
@given(st.lists(st.text("ABCDEF", min_size=3, max_size=3), min_size=4, max_size=8), st.integers(0, 5))
def test_a_shuffled_list_is_another_users_without_the_target(logs, seed):
    targets = _targets(*logs)
    named = [f"{user}-{place}" for user in range(len(logs)) for place in range(3)]
    given_lists = pl.Series([[name] if name[-1] != "2" else [] for name in named], dtype=pl.List(pl.String))
    found = shuffled(targets, given_lists, seed=seed).to_list()
    handed = [ads[0] for ads in found if ads]
    assert sorted(handed) == sorted(name for name in named if name[-1] != "2")
    assert all(not ads or ads[0][0] != name[0] for ads, name in zip(found, named, strict=True))
    assert [bool(ads) for ads in found] == [name[-1] != "2" for name in named]
    assert shuffled(targets, given_lists, seed=seed).to_list() == found


def test_a_target_leaves_the_list_it_is_handed_and_the_order_stays():
    targets = _targets("A", "B")
    lists = pl.Series([["C", "B", "D"], ["A", "E"]])
    assert _named(shuffled(targets, lists, seed=0)) == ["E", "CD"]
    assert _named(shuffled(targets, pl.Series([["C"], ["A"]]), seed=0)) == ["", "C"]


def test_following_ads_are_counted(folders, config):
    several, control = _composed(folders, config, "next_n.train", "next_n_control.train", next_n_control=0)
    counts = folders.about()["pairs"]
    assert counts["train"]["next_n_following"] == several["following"].list.len().sum() > 0
    assert counts["train"]["next_n_control_following"] == control["following"].list.len().sum() > 0
    assert counts["test"].keys() == {"pairs", "ad_not_in_catalog", "without_history"}


def test_seed_zero_is_a_seed_and_another_seed_shuffles_otherwise():
    targets = _targets(*["A"] * 30)
    lists = pl.Series([[f"x{n}"] for n in range(30)])
    zero, one = (shuffled(targets, lists, seed=seed).to_list() for seed in (0, 1))
    assert zero != one
    assert zero == shuffled(targets, lists, seed=0).to_list()


def test_lists_that_one_user_has_too_many_of_cannot_be_shuffled():
    targets = _targets("ABC", "D")
    lists = pl.Series([["X"], ["Y"], [], ["Z"]])
    with pytest.raises(ValueError, match=r"one user has 2 of the 3 responses .* set prompts\.next_n_control to null"):
        shuffled(targets, lists, seed=0)


@pytest.fixture
def folders(write):
    """Nine users, u0 with four ads and each next one with one more; an ad is named after its user and day."""
    behaviors = [
        (f"u{user}", f"{user}-{day}", "ad", "click", NOW + day * DAY) for user in range(9) for day in range(4 + user)
    ]
    return write(
        ads={ad_id: (None, ad_id) for _, ad_id, *_ in behaviors},
        sids={ad_id: (n,) for n, (_, ad_id, *_) in enumerate(behaviors)},
        behaviors=behaviors,
        split=_split(behaviors).rows(),
    )


def _split(behaviors):
    return leave_one_out(pl.DataFrame(behaviors, schema=list(tables.BEHAVIORS.columns), orient="row"), min_ads=3)


def _composed(folders, config, *names, **changes):
    compose(config(next_n=3, **changes), folders.world, folders.catalog, out=folders.out)
    return [folders.pairs(name) for name in names]


def test_no_ad_of_a_response_is_held_out_or_stands_before_its_target(folders, config):
    """The whole-data scan, by the names of the ads: user and day."""
    several, control = _composed(folders, config, "next_n.train", "next_n_control.train", next_n_control=0)
    split = tables.read(tables.SPLIT, folders.world / "split.parquet")
    held_out = set(split.filter(pl.col("role") != "train")["ad_id"])
    valid_day = {f"u{user}": 4 + user - 2 for user in range(9)}
    pairs = several.to_dicts()
    assert len(pairs) == sum(user + 1 for user in range(9))  # the train targets but the first of each user
    for pair in pairs:
        response = [pair["ad_id"], *pair["following"]]
        days = [int(ad_id.split("-")[1]) for ad_id in response]
        assert {f"u{ad_id.split('-')[0]}" for ad_id in response} == {pair["user_id"]}
        assert days == list(range(days[0], min(days[0] + 3, valid_day[pair["user_id"]])))
        assert not held_out & set(response)
        shown = [segment["value"] for one in pair["behaviors"] for segment in one if segment["kind"] == "ad"]
        assert shown == [f"{response[0].split('-')[0]}-{day}" for day in range(days[0])]
    handed = [(pair["user_id"], ad_id) for pair in control.to_dicts() for ad_id in pair["following"]]
    assert all(f"u{ad_id.split('-')[0]}" != user for user, ad_id in handed)
    assert not held_out & {ad_id for _, ad_id in handed}


def test_the_prompts_and_first_ads_are_those_of_the_main_task_however_chunked(folders, config, monkeypatch):
    names = ("main.train", "next_n.train", "next_n_control.train")
    main, several, control = _composed(folders, config, *names, next_n_control=0, reuse_every=2)
    assert main.drop("following").equals(several.drop("following"))
    assert main.drop("following").equals(control.drop("following"))
    assert main["following"].list.len().sum() == 0
    assert 0 < Counter(several["following"].list.len().to_list())[2] < several.height
    monkeypatch.setattr(stage, "ROWS", 2)
    again = _composed(folders, config, *names, next_n_control=0, reuse_every=2)
    assert all(one.equals(other) for one, other in zip(again, (main, several, control), strict=True))


def test_what_lies_between_two_reused_targets_follows_too(folders, config):
    (several,) = _composed(folders, config, "next_n.train", reuse_every=3)
    longest = several.filter(pl.col("user_id") == "u8")
    assert longest.select("ad_id", pl.col("following").list.join(" ")).rows() == [
        ("8-3", "8-4 8-5"),
        ("8-6", "8-7 8-8"),
        ("8-9", ""),
    ]


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [
        ({"next_n": 1}, set()),
        ({"next_n": 2}, {"next_n.train"}),
        ({"next_n": 2, "next_n_control": 0}, {"next_n.train", "next_n_control.train"}),
    ],
)
def test_tasks_of_several_ads_are_written_for_training_alone_and_only_where_asked(folders, config, changes, tasks):
    compose(config(**changes), folders.world, folders.catalog, out=folders.out)
    assert {path.stem for path in folders.out.glob("next_n*")} == tasks


def test_a_following_ad_outside_the_catalog_is_passed_over(write, config):
    ads = "ABXCD"
    folders = write(
        ads={ad_id: (None, ad_id) for ad_id in ads},
        sids={ad_id: (n,) for n, ad_id in enumerate("ABCD")},
        behaviors=[("u", ad_id, "ad", "click", NOW + day * DAY) for day, ad_id in enumerate(ads)],
        split=[
            *(("u", "train", ad_id, NOW + day * DAY) for day, ad_id in enumerate("ABXC")),
            ("u", "test", "D", NOW + 4 * DAY),
        ],
    )
    compose(config(next_n=3), folders.world, folders.catalog, out=folders.out)
    pairs = folders.pairs("next_n.train")
    assert pairs.select("ad_id", "following").rows() == [("B", ["C"]), ("C", [])]


def test_a_control_without_following_ads_is_refused(config):
    values = json.dumps(TypeAdapter(PromptsConfig).dump_python(config(), mode="json") | {"next_n_control": 0})
    with pytest.raises(ValidationError, match=r"next_n_control is 0, but next_n is 1, so there are no following ads"):
        TypeAdapter(PromptsConfig).validate_json(values, strict=True)

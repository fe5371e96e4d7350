import json
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from leadre.prompts import compose as stage
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.segments import render

CONF = Path(__file__).parents[2] / "conf"
DAY = 86_400
NOW = 1_700_000_000
TASKS = ("main", "implicit")
ROLES = ("train", "valid", "test")


@pytest.fixture
def folders(write):
    """Two users: one with three ad targets and one who has only the ads of his first day."""
    return write(
        ads={"A": ("cars", "Ad A"), "B": ("tea", "Ad B"), "C": ("tea", "Ad C"), "gone": ("cars", "Ad gone")},
        sids={"C": (0, 1), "A": (0, 2), "B": (1, 0)},
        contents=[("c", "a review", "tea", "Vale"), ("d", None, None, None)],
        users=[{"user_id": "u", "gender": "male"}],
        behaviors=[
            ("u", "A", "ad", "click", NOW - 200 * DAY),
            ("u", "c", "content", "search", NOW - 50 * DAY),
            ("u", "A", "ad", "click", NOW - 40 * DAY),
            ("u", "c", "content", "search", NOW - 40 * DAY),  # at the very time of a target
            ("u", "gone", "ad", "click", NOW - 30 * DAY),
            ("u", "B", "ad", "click", NOW - 20 * DAY - 1),
            ("u", "d", "content", "search", NOW - DAY + 1),
            ("u", "C", "ad", "conversion", NOW),
            ("u", "c", "content", "after the test", NOW + 5),
            ("v", "B", "ad", "click", NOW),
            ("v", "C", "ad", "click", NOW + DAY),
        ],
        split=[
            ("u", "train", "A", NOW - 200 * DAY),
            ("u", "train", "A", NOW - 40 * DAY),
            ("u", "train", "gone", NOW - 30 * DAY),
            ("u", "valid", "B", NOW - 20 * DAY - 1),
            ("u", "test", "C", NOW),
            ("v", "train", "B", NOW),
            ("v", "train", "C", NOW + DAY),
        ],
    )


def _shown(pair, *columns):
    display = {name: f"<{name}>" for name in "ABC"}
    return "".join(
        render([segment for one in pair[column] for segment in one] if column == "behaviors" else pair[column], display)
        for column in columns or ("head", "lead", "behaviors", "tail")
    )


def _compose(folders, config, **changes):
    compose(config(**changes), folders.world, folders.catalog, out=folders.out)
    return {f"{task}.{role}": folders.pairs(f"{task}.{role}").to_dicts() for task in TASKS for role in ROLES}


def test_a_prompt_holds_what_lies_strictly_before_its_target_and_in_the_window(folders, config):
    pairs = _compose(folders, config)
    behaviors = {name: [_shown(pair, "behaviors") for pair in rows] for name, rows in pairs.items()}
    assert behaviors["main.train"] == ["10 days ago^search^a review/Vale. ", "1 days ago^click on ad^<B>. "]
    assert behaviors["main.valid"] == [
        "29 days ago^search^a review/Vale; 19 days ago^click on ad^<A>; 19 days ago^search^a review/Vale; "
        "9 days ago^click on ad^Ad gone. "
    ]
    assert behaviors["main.test"] == [
        "50 days ago^search^a review/Vale; 40 days ago^click on ad^<A>; 40 days ago^search^a review/Vale; "
        "30 days ago^click on ad^Ad gone; 20 days ago^click on ad^<B>; 0 days ago^search^. "
    ]
    assert behaviors["implicit.test"] == [behaviors["main.test"][0].replace("<A>", "Ad A").replace("<B>", "Ad B")]
    assert not any("after the test" in shown for rows in behaviors.values() for shown in rows)


def test_the_summary_counts_both_domains_strictly_before_the_target(folders, config):
    pairs = _compose(folders, config)
    head = "(format: category^interaction times): {}"
    assert _shown(pairs["main.test"][0], "head").endswith(head.format("tea^3 times; cars^2 times; "))
    assert _shown(pairs["main.train"][0], "head").endswith(head.format("tea^1 times; "))
    assert _shown(_compose(folders, config, summary_categories=1)["main.test"][0], "head").endswith("tea^3 times; ")


def test_no_behavior_at_or_after_a_target_is_in_any_prompt(write, config):
    """The whole-data scan: every behavior's title names its time, and every prompt knows its own."""
    times = [NOW + DAY * n // 2 for n in range(40)]
    contents = [(f"c{time}", f"t{time}", f"k{time}", None) for time in times]
    ads = {f"a{time}": (f"k{time}", f"t{time}") for time in times[::4]}
    behaviors = [("u", f"c{time}", "content", "read", time) for time in times]
    behaviors += [("u", f"a{time}", "ad", "click", time) for time in times[::4]]
    targets = times[::4]
    roles = ["train"] * (len(targets) - 2) + ["valid", "test"]
    folders = write(
        ads=ads,
        sids={ad_id: (n,) for n, ad_id in enumerate(ads)},
        contents=contents,
        behaviors=behaviors,
        split=[("u", role, f"a{time}", time) for role, time in zip(roles, targets, strict=True)],
    )
    pairs = _compose(folders, config, summary_categories=1000)
    prompts = [pair for rows in pairs.values() for pair in rows]
    assert len(prompts) == 2 * (len(targets) - 1)  # the first target has no history
    for pair in prompts:
        segments = [*pair["head"], *pair["tail"], *(segment for one in pair["behaviors"] for segment in one)]
        marks = [segment["value"] for segment in segments if segment["value"][1:].isdecimal()]
        seen = {int(mark[1:]) for mark in marks}
        assert seen == {time for time in times if time < int(pair["ad_id"][1:])}


def test_with_reuse_every_train_target_with_a_history_is_a_pair(folders, config):
    pairs = _compose(folders, config, reuse_every=1)
    asked = [(pair["user_id"], pair["ad_id"]) for pair in pairs["main.train"]]
    assert asked == [("u", "A"), ("v", "C")]
    assert [(pair["user_id"], pair["ad_id"]) for pair in pairs["implicit.train"]] == asked
    assert folders.about()["pairs"]["train"] == {"pairs": 2, "ad_not_in_catalog": 1, "without_history": 2}


def test_without_reuse_the_last_train_target_of_each_user_is_the_pair(write, config):
    behaviors = [("u", "A", "ad", "click", NOW + day * DAY) for day in range(5)]
    folders = write(
        ads={"A": (None, "Ad A")},
        sids={"A": (0,)},
        behaviors=behaviors,
        split=[*(("u", "train", "A", NOW + day * DAY) for day in range(5)), ("u", "test", "A", NOW + 5 * DAY)],
    )
    pairs = _compose(folders, config, reuse_every=None)
    assert [len(pair["behaviors"]) for pair in pairs["main.train"]] == [4]
    assert [len(pair["behaviors"]) for pair in _compose(folders, config)["main.train"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(("every", "lengths"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (3, [1, 4]), (9, [4])])
def test_every_nth_train_target_is_counted_back_from_the_last(write, config, every, lengths):
    behaviors = [("u", "A", "ad", "click", NOW + day * DAY) for day in range(5)]
    folders = write(
        ads={"A": (None, "Ad A")},
        sids={"A": (0,)},
        behaviors=behaviors,
        split=[*(("u", "train", "A", NOW + day * DAY) for day in range(5)), ("u", "test", "A", NOW + 5 * DAY)],
    )
    pairs = _compose(folders, config, reuse_every=every)
    assert [len(pair["behaviors"]) for pair in pairs["main.train"]] == lengths


def test_a_test_target_without_history_or_profile_still_has_a_prompt(write, config):
    folders = write(
        ads={"A": ("cars", "Ad A")},
        sids={"A": (0,)},
        behaviors=[("u", "A", "ad", "click", NOW)],
        split=[("u", "test", "A", NOW)],
    )
    (pair,) = _compose(folders, config)["main.test"]
    assert pair["lead"] == []
    assert pair["behaviors"] == []
    shown = _shown(pair)
    assert shown.endswith(
        "Assuming you are an ad recommender system. what ad will the user be interested in next time?"
    )


def test_behaviors_may_come_before_the_summary(folders, config):
    first = _compose(folders, config)["main.test"][0]
    second = _compose(folders, config, arrangement=("profile", "behaviors", "summary"))["main.test"][0]
    assert _shown(second, "tail").startswith("The categories that have been")
    assert _shown(second, "tail").endswith(
        "tea^3 times; cars^2 times; what ad will the user be interested in next time?"
    )
    assert _shown(second, "head") == _shown(first, "head").partition("The categories")[0]
    assert second["behaviors"] == first["behaviors"]
    third = _compose(folders, config, arrangement=("behaviors", "summary", "profile"))["main.test"][0]
    assert _shown(third, "tail").endswith("cars^2 times; male. what ad will the user be interested in next time?")


def test_each_component_has_its_switch(folders, config):
    assert "male" not in _shown(_compose(folders, config, profile=False)["main.test"][0])
    assert "The categories" not in _shown(_compose(folders, config, summary=False)["main.test"][0])
    only_ads = _shown(_compose(folders, config, content_behaviors=False)["main.test"][0])
    assert "review" not in only_ads
    assert "cars^2 times; tea^1 times; " in only_ads  # contents are not counted either
    only_contents = _shown(_compose(folders, config, ad_behaviors=False)["main.test"][0])
    assert "click on ad" not in only_contents
    neither = _compose(folders, config, ad_behaviors=False, content_behaviors=False)["main.test"][0]
    assert (neither["lead"], neither["behaviors"]) == ([], [])
    assert "a review;" in _shown(_compose(folders, config, content_title="title")["main.test"][0])


def test_the_variants_ask_for_the_same_targets(folders, config):
    whole, without = _compose(folders, config), _compose(folders, config, content_behaviors=False)
    for name in whole:
        assert [pair["ad_id"] for pair in whole[name]] == [pair["ad_id"] for pair in without[name]]


def test_caps_keep_the_newest_behaviors_but_the_summary_counts_all(folders, config):
    pair = _compose(folders, config, max_ad_behaviors=1, max_content_behaviors=1)["main.test"][0]
    assert _shown(pair, "behaviors") == "20 days ago^click on ad^<B>; 0 days ago^search^. "
    assert "tea^3 times; cars^2 times; " in _shown(pair)


def test_the_explicit_task_asks_for_every_ad_of_the_catalog_in_its_order(folders, config):
    _compose(folders, config, soft_tokens=2)
    pairs = folders.pairs("explicit.train").to_dicts()
    assert [pair["ad_id"] for pair in pairs] == ["C", "A", "B"]
    assert _shown(pairs[1]) == (
        '<Learnable Token><Learnable Token>Given the ad\'s detailed description "Ad A", what is the corresponding ad?'
    )
    assert pairs[0]["user_id"] is None


def test_users_in_many_small_chunks_give_the_same_pairs(folders, config, monkeypatch):
    whole = _compose(folders, config)
    monkeypatch.setattr(stage, "ROWS", 1)
    monkeypatch.setattr(stage, "BEHAVIORS", 1)
    assert _compose(folders, config) == whole


def test_prompts_json_tells_what_later_stages_need(folders, config):
    _compose(folders, config)
    about = folders.about()
    about.pop("pairs")
    assert about == {
        "max_tokens": 2096,
        "soft_tokens": 1,
        "language": "en",
        "arrangement": ["profile", "summary", "behaviors"],
        "summary": True,
        "next_n": 1,
    }


@pytest.mark.parametrize("arrangement", [("profile", "summary"), ("profile", "profile", "behaviors"), ()])
def test_an_arrangement_names_each_component_once(folders, config, arrangement):
    with pytest.raises(ValueError, match="must name profile, summary and behaviors once each"):
        _compose(folders, config, arrangement=arrangement)


def test_a_catalog_of_another_world_is_refused(write, config):
    folders = write(ads={}, sids={"A": (0,)}, behaviors=[], split=[])
    with pytest.raises(ValueError, match=r"catalog holds 1 ads that ads.parquet does not: it was made from another"):
        _compose(folders, config)


def test_a_world_of_ads_alone_is_refused(write, config):
    folders = write(ads={"A": (None, "Ad A")}, sids={"A": (0,)}, behaviors=[], split=[])
    with pytest.raises(
        ValueError, match=r"has no row: a world of ads alone can be indexed \(index.py\), not trained on"
    ):
        _compose(folders, config)


@pytest.mark.parametrize("split", [[], [("u", "train", "A", NOW)]])
def test_a_world_that_tests_nobody_is_refused(write, config, split):
    folders = write(
        ads={"A": (None, "Ad A")}, sids={"A": (0,)}, behaviors=[("u", "A", "ad", "click", NOW)], split=split
    )
    with pytest.raises(
        ValueError, match=r"tests nobody, since no user has data\.min_ads ad behaviors: such a world can"
    ):
        _compose(folders, config)


def test_a_behavior_with_an_unknown_item_is_refused(write, config):
    folders = write(
        ads={"A": (None, "Ad A")}, sids={"A": (0,)}, behaviors=[("u", "x", "content", "read", NOW)], split=[]
    )
    with pytest.raises(ValueError, match=r"behaviors.parquet names 1 items, such as 'x', that"):
        _compose(folders, config)


@pytest.mark.parametrize("path", sorted((CONF / "prompts").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_prompts_yaml_is_valid(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra_compose("run", overrides=[f"prompts={path.stem}"]).prompts
        composed = OmegaConf.to_container(composed, resolve=True)
    values = TypeAdapter(PromptsConfig).validate_json(json.dumps(composed), strict=True)
    assert sorted(values.arrangement) == ["behaviors", "profile", "summary"]
    assert f"python train.py prompts={path.stem}" in path.read_text()

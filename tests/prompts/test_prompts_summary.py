"""The interest summary over positive and negative feedback, by category and SPU, in both domains (LEADRE 4.2.1)."""

import json
from collections import Counter

import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.prompts import compose as stage
from leadre.prompts import history
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.segments import render
from leadre.prompts.wording import CHINESE, ENGLISH

DAY = 86_400
NOW = 1_700_000_000
EVERYTHING = {"summary_by": ("category", "spu"), "summary_negatives": True}


@pytest.fixture
def make(write):
    """One user with a test target; negatives in and out of the window, and at the very time of the target."""

    def make(**changes):
        world = {
            "ads": {"A": ("cars", "Ad A", "Volt"), "B": ("tea", "Ad B", "Vale"), "C": (None, "Ad C", None)},
            "sids": {"A": (0,), "B": (1,)},
            "contents": [("c", "a review", "tea", "Vale"), ("d", "a film", "film", None)],
            "users": [{"user_id": "u", "gender": "male"}],
            "behaviors": [
                ("u", "c", "content", "search", NOW - 9 * DAY),
                ("u", "A", "ad", "click", NOW - 8 * DAY),
                ("u", "c", "content", "search", NOW - 7 * DAY),
                ("u", "B", "ad", "click", NOW),
            ],
            "negatives": [
                ("u", "B", "ad", "no_click", NOW - 90 * DAY - 1),
                ("u", "B", "ad", "no_click", NOW - 90 * DAY),
                ("u", "A", "ad", "no_click", NOW - 5 * DAY),
                ("u", "B", "ad", "no_click", NOW - 4 * DAY),
                ("u", "C", "ad", "no_click", NOW - 4 * DAY),
                ("u", "d", "content", "skip", NOW - 3 * DAY),
                ("u", "d", "content", "skip", NOW - 1),
                ("u", "d", "content", "skip", NOW - 1),
                ("u", "A", "ad", "no_click", NOW),
                ("u", "A", "ad", "no_click", NOW + 1),
                ("v", "A", "ad", "no_click", NOW - 1),
            ],
            "split": [("u", "test", "B", NOW)],
        }
        return write(**(world | changes))

    return make


def _told(folders, config, name="main.test", **changes):
    compose(config(**changes), folders.world, folders.catalog, out=folders.out)
    pair = folders.pairs(name).row(0, named=True)
    return render(pair["head"], {}).partition("male. ")[2]


def test_negatives_of_both_domains_are_counted_by_category_and_spu(make, config):
    folders = make()
    positive = ENGLISH.summary + "tea^2 times; cars^1 times; "
    assert _told(folders, config) == positive
    assert _told(folders, config, **EVERYTHING) == (
        positive
        + "The SPUs that have been frequently interacted recently are (format: SPU^interaction times): "
        + "Vale^2 times; Volt^1 times; "
        + "The categories that have often met no interest recently are (format: category^times): "
        + "film^3 times; tea^2 times; cars^1 times; "
        + "The SPUs that have often met no interest recently are (format: SPU^times): "
        + "Vale^2 times; Volt^1 times; "
    )


def test_what_the_summary_counts_is_told_in_the_order_named_and_no_more_than_asked(make, config):
    folders = make()
    told = _told(folders, config, summary_by=("spu",), summary_negatives=True, summary_categories=1)
    assert told == ENGLISH.summary_spu + "Vale^2 times; " + ENGLISH.summary_negative_spu + "Vale^2 times; "
    told = _told(folders, config, summary_by=("spu", "category"), summary_categories=1)
    assert told == ENGLISH.summary_spu + "Vale^2 times; " + ENGLISH.summary + "tea^2 times; "


def test_negatives_obey_the_switches_of_their_domain(make, config):
    folders = make()
    told = _told(folders, config, content_behaviors=False, **EVERYTHING)
    assert "film" not in told
    assert "tea^2 times; cars^1 times; " in told
    told = _told(folders, config, ad_behaviors=False, **EVERYTHING)
    assert told.endswith("category^times): film^3 times; ")
    assert _told(folders, config, summary=False, **EVERYTHING) == ""


def test_a_chinese_world_counts_negatives_in_chinese(make, config):
    folders = make(language="zh")
    compose(config(**EVERYTHING), folders.world, folders.catalog, out=folders.out)
    told = render(folders.pairs("main.test")["head"].to_list()[0], {})
    assert told.partition("male。")[2] == (
        f"{CHINESE.summary}tea^2次; cars^1次; {CHINESE.summary_spu}Vale^2次; Volt^1次; "
        f"{CHINESE.summary_negative}film^3次; tea^2次; cars^1次; {CHINESE.summary_negative_spu}Vale^2次; Volt^1次; "
    )


def test_a_target_with_negatives_alone_is_told_them_but_is_no_train_pair(make, config):
    folders = make(behaviors=[("u", "B", "ad", "click", NOW)])
    assert _told(folders, config, summary_negatives=True).startswith(ENGLISH.summary_negative)
    split = pl.DataFrame([("u", "train", "B", NOW), ("u", "test", "B", NOW)], tables.SPLIT.schema, orient="row")
    tables.write(tables.SPLIT, split, folders.world / "split.parquet")
    compose(config(summary_negatives=True), folders.world, folders.catalog, out=folders.out)
    assert folders.about()["pairs"]["train"] == {"pairs": 0, "ad_not_in_catalog": 0, "without_history": 1}


def test_a_world_without_the_table_of_negatives_is_refused_where_they_are_counted(make, config):
    folders = make(negatives=None)
    told = (
        r"summary_negatives is true, but the world has no negatives\.parquet: .* gather it again, or set prompts\.sum"
    )
    with pytest.raises(ValueError, match=told):
        _told(folders, config, summary_negatives=True)
    assert _told(folders, config, summary_negatives=True, summary=False) == ""


def test_a_world_whose_negatives_are_empty_is_told_none(make, config):
    folders = make(negatives=[])
    assert _told(folders, config, **EVERYTHING) == _told(folders, config, summary_by=("category", "spu"))


def test_a_negative_of_an_unknown_item_is_refused(make, config):
    folders = make(negatives=[("u", "x", "ad", "no_click", NOW)])
    with pytest.raises(ValueError, match=r"negatives\.parquet names 1 items, such as 'x', that ads\.parquet and cont"):
        _told(folders, config, summary_negatives=True)


def test_negatives_in_many_small_chunks_give_the_same_pairs(make, config, monkeypatch):
    folders = make(split=[("u", "valid", "A", NOW - 8 * DAY), ("u", "test", "B", NOW)])
    whole = [_told(folders, config, name, **EVERYTHING) for name in ("main.valid", "main.test")]
    monkeypatch.setattr(stage, "BEHAVIORS", 1)
    monkeypatch.setattr(stage, "ROWS", 1)
    monkeypatch.setattr(history, "COUNTED_AT_A_TIME", 1)
    assert [_told(folders, config, name, **EVERYTHING) for name in ("main.valid", "main.test")] == whole
    assert "often met no interest recently are (format: category^times): tea^2 times; " in whole[0]


def test_no_negative_at_or_after_a_target_is_counted_in_any_prompt(write, config):
    """The whole-data scan: every negative's category names its time, and every prompt knows its own."""
    times = [NOW + DAY * n // 2 for n in range(40)]
    targets = times[::4]
    folders = write(
        ads={f"a{time}": (f"k{time}", "Ad", f"s{time}") for time in times} | {"z": (None, "Ad", None)},
        sids={"z": (0,)},
        behaviors=[("u", "z", "ad", "click", time) for time in targets],
        negatives=[("u", f"a{time}", "ad", "no_click", time) for time in times],
        split=[
            ("u", role, "z", time)
            for role, time in zip(["train"] * (len(targets) - 2) + ["valid", "test"], targets, strict=True)
        ],
    )
    compose(config(summary_categories=1000, **EVERYTHING), folders.world, folders.catalog, out=folders.out)
    prompts = [pair for role in ("train", "valid", "test") for pair in folders.pairs(f"main.{role}").to_dicts()]
    assert len(prompts) == len(targets) - 1
    for target, pair in zip(targets[1:], prompts, strict=True):
        marks = Counter(segment["value"] for segment in pair["head"] if segment["value"][1:].isdecimal())
        expected = {f"{kind}{time}": 1 for kind in "ks" for time in times if time < target}
        assert marks == expected


@pytest.mark.parametrize("by", [[], ["category", "category"], ["brand"]])
def test_a_summary_counts_categories_spus_or_both(config, by):
    values = TypeAdapter(PromptsConfig).dump_python(config(), mode="json") | {"summary_by": by}
    with pytest.raises(ValidationError, match=r"at least 1 item|names something twice|Input should be 'category' or"):
        TypeAdapter(PromptsConfig).validate_json(json.dumps(values), strict=True)

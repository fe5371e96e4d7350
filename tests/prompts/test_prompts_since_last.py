"""Times between behaviors in place of times before the target: prompts of one user's targets begin alike."""

import random
from itertools import pairwise
from typing import NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.prompts import compose as stage
from leadre.prompts.audience import compose_audience
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.known import windows
from leadre.prompts.segments import render
from leadre.prompts.wording import CHINESE, ENGLISH

DAY = 86_400
NOW = 1_700_000_000


class PromptsTimes(NamedTuple):
    """The two settings that tell where a history begins."""

    times: str
    window_days: int


SHARED = {"times": "since_last", "arrangement": ("profile", "behaviors", "summary")}


def _world(write, days, *, language="en"):
    """A user who clicks on an ad on each of the days, in the morning; the last two are tested."""
    roles = ["train"] * (len(days) - 2) + ["valid", "test"]
    return write(
        language=language,
        ads={"A": ("cars", "Ad A"), "B": ("tea", "Ad B")},
        sids={"A": (0,), "B": (1,)},
        users=[{"user_id": "u", "gender": "male"}],
        behaviors=[("u", "AB"[n % 2], "ad", "click", NOW + int(day * DAY)) for n, day in enumerate(days)],
        split=[
            ("u", role, "AB"[n % 2], NOW + int(day * DAY))
            for n, (day, role) in enumerate(zip(days, roles, strict=True))
        ],
    )


def _composed(folders, config, **changes):
    compose(config(**(SHARED | changes)), folders.world, folders.catalog, out=folders.out)
    return {role: folders.pairs(f"main.{role}").to_dicts() for role in ("train", "valid", "test")}


def _shown(pair, *columns):
    display = {"A": "<a>", "B": "<b>"}
    return "".join(
        render([segment for one in pair[name] for segment in one] if name == "behaviors" else pair[name], display)
        for name in columns
    )


def test_behaviors_tell_the_days_between_them_and_the_tail_those_since_the_last(write, config):
    pairs = _composed(_world(write, [0, 2, 2.9, 7, 7.5, 9, 20]), config)
    (test,) = pairs["test"]
    assert _shown(test, "behaviors") == (
        "0 days later^click on ad^<a>; 2 days later^click on ad^<b>; 0 days later^click on ad^<a>; "
        "4 days later^click on ad^<b>; 0 days later^click on ad^<a>; 1 days later^click on ad^<b>. "
    )
    assert _shown(test, "tail") == (
        "The last of them was 11 days ago. "
        "The categories that have been frequently interacted recently are (format: category^interaction times): "
        "cars^3 times; tea^3 times; what ad will the user be interested in next time?"
    )


def test_a_chinese_world_tells_them_in_chinese(write, config):
    (test,) = _composed(_world(write, [0, 2, 7], language="zh"), config)["test"]
    assert _shown(test, "behaviors", "tail") == (
        "0天后^点击广告^<a>; 2天后^点击广告^<b>。其中最后一次在5天前。"
        f"{CHINESE.summary}cars^1次; tea^1次; {CHINESE.question}"
    )


def test_a_target_without_history_is_told_no_last_behavior(write, config):
    folders = _world(write, [0, 2, 3])
    tables.write(
        tables.SPLIT,
        pl.DataFrame([("u", "test", "A", NOW)], tables.SPLIT.schema, orient="row"),
        folders.world / "split.parquet",
    )
    (test,) = _composed(folders, config)["test"]
    assert _shown(test, "lead", "behaviors", "tail") == ENGLISH.question


@pytest.mark.parametrize("seed", range(3))
def test_the_prompts_of_one_block_are_true_prefixes_of_one_another(write, config, seed):
    draw = random.Random(seed)
    days = sorted(draw.uniform(0, 200) for _ in range(40))
    folders = _world(write, days)
    train = _composed(folders, config)["train"]
    ago = _composed(folders, config, times="ago")["train"]
    assert [pair["ad_id"] for pair in train] == [pair["ad_id"] for pair in ago]
    asked = days[1 : len(days) - 2]
    blocks = [int((NOW + int(day * DAY)) // (45 * DAY)) for day in asked]
    groups = {of: [pair for pair, its in zip(train, blocks, strict=True) if its == of] for of in set(blocks)}
    assert len(groups) >= 4
    assert any(len(group) > 1 for group in groups.values())
    for group in groups.values():
        for earlier, later in pairwise(group):
            *before, last = earlier["behaviors"]
            assert earlier["head"] == later["head"]
            assert earlier["lead"] == later["lead"]
            assert later["behaviors"][: len(before)] == before
            assert later["behaviors"][len(before)][:2] == last[:2]  # what follows it differs
    for pair, was, day in zip(train, ago, asked, strict=True):
        shown, whole = pair["behaviors"], was["behaviors"]
        assert [one[1] for one in shown] == [one[1] for one in whole[len(whole) - len(shown) :]]
        assert len(shown) >= sum(day - 45 <= other < day for other in days)
        assert pair["tail"][1:] == was["tail"]  # the summary counts the whole window


def test_blocks_are_of_half_a_window_from_the_epoch_for_all_users(config):
    half = 45 * DAY
    times = [0, half - 1, half, -1, 2 * half - 1, 2 * half]
    made = windows(pl.DataFrame({"time": times}), config(times="since_last"))
    assert made["since"].to_list() == [time - 2 * half for time in times]
    assert made["shown_since"].to_list() == [-half, -half, 0, -2 * half, 0, half]
    assert windows(pl.DataFrame({"time": times}), config())["shown_since"].to_list() == made["since"].to_list()


@settings(deadline=None, max_examples=40)
@given(time=st.integers(-(2**40), 2**40), days=st.integers(1, 400))
def test_a_target_sees_between_half_a_window_and_a_whole_one(time, days):
    told = PromptsTimes("since_last", days)
    (shown,) = windows(pl.DataFrame({"time": [time]}), told)["shown_since"]
    assert days * DAY / 2 <= time - shown < days * DAY


def test_a_later_target_changes_nothing_in_the_prompts_before_it(write, config):
    days = [0, 10, 20, 44, 50, 61, 80, 99, 130, 131, 170]
    folders = _world(write, days)
    behaviors = tables.read(tables.BEHAVIORS, folders.world / "behaviors.parquet")
    split = tables.read(tables.SPLIT, folders.world / "split.parquet")
    whole = _composed(folders, config)["train"]
    assert len(whole) == len(days) - 3
    for place in range(2, len(days) - 2):
        end = NOW + days[place] * DAY
        tables.write(tables.BEHAVIORS, behaviors.filter(pl.col("time") < end), folders.world / "behaviors.parquet")
        earlier = split.filter((pl.col("time") < end) | (pl.col("role") == "test"))
        tables.write(tables.SPLIT, earlier, folders.world / "split.parquet")
        assert _composed(folders, config)["train"] == whole[: place - 1]


def test_a_target_has_the_same_prompt_in_training_and_in_a_test_and_in_an_audience(write, config, tmp_path):
    days = [0, 10, 20, 44, 50, 61, 80, 99, 130, 131, 170]
    folders = _world(write, days)
    split = tables.read(tables.SPLIT, folders.world / "split.parquet")
    train = _composed(folders, config)["train"]
    parts = ["head", "lead", "behaviors", "tail"]
    for pair, day in zip(train, days[1:], strict=False):
        one = split.filter(time=NOW + day * DAY).with_columns(role=pl.lit("test"))
        tables.write(tables.SPLIT, one, folders.world / "split.parquet")
        (test,) = _composed(folders, config)["test"]
        out = tmp_path / f"audience{day}"
        out.mkdir()
        compose_audience(config(**SHARED), folders.world, folders.catalog, out=out, as_of=NOW + day * DAY)
        (prompt,) = tables.read(tables.PROMPTS, out / "prompts-0000000.parquet").to_dicts()
        assert [prompt[part] for part in parts] == [test[part] for part in parts] == [pair[part] for part in parts]


def test_no_behavior_at_or_after_a_target_or_out_of_its_window_is_shown(write, config, monkeypatch):
    """The whole-data scan: every title names its time."""
    times = [NOW + DAY * n // 2 for n in range(80)]
    targets = times[::4]
    roles = ["train"] * (len(targets) - 2) + ["valid", "test"]
    folders = write(
        ads={f"a{time}": (f"k{time}", f"t{time}") for time in times},
        sids={f"a{time}": (n,) for n, time in enumerate(times)},
        behaviors=[("u", f"a{time}", "ad", "click", time) for time in times],
        split=[("u", role, f"a{time}", time) for role, time in zip(roles, targets, strict=True)],
    )
    pairs = _composed(folders, config, window_days=10, summary_categories=1000)
    found = [pair for rows in pairs.values() for pair in rows]
    assert len(found) == len(targets) - 1
    for pair in found:
        asked = int(pair["ad_id"][1:])
        shown = [int(one[1]["value"][1:]) for one in pair["behaviors"]]
        assert shown == [time for time in times if shown[0] <= time < asked]
        assert asked - 10 * DAY <= shown[0] <= asked - 5 * DAY or shown[0] == times[0]
    whole = pairs
    monkeypatch.setattr(stage, "ROWS", 1)
    assert _composed(folders, config, window_days=10, summary_categories=1000) == whole


def test_a_cap_keeps_rows_correct(write, config):
    pairs = _composed(_world(write, [0, 2, 2.9, 7, 7.5, 9, 20]), config, max_ad_behaviors=2)
    assert _shown(pairs["test"][0], "behaviors") == "0 days later^click on ad^<a>; 1 days later^click on ad^<b>. "
    assert _shown(pairs["test"][0], "tail").startswith("The last of them was 11 days ago. ")


def test_other_times_are_refused(config):
    with pytest.raises(ValueError, match="Input should be 'ago' or 'since_last'"):
        config(times="until_next")
    assert isinstance(config(times="since_last"), PromptsConfig)

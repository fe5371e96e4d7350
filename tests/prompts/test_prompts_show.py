"""One user's prompt shown: the parts, their tokens, and text that wants to do harm to a terminal."""

import io
import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from leadre import tables
from leadre.config import ConfigError
from leadre.lm.encode import Encoded, encode, encode_pairs
from leadre.lm.fragments import Fragments
from leadre.lm.vocabulary import load_vocabulary
from leadre.prompts import show as command
from leadre.prompts.segments import LEARNABLE, ad, render, text
from leadre.prompts.show import Asked, Part, Shown, asked_and_overrides, escaped, main, parts_of, read_prompt, show


def read(small_run, user=None, task="main", role="test"):
    return read_prompt(Asked(user, task, role), **small_run.folders)


def test_the_command_prints_the_first_test_user_and_a_sum_that_is_the_length_in_the_tokens_file(small_run):
    first = pl.read_parquet(small_run.folders["pairs"] / "main.test.parquet").row(0, named=True)
    offsets = load_file(small_run.folders["tokens"] / "main.test.safetensors")["offsets"]
    head = next(line for line in small_run.printed.splitlines() if line.startswith("user "))
    assert head.startswith(f"user {first['user_id']}: target ad {first['ad_id']} <a_")
    lines = small_run.printed.splitlines()
    start = lines.index(head)
    assert f"{offsets[1]} of 256 tokens" in " ".join(lines[start : start + 2])
    counts = [int(found) for found in re.findall(r"^│ \w+ +│ +(\d+) │", small_run.printed, re.MULTILINE)]
    assert sum(counts) == offsets[1]
    assert small_run.printed.splitlines()[-1] == f"sum {offsets[1]}"
    assert LEARNABLE in small_run.printed
    assert small_run.printed.count("dropped") == len(re.findall(r"^│ \w+ +│ +- │", small_run.printed, re.MULTILINE)) > 0


def test_the_target_is_told_with_its_time_unless_it_is_one_of_several(small_run):
    split = tables.read(tables.SPLIT, small_run.folders["world"] / "split.parquet")
    several = 0
    for role in ("test", "valid", "train"):
        for user in pl.read_parquet(small_run.folders["pairs"] / f"main.{role}.parquet")["user_id"].unique().sort()[:9]:
            shown = read(small_run, user, role=role)
            targets = split.filter(role=role, user_id=user)
            assert shown.ad_id == targets["ad_id"][-1]
            times = targets.filter(ad_id=shown.ad_id)["time"]
            assert shown.time == (times[0] if len(times) == 1 else None)
            several += len(times) > 1
    assert several


@pytest.mark.parametrize("task", ["main", "implicit"])
def test_the_tokens_of_a_part_spell_its_text(small_run, task):
    vocabulary = load_vocabulary(small_run.folders["base"])
    first_new = min(*vocabulary.sid_offsets, *vocabulary.soft_ids)
    tokens = load_file(small_run.folders["tokens"] / f"{task}.test.safetensors")
    users = pl.read_parquet(small_run.folders["pairs"] / f"{task}.test.parquet")["user_id"]
    for row in range(0, len(users), 5):
        parts = [part for part in read(small_run, users[row], task).parts if part.tokens is not None]
        ids = tokens["ids"][tokens["offsets"][row] : tokens["offsets"][row + 1]]
        for part, found in zip(parts, np.split(ids, np.cumsum([part.tokens for part in parts])), strict=False):
            said = vocabulary.tokenizer.decode(found[found < first_new].tolist())
            assert said == render([one for one in part.segments if one["kind"] == "text"], {}), part.name
            names = sum(
                len(vocabulary.sid_offsets) if one["kind"] == "ad" else 1
                for one in part.segments
                if one["kind"] != "text"
            )
            assert (found >= first_new).sum() == names


def test_as_many_behaviors_are_shown_as_dropped_as_the_encoding_counted(small_run):
    counts = json.loads((small_run.folders["tokens"] / "encode.json").read_text())
    users = pl.read_parquet(small_run.folders["pairs"] / "main.test.parquet")["user_id"]
    dropped = [part for user in users for part in read(small_run, user).parts if part.tokens is None]
    assert sum(part.name == "behavior" for part in dropped) == counts["main.test"]["dropped_behaviors"] > 0


def test_the_explicit_prompt_of_an_ad_is_named_by_the_ad(small_run):
    asked, _ = asked_and_overrides(["task=explicit"])
    shown = read_prompt(asked, **small_run.folders)
    assert (shown.user, shown.time) == (None, None)
    assert [part.name for part in shown.parts] == ["head", "tail", "response"]
    assert read(small_run, shown.ad_id, "explicit", "train") == shown
    out = io.StringIO()
    show(shown, Console(file=out, width=200))
    assert out.getvalue().startswith(f"an ad's own: target ad {shown.ad_id} <a_")
    assert re.search(r"┃ part +┃ tokens ┃ text +┃\n", out.getvalue())  # nothing was dropped, so no column says so


@pytest.mark.parametrize("task", ["next_n", "next_n_control"])
def test_a_response_of_several_ads_is_shown_with_all_of_them(small_run, tmp_path, task):
    folders = small_run.folders | {"pairs": tmp_path / "pairs", "tokens": tmp_path / "tokens"}
    for name in ("pairs", "tokens"):
        folders[name].mkdir()
    shutil.copy(small_run.folders["pairs"] / "prompts.json", folders["pairs"])
    some = pl.read_parquet(small_run.folders["pairs"] / "main.train.parquet").head(5)
    other = pl.Series([[ad_id] for ad_id in some["ad_id"].reverse()])
    tables.write(tables.PAIRS, some.with_columns(following=other), folders["pairs"] / f"{task}.train.parquet")
    encode(small_run.folders["base"], small_run.folders["catalog"], folders["pairs"], out=folders["tokens"])
    shown = read_prompt(Asked(some["user_id"][2], task, "train"), **folders)
    assert shown.parts[-1].name == "response"
    assert [one["value"] for one in shown.parts[-1].segments] == [some["ad_id"][2], other[2][0]]
    assert shown.parts[-1].tokens == 2 * len(load_vocabulary(small_run.folders["base"]).sid_offsets)


def test_a_task_without_prompts_is_told(small_run):
    with pytest.raises(ValueError, match="task is next_n, but the prompts were composed without it: set "):
        read(small_run, None, "next_n", "train")


@pytest.mark.parametrize("num_cut", [1, 30])
def test_a_description_that_lost_its_end_counts_what_is_left(small_run, num_cut):
    fragments, pair, ids = _explicit(small_run)
    options = {"max_tokens": len(ids) - num_cut, "num_ads": 1, "cut": True}
    cut = encode_pairs(command._batch(pair), fragments, **options).ids
    whole, less = (
        {part.name: part.tokens for part in parts_of(pair, of, fragments, **chosen)}
        for of, chosen in ((ids, options | {"max_tokens": 999}), (cut, options))
    )
    assert less == whole | {"head": whole["head"] - num_cut}


def test_tokens_of_another_prompt_are_refused(small_run, tmp_path):
    fragments, pair, ids = _explicit(small_run)
    with pytest.raises(ValueError, match=r"the tokens file has \d+ tokens for this prompt, which is \d+ others"):
        parts_of(pair, ids[::-1], fragments, max_tokens=999, num_ads=1, cut=True)
    tokens = load_file(small_run.folders["tokens"] / "main.test.safetensors")
    save_file(tokens | {"offsets": tokens["offsets"] + 1}, tmp_path / "main.test.safetensors")
    with pytest.raises(ValueError, match="made from another prompt or with other code; remove the folder of the stage"):
        read(small_run._replace(folders=small_run.folders | {"tokens": tmp_path}))


def _explicit(small_run):
    fragments = Fragments(
        load_vocabulary(small_run.folders["base"]),
        tables.read(tables.SIDS, small_run.folders["catalog"] / "sids.parquet"),
    )
    pair = pl.read_parquet(small_run.folders["pairs"] / "explicit.train.parquet").head(1)
    tokens = load_file(small_run.folders["tokens"] / "explicit.train.safetensors")
    return fragments, pair, tokens["ids"][: tokens["offsets"][1]]


def test_a_token_over_the_border_of_two_parts_is_the_later_ones(monkeypatch):
    """A tokenizer that reads three letters at a time, over all borders, so that what is expected is plain division."""

    def by_threes(batch, fragments, *, max_tokens, num_ads, cut):
        rows = batch.to_pylist()
        texts = [
            "".join(
                segment["value"]
                for part in (row["head"], row["lead"], *row["behaviors"], row["tail"])
                for segment in part
            )
            for row in rows
        ]
        ids = [[hash(said[at : at + 3]) % 10**6 for at in range(0, len(said), 3)] + [7] for said in texts]
        offsets = np.cumsum([0, *map(len, ids)])
        return Encoded(np.concatenate(ids).astype(np.int32), None, offsets, None, 0, 0)

    class OneLevel:
        num_levels = 1

    pair = pl.DataFrame(
        [
            {
                "user_id": "u",
                "ad_id": "a",
                "head": [text("abcd")],
                "lead": [text("e")],
                "behaviors": [[text("fg"), text("h")], [text("ijklm")]],
                "tail": [text("no")],
                "following": [],
            }
        ],
        schema=tables.PAIRS.schema,
    )
    monkeypatch.setattr(command, "encode_pairs", by_threes)
    ids = by_threes(command._batch(pair), None, max_tokens=0, num_ads=1, cut=False).ids
    parts = parts_of(pair, ids, OneLevel(), max_tokens=99, num_ads=1, cut=False)
    borders = np.cumsum([0, 4, 1, 3, 5, 2]) // 3
    assert [part.tokens for part in parts] == [*np.diff(borders).tolist(), 1]


def test_an_unknown_user_is_named_with_some_that_exist(small_run):
    users = pl.read_parquet(small_run.folders["pairs"] / "main.test.parquet")["user_id"]
    told = (
        rf"user is 'nobody', but main.test.parquet has no prompt of such a user: it has those of {len(users)} users, "
    )
    with pytest.raises(ValueError, match=told + f"such as '{users[0]}', '{users[1]}', '{users[2]}'; name one of them"):
        read(small_run, "nobody")
    with pytest.raises(
        ValueError, match=r"explicit\.train\.parquet has no prompt of such an ad: it has those of 192 ads"
    ):
        read(small_run, "nobody", "explicit", "train")


def test_the_command_ends_with_the_error_and_not_with_where_it_was_raised(small_run):
    with pytest.raises(SystemExit, match="user is 'nobody'"):
        main([*small_run.arguments, "user=nobody"])
    with pytest.raises(SystemExit, match="role is 'last': choose from test, valid, train"):
        main(["role=last"])
    with pytest.raises(SystemExit, match="data: no such option"):
        main(["data=none"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["task=next"], "task is 'next': choose from main, implicit, explicit, next_n, next_n_control"),
        (["task=explicit", "role=test"], "role is 'test', but the task explicit is for training alone: leave role out"),
        (["task=next_n", "role=valid"], "role is 'valid', but the task next_n is for training alone: leave role out"),
        (["user=u", "task=main", "user=v"], "user stands twice: give it once"),
        (["data=tables", "data=tables"], "data stands twice: give it once"),
        (["u7"], "'u7' is no key=value: give user=ID"),
    ],
)
def test_a_wrong_command_line_is_told(arguments, told):
    with pytest.raises(ConfigError, match=told):
        asked_and_overrides(arguments)


def test_own_arguments_are_taken_out_and_overrides_left():
    asked, overrides = asked_and_overrides(["data=tables", "user=a=b", "~logger", "task=implicit", "role=valid"])
    assert asked == Asked("a=b", "implicit", "valid")
    assert overrides == ["data=tables", "~logger"]
    assert asked_and_overrides([])[0] == Asked(None, "main", "test")
    assert asked_and_overrides(["task=next_n_control"])[0] == Asked(None, "next_n_control", "train")


def test_help_is_the_text_of_the_command(capsys):
    for asks in ("--help", "-h"):
        main(["user=u", asks])
        assert capsys.readouterr().out == f"{command.__doc__}\n"


def test_hostile_text_cannot_move_the_cursor_nor_pass_for_markup_or_an_ad():
    wicked = "\x1b[2J[red]x[/] \u202e\x00\ud800 \\<a_1, b_2> 汉"
    parts = [Part("head", [text(wicked)], 3), Part("response", [ad("a\x1b")], 2)]
    out = io.StringIO()
    show(Shown("u\x1b", "a\x1b", None, 5, 9, parts, {"a\x1b": "<a_1>"}), Console(file=out, width=200))
    printed = out.getvalue()
    assert "\x1b" not in printed
    assert r"\x1b[2J[red]x[/] \u202e\x00\ud800 \<a_1, b_2> 汉" in printed
    assert r"user u\x1b: target ad a\x1b <a_1>, 5 of 9 tokens" in printed


def test_what_can_be_seen_is_not_escaped():
    assert escaped("café 汉字 😀 a^b\\;") == "café 汉字 😀 a^b\\;"

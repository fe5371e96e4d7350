"""What the benchmark of prompt ids and grouping measures, and its figures on a few users."""

import json

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks import prompt_ids
from benchmarks.measure import main
from leadre.data.split import histories


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(prompt_ids, "WORLD", ("data/world=tiny",))
    monkeypatch.setattr(prompt_ids, "QUICK_WORLD_USERS", 150)
    monkeypatch.setattr(prompt_ids, "QUICK_PROMPTS", 20)
    monkeypatch.setattr(prompt_ids, "VOCABULARY", 500)
    monkeypatch.setattr(prompt_ids, "QUICK_USERS", 50)


def _figures(capsys):
    return {figure["name"]: figure for figure in json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]}


@pytest.mark.slow
def test_a_quick_run_gives_all_figures_of_prompt_ids(few, capsys):
    main(prompt_ids.MEASUREMENTS, ["--quick", "--only", "prompt_ids"])
    figures = _figures(capsys)
    assert len(figures) == 4, figures
    assert figures["prompt ids, Llama 3's words: string + tokenizer / ours"]["value"] > 0
    assert "identical ids" in figures["prompt ids, lm=tiny: string + tokenizer / ours"]["note"]


def test_a_quick_run_gives_all_figures_of_grouping(few, capsys):
    pytest.importorskip("pandas")
    main(prompt_ids.MEASUREMENTS, ["--quick", "--only", "grouping"])
    figures = _figures(capsys)
    assert list(figures)[:2] == ["grouping: million events/s", "grouping: pandas / ours"]
    assert "equal frames" in figures["grouping: pandas / ours"]["note"]


def test_both_ways_of_pandas_are_ours():
    pytest.importorskip("pandas")
    behaviors, targets = prompt_ids.events(20, seed=1)
    targets = pl.concat([targets, targets.head(1).with_columns(user_id=pl.lit("nobody"))])
    frames = [prompt_ids._pandas(frame) for frame in (behaviors, targets)]
    for days in (1, 90):
        ours = histories(behaviors, targets, days)
        for way in (prompt_ids.sliced, prompt_ids.merged):
            theirs = way(*frames, days)
            found = pl.DataFrame({name: theirs[name].tolist() for name in theirs.columns}, schema=ours.schema)
            assert_frame_equal(found, ours)


def test_histories_that_differ_are_told():
    pytest.importorskip("pandas")
    log = prompt_ids.events(20, seed=1)
    frames = [prompt_ids._pandas(frame) for frame in log]
    results = {
        "ours": histories(*log, 90),
        "slices": prompt_ids.sliced(*frames, 90),
        "merge": prompt_ids.merged(*frames, 1),
    }
    with pytest.raises(AssertionError, match="merge: "):
        prompt_ids._assert_same_histories(log, results)


def test_the_plain_way_reads_added_tokens_as_one_token_each():
    tokenizer = prompt_ids.llama_like(["play short video^", "32 days ago"] * 5, vocabulary=300)
    first = len(tokenizer)
    extended = prompt_ids.with_sids(tokenizer, [4, 4])
    ids = extended("ago^<a_3><b_0>" + prompt_ids.SOFT, add_special_tokens=False)["input_ids"]
    assert ids[-3:] == [first + 1 + 3, first + 1 + 4, first]
    assert np.max(ids[:-3]) < first
    assert len(tokenizer) == first

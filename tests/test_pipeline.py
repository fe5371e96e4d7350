"""The whole main path on the smallest world: what it leaves, what it reuses, and what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from leadre import pipeline, tables
from leadre.artifacts import Store
from leadre.config import CONF, load

ROOT = Path(__file__).parent.parent
SMALLEST = (
    "data/world=tiny",
    "quantizer=tiny",
    "lm.hidden_size=32",
    "lm.layers=1",
    "lm.intermediate_size=32",
    "lm.text_tokens=600",
    "sft.stages=[{explicit: 1},{main: 1}]",
    "sft.tuning.validations=1",
    "sft.tuning.valid_users=16",
    "decoding.beam_width=10",
    "compute.threads=1",
    "compute.checkpoint_every_steps=2",
)
FEW_PAIRS = "alignment.preferences.max_pairs=64"
STAGES = ["world", "embeddings", "codes", "catalog", "pairs", "base", "tokens", "sft", "sft", "aligned"]


def _run(root: Path, *overrides: str) -> tuple[Store, dict[str, Path]]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = load(compose("run", [*SMALLEST, *overrides]))
    store = Store(root)
    prepared = pipeline.prepare(run, store)
    pipeline.evaluate(run, store, prepared, pipeline.train(run, store, prepared))
    return store, {result.stage: result.path for result in store.results}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    store, folders = _run(root, FEW_PAIRS)
    return root, store, folders


def test_the_main_path_runs_its_stages_in_the_order_it_reads(first):
    _, store, _ = first
    assert [result.stage for result in store.results] == [*STAGES, "baselines", "generations", "scores"]


def test_no_list_holds_an_ad_outside_the_catalog_or_an_ad_twice(first):
    _, _, folders = first
    lists = tables.read(tables.LISTS, folders["generations"] / "lists.parquet")
    sids = tables.read(tables.SIDS, folders["catalog"] / "sids.parquet")
    assert lists.join(sids, on="ad_id", how="anti").is_empty()
    assert lists.select("user_id", "ad_id").is_duplicated().sum() == 0
    assert sids["sid"].is_duplicated().sum() == 0
    ranks = lists.group_by("user_id").agg(pl.col("rank"))["rank"].to_list()
    assert all(found == list(range(1, 11)) for found in ranks)


def test_every_system_is_scored_on_the_same_users(first):
    _, _, folders = first
    scores = json.loads((folders["scores"] / "scores.json").read_text())
    assert {"LEADRE", "popularity", "own_history", "linear", "oracle"} == set(scores["systems"])
    per_user = pl.read_parquet(folders["scores"] / "per_user.parquet")
    assert per_user.group_by("system").agg(pl.col("user_id").n_unique())["user_id"].unique().to_list() == [
        scores["users"]
    ]


def test_a_second_run_builds_nothing(first):
    root, store, _ = first
    again, _ = _run(root, FEW_PAIRS)
    assert all(result.reused for result in again.results)
    assert [result.key for result in again.results] == [result.key for result in store.results]


def test_a_changed_prompt_rebuilds_from_the_prompts_on(first):
    root, _, _ = first
    store, _ = _run(root, "prompts.profile=false", "alignment=none")
    reused = [result.stage for result in store.results if result.reused]
    built = [result.stage for result in store.results if not result.reused]
    assert reused == ["world", "embeddings", "codes", "catalog", "baselines"]
    assert built == ["pairs", "base", "tokens", "sft", "sft", "generations", "scores"]


def test_curricula_that_begin_alike_share_their_first_stages(first):
    root, store, _ = first
    other, _ = _run(root, "sft.stages=[{explicit: 1},{implicit: 0.5}]", "alignment=none")
    sft = [result for result in store.results if result.stage == "sft"]
    shared = [result for result in other.results if result.stage == "sft"]
    assert (shared[0].key, shared[0].reused, shared[1].reused) == (sft[0].key, True, False)


def test_nothing_after_a_target_reaches_its_prompt_and_no_held_out_ad_a_pair(first):
    """A scan of all rows: the prompts' ads are behaviors strictly before the target, for every role and user."""
    _, _, folders = first
    behaviors = tables.read(tables.BEHAVIORS, folders["world"] / "behaviors.parquet")
    split = tables.read(tables.SPLIT, folders["world"] / "split.parquet")
    for role in ("train", "valid", "test"):
        pairs = tables.read(tables.PAIRS, folders["pairs"] / f"main.{role}.parquet").with_row_index("pair")
        shown = (
            pairs.select("pair", "user_id", "ad_id", pl.col("behaviors"))
            .explode("behaviors")
            .explode("behaviors")
            .unnest("behaviors")
            .filter(pl.col("kind") == "ad")
        )
        times = split.filter(pl.col("role") == role).group_by("user_id", "ad_id").agg(pl.col("time").max())
        counted = shown.group_by("pair", "user_id", "ad_id", "value").len()
        assert counted.height > 0
        # Each ad is shown at most as often as the user met it before the target.
        before = (
            counted.join(times, on=["user_id", "ad_id"])
            .join(behaviors.select("user_id", value="item_id", at="time"), on=["user_id", "value"])
            .filter(pl.col("at") < pl.col("time"))
            .group_by("pair", "value")
            .agg(possible=pl.len())
        )
        checked = counted.join(before, on=["pair", "value"], how="left")
        assert checked.filter(pl.col("possible").is_null() | (pl.col("len") > pl.col("possible"))).is_empty()
    preferences = pl.read_parquet(folders["aligned"] / "preferences.parquet")
    held_out = split.filter(pl.col("role") != "train")
    for side in ("chosen_ad", "rejected_ad"):
        assert preferences.join(
            held_out, left_on=["user_id", side], right_on=["user_id", "ad_id"], how="semi"
        ).is_empty()


def test_both_alignments_start_from_the_same_tuned_model(first):
    root, _, _ = first
    rrhf, _ = _run(root, "alignment=rrhf", FEW_PAIRS)
    assert [result.reused for result in rrhf.results if result.stage in {"sft", "aligned"}] == [True, True, False]


@pytest.mark.slow
def test_a_run_killed_at_any_time_ends_with_the_same_scores(first, tmp_path):
    """kill -9 at growing delays until a run ends by itself; then the scores are those of the unbroken run."""
    _, _, folders = first
    arguments = [sys.executable, str(ROOT / "train.py"), *SMALLEST, FEW_PAIRS, f"store.root={tmp_path / 'store'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kills = 0
    while True:
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(8 + 2.5 * kills)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills >= 1
    (scores,) = (tmp_path / "store" / "scores").glob("*/scores.json")
    assert scores.read_text() == (folders["scores"] / "scores.json").read_text()

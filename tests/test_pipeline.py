"""The whole main path on the smallest world: what it leaves, what it reuses, and what a kill costs."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from leadre import job, pipeline, tables
from leadre.artifacts import ArtifactError, Result, Store
from leadre.config import CONF, GenerateConfig, RunConfig, load, load_generate
from leadre.trained import Trained, check_next_n, check_support, prompts_of

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
)
FEW_PAIRS = "alignment.preferences.max_pairs=64"
STAGES = ["world", "embeddings", "codes", "catalog", "ltr", "pairs", "base", "tokens", "sft", "sft", "preferences"]


def load_run(*overrides: str) -> RunConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("run", [*SMALLEST, *overrides]))


def _run(root: Path, *overrides: str) -> tuple[Store, dict[str, Path]]:
    run, store = load_run(*overrides), Store(root)
    prepared = pipeline.prepare(run, store, pipeline.index_ads(run, store))
    pipeline.evaluate(run, store, prepared, pipeline.train(run, store, prepared))
    return store, {result.stage: result.path for result in store.results}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    store, folders = _run(root, FEW_PAIRS)
    return root, store, folders


def test_the_main_path_runs_its_stages_in_the_order_it_reads(first):
    _, store, _ = first
    last = ["aligned", "baselines", "generations", "values", "scores"]
    assert [result.stage for result in store.results] == [*STAGES, *last]


def test_no_list_holds_an_ad_outside_the_catalog_or_an_ad_twice(first):
    _, _, folders = first
    lists = tables.read(tables.LISTS, folders["generations"] / "lists")
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
    assert reused == ["world", "embeddings", "codes", "catalog", "ltr", "baselines"]
    assert built == ["pairs", "base", "tokens", "sft", "sft", "generations", "values", "scores"]


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
    preferences = tables.read(tables.PREFERENCES, folders["preferences"] / "preferences.parquet")
    held_out = split.filter(pl.col("role") != "train")
    for side in ("chosen_ad", "rejected_ad"):
        assert preferences.join(
            held_out, left_on=["user_id", side], right_on=["user_id", "ad_id"], how="semi"
        ).is_empty()


def test_both_alignments_start_from_the_same_tuned_model(first):
    root, _, _ = first
    rrhf, _ = _run(root, "alignment=rrhf", FEW_PAIRS)
    assert [result.reused for result in rrhf.results if result.stage in {"sft", "aligned"}] == [True, True, False]


def _daily(root: Path, *overrides: str) -> GenerateConfig:
    typed = ["decoding.beam_width=10", "compute.threads=1", f"store.root={root}", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_generate(compose("generate", typed))


def _lists(store: Store, *overrides: str) -> pipeline.Listed:
    return pipeline.generate_lists(_daily(store.root, *overrides), store)


def test_every_user_gets_a_list_as_of_any_time_by_a_model_of_an_earlier_day(first):
    root, _, folders = first
    store = Store(root)
    now = _lists(store, f"model={folders['aligned'].name}")
    assert [(result.stage, result.reused) for result in store.results] == [("audience", False), ("generations", False)]
    assert now.world.path == folders["world"]
    users = tables.read(tables.USERS, folders["world"] / "users.parquet")
    lists = tables.read(tables.LISTS, now.generations.path / "lists")
    about = json.loads((now.audience.path / "prompts.json").read_text())
    assert about["audience"] == {"users": users.height, "without_behavior": 0, "left_out": 0}
    assert set(lists["user_id"]) == set(users["user_id"])
    sids = tables.read(tables.SIDS, folders["catalog"] / "sids.parquet")
    assert lists.join(sids, on="ad_id", how="anti").is_empty()
    assert not lists.select("user_id", "ad_id").is_duplicated().any()


def test_the_daily_batch_ends_with_a_few_users_the_figures_and_where_the_lists_lie(first, capsys):
    root, _, folders = first
    run = _daily(root, f"model={folders['aligned']}", "decoding.num_ads=5")
    assert job.generate_lists(run, root, [])["figures"]["users/s"] > 0
    assert "–" not in capsys.readouterr().out
    result = job.generate_lists(run, root, [])  # the lists are there: their pace is not this run's
    text = capsys.readouterr().out
    assert result["figures"] == {"users": 200, "users/s": None, "Invalid": 0.0, "Duplicate": 0.0}
    assert text.count("–") == 1
    assert text.count("User user_") == text.count("  5. ") == job.NUM_SAMPLES
    (lists,) = [line.split()[-1] for line in text.splitlines() if line.startswith("lists ") and "store" in line]
    assert tables.read(tables.LISTS, Path(lists))["user_id"].n_unique() == 200


def test_filters_are_told_by_what_they_hold_and_not_by_where_they_lie(first, tmp_path):
    root, _, folders = first
    ads = tables.read(tables.SIDS, folders["catalog"] / "sids.parquet")["ad_id"]
    made = []
    for place, down in (("a", ads[:3]), ("b", ads[:3]), ("c", ads[3:5])):
        (tmp_path / place).mkdir()
        tables.write(tables.TAKEN_DOWN, pl.DataFrame({"ad_id": down}), tmp_path / place / "taken_down.parquet")
        lists = _lists(Store(root), f"model={folders['aligned']}", f"decoding.filters={tmp_path / place}").generations
        shown = tables.read(tables.LISTS, lists.path / "lists")["ad_id"]
        assert not shown.is_in(down.implode()).any()
        made.append(lists)
    first_day, same_day, next_day = made
    assert (same_day.key, same_day.reused) == (first_day.key, True)
    assert next_day.key != first_day.key


def test_lists_as_of_a_time_that_the_model_has_learned_from_are_warned_of(first, caplog):
    root, _, folders = first
    split = tables.read(tables.SPLIT, folders["world"] / "split.parquet")
    last = split.filter(pl.col("role") == "train")["time"].max()
    told = f"as_of is {last}, but the model was trained on behaviors up to {last}: do not score these lists"
    then = _lists(Store(root), f"model={folders['aligned']}", f"as_of={last}")
    assert told in caplog.messages
    assert json.loads((then.audience.path / "prompts.json").read_text())["as_of"] == last
    caplog.clear()
    after = _lists(Store(root), f"model={folders['aligned']}", f"as_of={last + 1}")
    assert not [message for message in caplog.messages if "do not score" in message]
    assert after.audience.key != then.audience.key
    assert after.generations.key != then.generations.key


def test_todays_world_tells_which_ads_run(first):
    """An ad of the catalog whose time is over is in no list: the world is part of what lists are made from."""
    root, _, folders = first
    listed = _lists(Store(root), f"model={folders['aligned']}")
    manifest = json.loads((listed.generations.path / "manifest.json").read_text())
    assert manifest["inputs"]["world"] == listed.world.key
    about = json.loads((listed.generations.path / "generation.json").read_text())
    as_of = json.loads((listed.audience.path / "prompts.json").read_text())["as_of"]
    sids = tables.read(tables.SIDS, folders["catalog"] / "sids.parquet")
    ads = sids.join(tables.read(tables.ADS, folders["world"] / "ads.parquet"), on="ad_id", how="left")
    over = ads.filter((pl.col("start_time") > as_of) | (pl.col("end_time") <= as_of))["ad_id"]
    assert about["ads_not_running"] == len(over) > 0
    assert not tables.read(tables.LISTS, listed.generations.path / "lists")["ad_id"].is_in(over.implode()).any()


def test_prompts_that_a_platform_made_stand_in_for_world_and_audience(first, tmp_path, caplog, capsys):
    root, _, folders = first
    model = f"model={folders['aligned']}"
    own = _lists(Store(root), model)
    given = tmp_path / "given"
    given.mkdir()
    for path in own.audience.path.glob("prompts-*.parquet"):
        shutil.copy(path, given)
    with pytest.raises(ValueError, match=r"whose prompts\.json tells no max_tokens, soft_tokens, language: write it"):
        _lists(Store(root), model, f"audience={given}")
    about = json.loads((own.audience.path / "prompts.json").read_text())
    kept = {name: about[name] for name in ("max_tokens", "soft_tokens", "language")}
    (given / "prompts.json").write_text(json.dumps(kept | {"language": "zh"}))
    with pytest.raises(ValueError, match=r"audience\.language is 'zh', but .* in 'en': compose its prompts in 'en'"):
        _lists(Store(root), model, f"audience={given}")
    (given / "prompts.json").write_text(json.dumps(kept))
    job.generate_lists(_daily(root, model, f"audience={given}"), root, [])
    text = capsys.readouterr().out
    assert "User user_" in text
    assert "no behavior" not in text
    assert any("nothing is known of ads that no longer run" in message for message in caplog.messages)
    store = Store(root)
    listed = _lists(store, model, f"audience={given.rename(tmp_path / 'moved')}")
    assert [(result.stage, result.reused) for result in store.results] == [("generations", True)]
    assert listed.world is None
    users = tables.read(tables.LISTS, listed.generations.path / "lists")["user_id"]
    assert set(users) == set(tables.read(tables.LISTS, own.generations.path / "lists")["user_id"])


def test_more_ads_a_pass_than_the_model_has_learned_are_refused(first):
    root, _, folders = first
    told = r"decoding\.next_n is 2, but the model was not tuned to name 2 ads .*: train one with sft=ex_im_next_n "
    with pytest.raises(ValueError, match=told + r"prompts\.next_n=2, or give decoding\.next_n=1"):
        _lists(Store(root), f"model={folders['aligned']}", "decoding.next_n=2")


@pytest.mark.parametrize(
    ("learned", "stages", "passes"),
    [
        (4, [{"next_n": 1}, {"main": 1}], True),  # aligned, or tuned on, after a stage that learned it
        (4, [{"next_n_control": 1}], True),
        (4, [{"explicit": 1}, {"main": 1}], False),
        (1, [{"next_n": 1}], False),
        (4, [None, {"main": 1}], True),  # the first stage was cleaned away: nothing is known of it
    ],
)
def test_what_a_model_has_learned_is_told_by_its_pairs_and_by_all_stages_of_its_tuning(
    first, tmp_path, learned, stages, passes
):
    _, _, folders = first
    prompts = json.loads((folders["pairs"] / "manifest.json").read_text())["config"] | {"next_n": learned}
    _manifest(tmp_path / "pairs" / "p", config=prompts)
    inputs: dict[str, str] = {"base": "b"}
    for number, tasks in enumerate(stages):
        if tasks is not None:
            _manifest(tmp_path / "sft" / str(number), config={"tasks": tasks}, inputs=inputs)
        inputs = {"sft": str(number)}
    _manifest(tmp_path / "aligned" / "m", config={"kind": "dpo"}, inputs=inputs)
    model, pairs = (
        Result(stage, key, tmp_path / stage / key, 0.0, True) for stage, key in (("aligned", "m"), ("pairs", "p"))
    )
    then = Trained(model, pairs, pairs, pairs)
    check_next_n(1, then)
    if passes:
        check_next_n(4, then)
    else:
        with pytest.raises(ValueError, match=r"decoding\.next_n is 4, but the model was not tuned to name 4 ads"):
            check_next_n(4, then)


@pytest.mark.parametrize("supports", [("trie",), ("vocab", "trie"), ("trie", "vocab")])
def test_a_model_tuned_among_the_codes_that_lead_to_an_ad_is_decoded_so(tmp_path, supports):
    """Whichever stage it was; a stage from before there was the setting took the whole vocabulary."""
    _manifest(tmp_path / "sft" / "0", config={"tasks": ["main"], "tuning": {}}, inputs={"base": "b"})
    for number, support in enumerate(supports, start=1):
        config = {"tasks": ["main"], "tuning": {"support": support}}
        _manifest(tmp_path / "sft" / str(number), config=config, inputs={"sft": str(number - 1)})
    models = [Result("sft", str(n), tmp_path / "sft" / str(n), 0.0, True) for n in (0, len(supports))]
    plain, tuned = (Trained(model, model, model, model) for model in models)
    check_support("trie", tuned)
    check_support("full", plain)
    with pytest.raises(ValueError, match=r"normalizer is 'full', but the model was tuned with sft\.tuning\.sup"):
        check_support("full", tuned)


def _manifest(folder: Path, **content: object) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(content))


def test_which_responses_a_model_was_trained_with_moves_no_audience(tmp_path, first):
    _, _, folders = first
    settings = json.loads((folders["pairs"] / "manifest.json").read_text())["config"]
    changes = [{"next_n": 4, "next_n_control": 0}, {"reuse_every": None}, {"reuse_every": 5, "reuse_seed": 1}, {}]
    changes += [{"template_seed": 3}, {"profile_seed": 0}]
    made = [prompts_of(_pairs_with(tmp_path / str(i), settings | change)) for i, change in enumerate(changes)]
    assert len(set(made)) == 1
    assert made[0] != prompts_of(_pairs_with(tmp_path / "other", settings | {"window_days": 1}))


def _pairs_with(folder: Path, settings: dict[str, object]) -> Result:
    _manifest(folder, config=settings)
    return Result("pairs", "key", folder, 0.0, True)


def test_what_lists_are_not_made_with_may_be_gone_and_the_rest_is_missed_by_name(first, tmp_path):
    root, _, folders = first
    copied = tmp_path / "store"
    for stage in ("aligned", "world", "catalog", "pairs"):
        shutil.copytree(folders[stage], copied / stage / folders[stage].name)
    model = f"model={copied / 'aligned' / folders['aligned'].name}"
    assert _lists(Store(copied), model).generations.key == _lists(Store(root), f"model={folders['aligned']}")[2].key
    shutil.rmtree(copied / "pairs")
    with pytest.raises(ArtifactError, match=r"pairs/\w+ is missing: copy it from the store of the training"):
        _lists(Store(copied), model)


def test_at_the_time_of_a_test_target_the_daily_list_is_the_evaluated_one(first):
    """What is scored offline is what a platform would have shown then, but for ads that did not run."""
    root, _, folders = first
    split = tables.read(tables.SPLIT, folders["world"] / "split.parquet").filter(pl.col("role") == "test")
    user, time = split.sort("time").select("user_id", "time").row(-1)
    prompts = _lists(Store(root), f"model={folders['aligned']}", f"as_of={time}").audience.path
    then = _lists(Store(root), f"model={folders['aligned']}", f"audience={prompts}")  # of all ads
    evaluated, daily = (
        tables.read(tables.LISTS, folder / "lists").filter(pl.col("user_id") == user)
        for folder in (folders["generations"], then.generations.path)
    )
    assert daily["ad_id"].to_list() == evaluated["ad_id"].to_list()
    assert daily["score"].to_list() == pytest.approx(evaluated["score"].to_list(), abs=1e-4)


def test_what_is_no_model_is_named_with_the_remedy(first):
    root, _, folders = first
    for wrong in ("nope", str(folders["catalog"]), str(folders["aligned"].parent), folders["catalog"].name):
        with pytest.raises(ValueError, match=rf"model is {wrong!r}, but .* is no model in a store: name an aligned or"):
            _lists(Store(root), f"model={wrong}")


def test_todays_world_must_speak_the_language_and_hold_behaviors(first, tmp_path):
    root, _, folders = first
    (tmp_path / "ads.csv").write_text("ad_id,name\nA,red tea\n")
    typed = (f"model={folders['aligned'].name}", "data=tables", f"data.root={tmp_path}")
    with pytest.raises(ValueError, match=r"data\.language is 'zh', but the model was trained with prompts in 'en'"):
        _lists(Store(root), *typed, "data.language=zh")
    with pytest.raises(ValueError, match=r"behaviors\.parquet has no row: lists are made from what users did"):
        _lists(Store(root), *typed)


def test_settings_of_prompts_that_a_model_of_old_does_not_have_are_named(tmp_path):
    pairs = Result("pairs", "key", tmp_path, 0.0, True)
    (tmp_path / "manifest.json").write_text(json.dumps({"config": {"profile": True, "gone": 1}}))
    with pytest.raises(ValueError, match=r"no longer fit \(.*prompts\.gone: .*\): train it anew"):
        prompts_of(pairs)


INDEXED = (
    "data=tables",
    "embedding=lsa",
    "embedding.dimension=8",
    "quantizer=residual_kmeans",
    "quantizer.levels=2",
    "quantizer.codebook_size=4",
)
NAMES = [f"{color} {thing} {size}" for color in ("red", "blue") for thing in ("tea", "shoe", "car") for size in "smx"]


def _index(store: Store, folder: Path, ads: range, *overrides: str) -> pipeline.Indexed:
    """Index a folder of ads alone; ads 16, 17, ... have the text of ad 0, 1, ..."""
    folder.mkdir(exist_ok=True)
    rows = {"ad_id": [f"ad{i:02d}" for i in ads], "name": [NAMES[i % 16] for i in ads]}
    pl.DataFrame(rows).write_csv(folder / "ads.csv")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = load(compose("run", [*INDEXED, f"data.root={folder}", *overrides]))
    indexed = pipeline.index_ads(run, store)
    pipeline.inspect_index(run, store, indexed)
    return indexed


def _sids(indexed: pipeline.Indexed, name: str = "sids") -> dict[str, list[int]]:
    frame = tables.read(tables.SIDS, indexed.catalog.path / f"{name}.parquet")
    return dict(frame.select("ad_id", "sid").iter_rows())


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Three days: six ads come on the second, the first four go; they come back on the third."""
    folder = tmp_path_factory.mktemp("days")
    store = Store(folder / "store")
    first = _index(store, folder / "first", range(12))
    second = _index(store, folder / "second", range(4, 18), f"previous_catalog={first.catalog.key}")
    third = _index(store, folder / "third", range(18), f"previous_catalog={second.catalog.path}")
    return store, folder, (first, second, third)


def test_a_day_later_no_sid_has_moved_and_new_ads_have_one(days):
    _, _, (first, second, third) = days
    before, after, back = _sids(first), _sids(second), _sids(third)
    assert {ad: sid for ad, sid in after.items() if ad in before} == {
        f"ad{i:02d}": before[f"ad{i:02d}"] for i in range(4, 12)
    }
    assert _sids(second, "retired") == {f"ad{i:02d}": before[f"ad{i:02d}"] for i in range(4)}
    assert back == {**after, **before}
    assert len({tuple(sid) for sid in back.values()}) == 18
    about = [json.loads((day.catalog.path / "catalog.json").read_text()) for day in (first, second, third)]
    assert [(day["version"], day["new"], day["retired"], day["returned"]) for day in about] == [
        (1, 12, 0, 0),
        (2, 6, 4, 0),
        (3, 0, 0, 4),
    ]


def test_a_new_ad_with_a_known_text_has_its_codes_and_an_extra_code_of_its_own(days):
    _, _, (first, second, third) = days
    known, new = _sids(first)["ad04"], _sids(second)["ad16"]
    assert _sids(third)["ad00"][:-1] == new[:-1]
    assert known[:-1] == _sids(second)["ad04"][:-1]


def test_yesterdays_vectors_and_quantizer_are_taken_over_byte_by_byte(days):
    _, _, (first, second, _) = days
    for name in ("quantizer.safetensors", "quantizer.json"):
        assert (first.codes.path / name).read_bytes() == (second.codes.path / name).read_bytes()
    assert json.loads((second.embeddings.path / "embedding.json").read_text())["num_new"] == 4


def test_a_previous_catalog_asks_for_the_settings_of_then(days):
    store, folder, (first, _, _) = days
    with pytest.raises(
        ValueError, match=r"previous_catalog was made with quantizer\.codebook_size=4, now 5: S-IDs hold"
    ):
        _index(store, folder / "second", range(6), f"previous_catalog={first.catalog.key}", "quantizer.codebook_size=5")
    with pytest.raises(ValueError, match=r"previous_catalog is 'nope', but .*nope is no catalog in a store"):
        _index(store, folder / "second", range(6), "previous_catalog=nope")
    with pytest.raises(ValueError, match=r"is no catalog in a store"):
        _index(store, folder / "second", range(6), f"previous_catalog={first.codes.path}")
    with pytest.raises(ValueError, match=r"is no catalog in a store"):
        _index(store, folder / "second", range(6), f"previous_catalog={first.catalog.path.parent}")


def test_what_changes_no_number_may_change_from_day_to_day(days):
    store, folder, (first, second, _) = days
    today = _index(store, folder / "today", range(4, 18), f"previous_catalog={first.catalog.key}", "seed=3")
    assert _sids(today) == _sids(second)


def test_alignment_without_impressions_is_refused_before_any_tuning(tmp_path):
    (tmp_path / "world.json").write_text(json.dumps({"counts": {"impressions": 0}}))
    world = Result("world", "key", tmp_path, 0.0, True)
    with pytest.raises(ValueError, match=r"alignment is 'dpo', but the data has no impressions.*or use alignment=none"):
        pipeline._check_alignment(load_run(), world)
    pipeline._check_alignment(load_run("alignment=none"), world)

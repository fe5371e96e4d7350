import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.artifacts import Result, Store, origins
from leadre.baselines.config import (
    BaselinesConfig,
    LearnedConfig,
    LinearConfig,
    SasrecConfig,
    TigerConfig,
    TwoTowerConfig,
)
from leadre.baselines.learn import learn, prepare
from leadre.baselines.past import read_known
from leadre.baselines.recommend import recommend
from leadre.baselines.retriever import train_and_list
from leadre.config import CONF, load
from leadre.data.split import leave_one_out
from leadre.pipeline import learn_baselines
from leadre.training.logs import read_metrics

NUM_ADS, NUM_USERS = 8, 24
TWO_TOWER = TwoTowerConfig(
    kind="two_tower",
    content_behaviors=True,
    window_days=90,
    max_ads=4,
    max_contents=4,
    width=8,
    hidden=16,
    dropout=0.0,
    temperature=0.2,
    learning_rate=0.03,
    min_learning_rate=0.003,
    warmup_share=0.1,
    weight_decay=0.0,
    batch_size=32,
    epochs=12,
    list_length=5,
    validations=2,
    valid_users=20,
    exclude_seen=False,
    seed=0,
)
SASREC = SasrecConfig(
    kind="sasrec",
    max_ads=4,
    width=16,
    heads=2,
    inner=16,
    layers=1,
    dropout=0.0,
    learning_rate=0.03,
    min_learning_rate=0.003,
    warmup_share=0.1,
    weight_decay=0.0,
    batch_size=8,
    epochs=12,
    list_length=5,
    validations=2,
    valid_users=20,
    exclude_seen=False,
    seed=0,
)
TIGER = TigerConfig(
    kind="tiger",
    width=16,
    heads=2,
    head_width=8,
    inner=32,
    encoder_layers=1,
    decoder_layers=1,
    dropout=0.0,
    max_ads=2,  # no list reads more than its training did
    user_tokens=0,
    learning_rate=0.02,
    min_learning_rate=0.002,
    warmup_share=0.1,
    weight_decay=0.0,
    batch_size=32,
    steps=60,
    beam_width=8,
    list_length=5,
    validations=2,
    valid_users=20,
    exclude_seen=False,
    seed=0,
)
CONFIGS = (TWO_TOWER, SASREC, TIGER)
ALL = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


def _short(config, **changes):
    """A training of a few steps."""
    return replace(config, **({"steps": 4} if config.kind == "tiger" else {"epochs": 2}), **changes)


def _frame(table, rows):
    return pl.DataFrame(rows, schema=table.schema, orient="row")


@pytest.fixture
def world():
    """Who clicked ad n clicks ad n + 1 next, and whoever searched content c clicks ad c."""
    rng, behaviors = np.random.default_rng(0), []
    for user in range(NUM_USERS):
        first = int(rng.integers(NUM_ADS))
        for step in range(6):
            ad, time = (first + step) % NUM_ADS, 100 * (step + 1)
            behaviors += [
                (f"u{user:02}", f"c{ad}", "content", "search", time - 7),
                (f"u{user:02}", f"a{ad}", "ad", "click", time),
            ]
    behaviors = _frame(tables.BEHAVIORS, behaviors)
    ads = [(f"a{n}", "name", None, "X", None, [], None, None, None, "text") for n in range(NUM_ADS)]
    return {
        "ads": _frame(tables.ADS, ads),
        "users": _frame(tables.USERS, [(f"u{n:02}", "18-24", *[None] * 5) for n in range(NUM_USERS)]),
        "contents": _frame(tables.CONTENTS, [(f"c{n}", "t", "Y", None) for n in range(NUM_ADS)]),
        "behaviors": behaviors,
        "split": leave_one_out(behaviors, min_ads=3),
        "catalog": [f"a{n}" for n in (3, 1, 0, 2, 4, 5, 6, 7)],
    }


@pytest.fixture
def run(tmp_path, compute, logger):
    def made(config, world, name="out"):
        folder = tmp_path / name
        for part in ("world", "catalog", "out"):
            (folder / part).mkdir(parents=True)
        for part in ("ads", "users", "contents", "behaviors", "split"):
            tables.write(getattr(tables, part.upper()), world[part], folder / "world" / f"{part}.parquet")
        sids = _frame(tables.SIDS, [(ad, [n], f"<a_{n}>") for n, ad in enumerate(world["catalog"])])
        tables.write(tables.SIDS, sids, folder / "catalog" / "sids.parquet")
        (folder / "catalog" / "tokens.json").write_text(json.dumps({"levels": [len(world["catalog"])]}))
        learn(config, folder / "world", folder / "catalog", out=folder / "out", compute=compute, logger=logger)
        return folder

    return made


def _lists(folder):
    return tables.read(tables.LISTS, folder / "out" / "lists.parquet")


@ALL
def test_it_learns_what_comes_next_and_tells_of_its_training(run, world, config):
    folder = run(config, world)
    lists = _lists(folder)
    test = world["split"].filter(pl.col("role") == "test")
    assert lists["user_id"].unique().sort().to_list() == test["user_id"].to_list()
    assert lists["rank"].to_list() == [1, 2, 3, 4, 5] * NUM_USERS
    assert not lists.select("user_id", "ad_id").is_duplicated().any()
    hits = lists.filter(pl.col("rank") == 1).join(test, on=["user_id", "ad_id"], how="semi")
    assert hits.height >= 0.9 * NUM_USERS
    valid = [row for row in read_metrics(folder / "out" / "metrics.jsonl") if "valid/hr@1" in row]
    assert len(valid) == 2
    assert valid[-1]["valid/hr@1"] >= 0.9
    budget = json.loads((folder / "out" / "budget.json").read_text())
    assert budget.keys() == {"steps", "rows"}
    assert budget["rows"] > budget["steps"] > 10


def test_all_are_validated_on_the_same_users(run, world, compute, logger, tmp_path):
    folder = run(_short(SASREC), world)
    known = read_known(folder / "world", folder / "catalog")

    def validated(config):
        asked = []
        learner = prepare(config, known, folder / "catalog")
        spied = learner._replace(inputs=lambda targets: asked.append(targets) or learner.inputs(targets))
        out = tmp_path / f"{config.kind}_{config.seed}"
        out.mkdir()
        train_and_list(config, spied, out=out, compute=compute, logger=logger)
        valid, test = asked
        assert test["user_id"].n_unique() == NUM_USERS
        return valid["user_id"].to_list()

    drawn = {seed: [validated(_short(config, seed=seed, valid_users=9)) for config in CONFIGS] for seed in (0, 1)}
    assert all(users == drawn[seed][0] for seed in drawn for users in drawn[seed])
    assert drawn[0][0] != drawn[1][0]
    assert [len(set(drawn[seed][0])) for seed in drawn] == [9, 9]


@ALL
def test_one_seed_gives_one_result_and_another_seed_another(run, world, config):
    first = _lists(run(_short(config), world, "1"))
    assert first.equals(_lists(run(_short(config), world, "2")))
    assert not first.equals(_lists(run(_short(config, seed=1), world, "3")))


@pytest.mark.parametrize("config", [TWO_TOWER, SASREC], ids=lambda config: config.kind)
def test_without_s_ids_the_order_of_the_catalog_changes_no_list(run, world, config):
    other = {**world, "catalog": world["catalog"][::-1]}
    assert _lists(run(_short(config), world, "1")).equals(_lists(run(_short(config), other, "2")))


@ALL
def test_what_happens_at_or_after_the_test_target_changes_no_list(run, world, config):
    first = _lists(run(_short(config), world, "1"))
    times = world["split"].filter(pl.col("role") == "test").select("user_id", "time")
    later = [
        times.select("user_id", item_id=pl.lit(item), domain=pl.lit(domain), action=pl.lit("click"), time="time")
        for item, domain in (("a3", "ad"), ("c1", "content"))
    ]
    other = pl.when(pl.col("role") == "test").then(pl.lit("a3")).otherwise(pl.col("ad_id"))
    changed = {
        "behaviors": pl.concat([world["behaviors"].join(times, on=["user_id", "time"], how="anti"), *later]),
        "split": world["split"].with_columns(ad_id=other),
    }
    assert first.equals(_lists(run(_short(config), {**world, **changed}, "2")))


@ALL
def test_the_ads_of_valid_targets_change_no_list(run, world, config):
    other = pl.when(pl.col("role") == "valid").then(pl.lit("a3")).otherwise(pl.col("ad_id"))
    changed = world["split"].with_columns(ad_id=other)
    assert not changed.equals(world["split"])
    assert _lists(run(_short(config), world, "1")).equals(_lists(run(_short(config), {**world, "split": changed}, "2")))


@ALL
def test_ads_of_the_history_leave_the_lists_where_that_is_asked_for(run, world, config):
    lists = _lists(run(_short(config, exclude_seen=True), world))
    test = world["split"].filter(pl.col("role") == "test").select("user_id", now="time")
    seen = (
        world["behaviors"]
        .filter(pl.col("domain") == "ad")
        .join(test, on="user_id")
        .filter(pl.col("time") < pl.col("now"))
    )
    assert lists.join(seen, left_on=["user_id", "ad_id"], right_on=["user_id", "item_id"], how="semi").is_empty()
    assert lists["rank"].to_list() == [1, 2, 3] * NUM_USERS  # 5 of 8 were seen


def test_without_content_behaviors_no_content_is_read(run, world):
    config = replace(TWO_TOWER, epochs=2, content_behaviors=False)
    without = world["behaviors"].filter(pl.col("domain") == "ad")
    assert _lists(run(config, world, "1")).equals(_lists(run(config, {**world, "behaviors": without}, "2")))


@ALL
def test_ads_outside_the_catalog_and_users_without_history_are_borne(run, world, config):
    behaviors = world["behaviors"].filter(
        ~((pl.col("user_id") == "u00") & (pl.col("time") < 600))  # nothing before its test target
    )
    lists = _lists(run(_short(config), {**world, "behaviors": behaviors, "catalog": ["a1", "a0", "a5", "a7"]}))
    assert set(lists["ad_id"]) == {"a0", "a1", "a5", "a7"}
    assert lists["user_id"].n_unique() == NUM_USERS


@ALL
def test_without_valid_targets_or_validations_it_learns_without_looking(run, world, config):
    split = world["split"].filter(pl.col("role") != "valid")
    never = replace(_short(config), validations=0)
    for name, folder in [("1", run(_short(config), {**world, "split": split}, "1")), ("2", run(never, world, "2"))]:
        rows = read_metrics(folder / "out" / "metrics.jsonl")
        assert any("train/loss" in row for row in rows), name
        assert not any("valid/hr@1" in row for row in rows), name


@ALL
def test_without_test_targets_the_lists_are_empty(run, world, config):
    split = world["split"].filter(pl.col("role") != "test")
    assert _lists(run(_short(config), {**world, "split": split})).is_empty()


@ALL
def test_a_catalog_without_any_train_target_is_refused(run, world, config):
    split = world["split"].filter(pl.col("role") != "train")
    with pytest.raises(ValueError, match="0 train targets are ads of the catalog: a learned baseline needs some"):
        run(config, {**world, "split": split})


LINEAR = LinearConfig(
    content_behaviors=True,
    half_lives_days=(2.0,),
    min_count=1,
    learning_rate=0.05,
    batch_size=8,
    max_epochs=1,
    patience=1,
)


def test_the_lists_of_learned_baselines_stand_beside_the_others_under_their_names(run, world, tmp_path):
    learned = {"two": replace(TWO_TOWER, epochs=1), "one": replace(SASREC, epochs=1)}
    config = BaselinesConfig(seed=0, list_length=4, window_days=90, linear=LINEAR, learned=learned)
    made = {name: run(learned[name], world, name) for name in sorted(learned)}
    out = tmp_path / "all"
    out.mkdir()
    recommend(config, made["one"] / "world", made["one"] / "catalog", *(made[n] / "out" for n in sorted(made)), out=out)
    assert sorted(path.stem for path in out.iterdir()) == ["linear", "one", "own_history", "popularity", "two"]
    for name, folder in made.items():
        assert tables.read(tables.LISTS, out / f"{name}.parquet").equals(_lists(folder))


def test_each_learned_baseline_is_a_result_of_its_own_and_reused(run, world, tmp_path):
    made = run(replace(SASREC, epochs=1), world)
    inputs = [Result(name, name, made / name, 0.0, reused=True) for name in ("world", "catalog")]
    given = ["baselines=two_tower", "+baselines/learned@baselines.learned.other=sasrec", "compute.accelerator=cpu"]
    given += [
        f"baselines.learned.{name}.{setting}=1" for name in ("two_tower", "other") for setting in ("epochs", "width")
    ]

    def learned(*changes):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            settings = load(compose("run", [*given, "baselines.learned.other.heads=1", *changes]))
        store = Store(tmp_path / "store")
        results = learn_baselines(settings, store, *inputs)
        table = store.make("baselines", recommend, settings.baselines, *inputs, *results.values())
        return {result.stage: result.reused for result in store.results}, table

    names = ["baseline_other", "baseline_two_tower", "baselines"]
    assert learned()[0] == dict.fromkeys(names, False)
    reused, table = learned()
    assert reused == dict.fromkeys(names, True)
    assert set(origins(table.path, names)) == set(names)
    assert learned("baselines.learned.other.seed=5")[0] == dict(zip(names, (False, True, False), strict=True))


@pytest.mark.parametrize("name", ["default", "two_tower", "sasrec", "tiger", "learned"])
def test_the_baselines_in_conf_compose(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        learned = load(compose("run", [f"baselines={name}", "seed=7", "baselines.list_length=9"])).baselines.learned
    expected = {"default": [], "learned": ["sasrec", "tiger", "two_tower", "two_tower_ads"]}
    assert sorted(learned) == expected.get(name, [name])
    assert all((config.seed, config.list_length) == (7, 9) for config in learned.values())
    if name == "learned":
        assert replace(learned["two_tower"], content_behaviors=False) == learned["two_tower_ads"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learned": {"oracle": SASREC}}, "learned has the name 'oracle', which other lists have: choose another name"),
        ({"learned": {"../up": SASREC}}, "should match pattern"),
    ],
)
def test_names_that_are_taken_or_no_file_names_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        BaselinesConfig(**({"seed": 0, "list_length": 4, "window_days": 90, "linear": LINEAR} | change))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (SASREC, {"heads": 3}, "width is 16, but 3 heads share it: give a multiple of heads"),
        (SASREC, {"min_learning_rate": 1.0}, "min_learning_rate is 1, but the rate falls to it from learning_rate"),
        (TWO_TOWER, {"min_learning_rate": 1.0}, "min_learning_rate is 1, but the rate falls to it from learning_rate"),
        (TIGER, {"min_learning_rate": 1.0}, "min_learning_rate is 1, but the rate falls to it from learning_rate"),
        (TWO_TOWER, {"dropout": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config, change, message):
    learned = TypeAdapter(LearnedConfig)
    plain = json.loads(learned.dump_json(config)) | change
    with pytest.raises(ValidationError, match=message):
        learned.validate_json(json.dumps(plain))

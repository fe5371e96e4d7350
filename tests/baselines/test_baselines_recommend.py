import math
from functools import partial

import numpy as np
import polars as pl
import pytest

from leadre import tables
from leadre.baselines.config import BaselinesConfig, LinearConfig
from leadre.baselines.features import Tables, describe_targets, to_bags, vocabulary
from leadre.baselines.lists import ranked_in_chunks
from leadre.baselines.recommend import recommend
from leadre.data.split import leave_one_out

DAY = 86_400
NAMES = ("popularity", "own_history", "linear")
CONFIG = BaselinesConfig(
    seed=0,
    list_length=4,
    window_days=90,
    linear=LinearConfig(
        content_behaviors=True,
        half_lives_days=(2.0, 20.0),
        min_count=1,
        learning_rate=0.05,
        batch_size=8,
        max_epochs=5,
        patience=2,
    ),
    learned={},
)


def _frame(table, rows):
    return pl.DataFrame(rows, schema=table.schema, orient="row")


ADS = _frame(
    tables.ADS,
    [(f"a{n}", f"name {n}", None, "G", "X" if n < 3 else "Y", ["brand_B"], None, None, None, "text") for n in range(6)],
)
USERS = _frame(tables.USERS, [(f"u{n}", "18-24", None, None, None, None, None) for n in range(8)])
CONTENTS = _frame(tables.CONTENTS, [("c0", "t", "X", None), ("c1", "t", "Y", "S")])


def _behaviors():
    rng = np.random.default_rng(0)
    rows = []
    for user in range(8):
        for step in range(6):
            rows.append((f"u{user}", f"a{rng.integers(0, 6)}", "ad", "click", DAY * (step + 1)))
            rows.append((f"u{user}", f"c{rng.integers(0, 2)}", "content", "search", DAY * (step + 1) - 7))
    return _frame(tables.BEHAVIORS, rows).sort("user_id", "time")


def _run(folder, *, behaviors, split, catalog):
    world, codes, out = folder / "world", folder / "catalog", folder / "out"
    for path in (world, codes, out):
        path.mkdir(parents=True)
    contained = (
        ("ads", tables.ADS, ADS),
        ("users", tables.USERS, USERS),
        ("contents", tables.CONTENTS, CONTENTS),
        ("behaviors", tables.BEHAVIORS, behaviors),
        ("split", tables.SPLIT, split),
    )
    for name, table, frame in contained:
        tables.write(table, frame, world / f"{name}.parquet")
    sids = _frame(tables.SIDS, [(ad, [n], f"<a_{n}>") for n, ad in enumerate(catalog)])
    tables.write(tables.SIDS, sids, codes / "sids.parquet")
    recommend(CONFIG, world, codes, out=out)
    return {name: tables.read(tables.LISTS, out / f"{name}.parquet") for name in NAMES}


@pytest.fixture
def plain():
    behaviors = _behaviors()
    return {
        "behaviors": behaviors,
        "split": leave_one_out(behaviors, min_ads=3),
        "catalog": ["a5", "a0", "a1", "a2", "a3"],
    }


def test_every_list_has_ads_of_the_catalog_only_and_all_test_users(tmp_path, plain):
    for lists in _run(tmp_path, **plain).values():
        assert lists["user_id"].unique().sort().to_list() == [f"u{n}" for n in range(8)]
        assert lists["rank"].to_list() == list(range(1, 5)) * 8
        assert set(lists["ad_id"]) <= set(plain["catalog"])
        assert not lists.select("user_id", "ad_id").is_duplicated().any()
        assert lists.select((pl.col("score").diff().over("user_id").fill_null(0) <= 0).all()).item()


def test_the_order_of_the_catalog_does_not_matter(tmp_path, plain):
    first = _run(tmp_path / "1", **plain)
    second = _run(tmp_path / "2", **{**plain, "catalog": plain["catalog"][::-1]})
    for name in NAMES:
        assert first[name].equals(second[name])


def test_what_happens_at_or_after_the_test_target_changes_no_list(tmp_path, plain):
    first = _run(tmp_path / "1", **plain)
    behaviors = plain["behaviors"]
    times = plain["split"].filter(pl.col("role") == "test").select("user_id", "time")
    later = [
        times.select("user_id", item_id=pl.lit(item), domain=pl.lit(domain), action=pl.lit("click"), time="time")
        for item, domain in (("a3", "ad"), ("c1", "content"))
    ]
    targets = behaviors.join(times, on=["user_id", "time"], how="semi").with_columns(
        item_id=pl.when(pl.col("domain") == "ad").then(pl.lit("a1")).otherwise(pl.col("item_id"))
    )
    changed = pl.concat([behaviors.join(times, on=["user_id", "time"], how="anti"), targets, *later]).sort(
        "user_id", "time"
    )
    second = _run(tmp_path / "2", **{**plain, "behaviors": changed})
    for name in NAMES:
        assert first[name].equals(second[name]), name


def test_the_ad_of_a_test_target_changes_no_list(tmp_path, plain):
    first = _run(tmp_path / "1", **plain)
    other = pl.when(pl.col("role") == "test").then(pl.lit("a3")).otherwise(pl.col("ad_id"))
    split = plain["split"].with_columns(ad_id=other)
    assert not split.equals(plain["split"])
    second = _run(tmp_path / "2", **{**plain, "split": split})
    for name in NAMES:
        assert first[name].equals(second[name]), name


def test_users_in_chunks_get_the_lists_of_all_at_once(tmp_path, plain, monkeypatch):
    whole = _run(tmp_path / "1", **plain)
    chunked = partial(ranked_in_chunks, chunk=3)
    monkeypatch.setattr("leadre.baselines.recommend.ranked_in_chunks", chunked)
    parts = _run(tmp_path / "2", **plain)
    for name in NAMES:
        assert whole[name].equals(parts[name]), name


def test_a_catalog_without_any_train_target_is_refused(tmp_path, plain):
    split = plain["split"].filter(pl.col("role") != "train")
    with pytest.raises(ValueError, match="0 train targets are ads of the catalog: the linear model needs some"):
        _run(tmp_path, **{**plain, "split": split})


def test_features_by_hand():
    """A target at day 10: ad a0 two days before (log 1.5 at half-life 2), content at the target's own time."""
    behaviors = _frame(
        tables.BEHAVIORS, [("u0", "a0", "ad", "click", 8 * DAY), ("u0", "c1", "content", "search", 10 * DAY)]
    )
    targets = pl.DataFrame({"user_id": ["u0"], "time": [10 * DAY]})
    told = describe_targets(
        Tables(ADS, USERS, CONTENTS, behaviors),
        targets,
        window_days=90,
        half_lives_days=(2.0,),
        content_behaviors=True,
    )
    assert dict(told.select("feature", "weight").iter_rows()) == {
        "profile age 18-24": 1.0,
        "2 days ad ad a0": pytest.approx(math.log(1.5)),
        "2 days ad first_category G": pytest.approx(math.log(1.5)),
        "2 days ad second_category X": pytest.approx(math.log(1.5)),
        "2 days ad attribute brand_B": pytest.approx(math.log(1.5)),
    }


def test_content_is_a_feature_unless_it_is_left_out():
    behaviors = _frame(tables.BEHAVIORS, [("u0", "c1", "content", "search", 1)])
    targets = pl.DataFrame({"user_id": ["u0"], "time": [2]})
    sizes = {
        content: describe_targets(
            Tables(ADS, USERS, CONTENTS, behaviors),
            targets,
            window_days=90,
            half_lives_days=(2.0,),
            content_behaviors=content,
        ).height
        for content in (True, False)
    }
    assert sizes == {True: 3, False: 1}


def test_unknown_features_are_dropped_and_rows_without_any_are_empty():
    told = pl.DataFrame({"target": [0, 0, 2], "feature": ["x", "y", "x"], "weight": [1.0, 2.0, 3.0]})
    names = vocabulary(told, min_count=2)
    assert names.to_list() == ["x"]
    bags = to_bags(told, names, num_targets=4)
    assert (bags.feature.tolist(), bags.weight.tolist(), bags.offsets.tolist()) == ([0, 0], [1.0, 3.0], [0, 1, 1, 2, 2])

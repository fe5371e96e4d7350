import json
import logging

import polars as pl
import pytest

from leadre import tables
from leadre.metrics.config import MetricsConfig
from leadre.metrics.score import score

SETTINGS = {
    "hr_ks": (1, 2),
    "ndcg_ks": (2,),
    "ltrr_ks": (2,),
    "value_ks": (2,),
    "diversity_k": 2,
    "confidence": 0.95,
    "bootstrap_samples": 20,
    "seed": 0,
}
CONFIG = MetricsConfig(**SETTINGS)
ADS = ["c", "a", "b", "d"]  # the catalog's order is that of the S-IDs, not of the names
CLICKED = {"u1": "a", "u2": "b", "u3": "c", "u4": "gone"}
LEADRE_LISTS = {"u1": ["a", "b"], "u2": ["gone", "b"], "u5": ["a"], "stranger": ["d"]}
PART = "lists/part-00000.parquet"
POPULAR = {"u1": ["c", "a"], "u2": ["c", "a"], "u3": ["c", "a"]}
LABELS = {"u1": ["a", "b", "c", "d"], "u2": ["d"]}


def lists(of_user):
    rows = [(u, i + 1, ad, 8.0 - i) for u, ads in of_user.items() for i, ad in enumerate(ads)]
    return pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row")


@pytest.fixture
def folders(tmp_path):
    made = {name: tmp_path / name for name in ("world", "catalog", "baselines", "ltr", "generations", "out")}
    for folder in (*made.values(), made["generations"] / "lists"):
        folder.mkdir()
    categories = {"a": "food", "b": "food", "c": None, "d": "books"}
    rows = [
        {"ad_id": ad, "first_category": category, "attributes": [], "description": ""}
        for ad, category in categories.items()
    ]
    ads = pl.DataFrame(rows, schema=tables.ADS.schema)
    tables.write(tables.ADS, ads, made["world"] / "ads.parquet")
    split = [(user, "test", ad, 9) for user, ad in CLICKED.items()] + [("u5", "train", "a", 1), ("u1", "train", "b", 1)]
    tables.write(
        tables.SPLIT,
        pl.DataFrame(split, schema=tables.SPLIT.schema, orient="row"),
        made["world"] / "split.parquet",
    )
    sids = pl.DataFrame(
        {"ad_id": ADS, "sid": [[i, 0] for i in range(4)], "name": [f"<a_{i}> <b_0>" for i in range(4)]},
        schema=tables.SIDS.schema,
    )
    tables.write(tables.SIDS, sids, made["catalog"] / "sids.parquet")
    tables.write(tables.LISTS, lists(POPULAR), made["baselines"] / "popularity.parquet")
    tables.write(tables.LISTS, lists(LABELS), made["ltr"] / "labels.parquet")
    tables.write(tables.LISTS, lists(LEADRE_LISTS), made["generations"] / PART)
    return made


def scored(folders, config=CONFIG, values=()):
    read = [folders[name] for name in ("world", "catalog", "baselines", "ltr", "generations")]
    score(config, *read, *values, out=folders["out"])
    return json.loads((folders["out"] / "scores.json").read_text())


def test_scores_by_hand(folders):
    scores = scored(folders)
    leadre, popular = scores["systems"]["LEADRE"], scores["systems"]["popularity"]
    assert scores["users"] == 3
    assert scores["excluded"] == {"no_test_target": 1, "target_outside_catalog": 1}
    # u1: a at place 1; u2: an ad that is gone, then b; u3: no list.
    assert (leadre["HR@1"], leadre["HR@2"]) == pytest.approx((1 / 3, 2 / 3))
    assert leadre["NDCG@2"] == pytest.approx((1 + 0.6309297535714575) / 3)
    assert leadre["LTRR@2"] == pytest.approx((2 / 4 + 0) / 2)  # u3 has no labels
    assert leadre["LTRR_capped@2"] == pytest.approx((2 / 2 + 0) / 2)
    assert leadre["LTRR_value@2"] == pytest.approx(((8 + 7) / (8 + 7) + 0) / 2)
    assert leadre["Abundance@2"] == pytest.approx((1 + 1 + 0) / 3)
    assert leadre["Concentration@2"] == 1
    assert leadre["Diversity@2"] == pytest.approx(2 / 3)
    assert (popular["HR@1"], popular["HR@2"]) == pytest.approx((1 / 3, 2 / 3))
    assert popular["Diversity@2"] == pytest.approx(2)  # the ad without a category is a category of its own
    assert scores["ltr_users"] == 2
    assert scores["chance"] == {"HR@1": 0.25, "HR@2": 0.5}


def test_what_is_wrong_with_the_lists_is_counted(folders):
    leadre = scored(folders)["systems"]["LEADRE"]
    names = ("invalid_ads", "duplicate_ads", "empty_lists", "short_lists", "other_users")
    assert {name: leadre[name] for name in names} == {
        "invalid_ads": 1,
        "duplicate_ads": 0,
        "empty_lists": 1,
        "short_lists": 2,
        "other_users": 2,
    }
    assert (leadre["invalid_rate"], leadre["duplicate_rate"]) == (1 / 4, 0)  # of u1's two ads and u2's two


def test_the_place_of_the_clicked_ad_is_told_for_each_user_and_system(folders):
    scored(folders)
    rows = pl.read_parquet(folders["out"] / "per_user.parquet")
    assert rows.columns == ["user_id", "system", "rank", "LTRR@2", "Diversity@2"]
    assert rows.select("user_id", "system", "rank").rows() == [
        ("u1", "LEADRE", 1), ("u2", "LEADRE", 2), ("u3", "LEADRE", None),
        ("u1", "popularity", 2), ("u2", "popularity", None), ("u3", "popularity", 1),
    ]  # fmt: skip
    assert rows["LTRR@2"].to_list() == [0.5, 0.0, None, 0.5, 0.0, None]  # u3 has no labels
    assert rows["Diversity@2"].to_list() == [1, 1, 0, 2, 2, 2]


@pytest.fixture
def values(tmp_path):
    """u1's ads are worth 6 (a), 2 (b) and 100 (an ad that no list has); u2's b is worth 5; u3's a is worth 1."""
    (tmp_path / "values").mkdir()
    rows = [("u1", "a", 6.0), ("u1", "b", 2.0), ("u1", "d", 100.0), ("u2", "b", 5.0), ("u3", "a", 1.0)]
    rows += [("stranger", "a", 9.0), ("u1", "gone", 9.0)]
    frame = pl.DataFrame(rows, schema=tables.VALUES.schema, orient="row")
    tables.write(tables.VALUES, frame, tmp_path / "values" / "values.parquet")
    return tmp_path / "values"


def test_value_by_hand_where_values_are_given(folders, values):
    scores = scored(folders, values=[values])
    # LEADRE: u1 has a and b; u2 a gone ad and b; u3 nothing. popularity: c, then a, of each user.
    assert scores["systems"]["LEADRE"]["Value@2"] == pytest.approx(((6 + 2) / 2 + 5 / 2 + 0) / 3)
    assert scores["systems"]["popularity"]["Value@2"] == pytest.approx((6 / 2 + 0 + 1 / 2) / 3)
    assert scores["differences"]["LEADRE - popularity"]["Value@2"]["mean"] == pytest.approx(1.0)
    low, high = scores["intervals"]["LEADRE"]["Value@2"]
    assert low <= 6.5 / 3 <= high
    assert scores["value_users"] == 3
    rows = pl.read_parquet(folders["out"] / "per_user.parquet")
    assert rows["Value@2"].to_list() == [4.0, 2.5, 0.0, 3.0, 0.0, 0.5]


def test_a_user_without_any_appraised_ad_has_no_value_and_is_counted(folders, values):
    table = pl.read_parquet(values / "values.parquet").filter(pl.col("user_id") != "u3")
    tables.write(tables.VALUES, table, values / "values.parquet")
    scores = scored(folders, values=[values])
    assert scores["value_users"] == 2
    assert scores["systems"]["LEADRE"]["Value@2"] == pytest.approx(6.5 / 2)
    rows = pl.read_parquet(folders["out"] / "per_user.parquet")
    assert rows["Value@2"].to_list() == [4.0, 2.5, None, 3.0, 0.0, None]


def test_without_values_there_is_no_value(folders):
    scores = scored(folders)
    assert scores["value_users"] == 0
    assert "Value@2" not in scores["systems"]["LEADRE"]


def test_intervals_hold_their_means_and_differences_are_paired(folders):
    scores = scored(folders)
    low, high = scores["intervals"]["LEADRE"]["HR@2"]
    assert low < 2 / 3 < high
    difference = scores["differences"]["LEADRE - popularity"]["HR@2"]
    assert difference["mean"] == pytest.approx(0)
    assert difference["low"] <= 0 <= difference["high"]
    assert difference["ratio"] == pytest.approx(1)
    assert scores["bootstrap"] == {"samples": 20, "seed": 0, "confidence": 0.95}


def test_the_ratio_to_a_system_that_finds_nothing_is_null(folders):
    tables.write(tables.LISTS, lists({"u1": ["d"]}), folders["baselines"] / "popularity.parquet")
    difference = scored(folders)["differences"]["LEADRE - popularity"]["HR@2"]
    assert difference["ratio"] is None
    assert difference["mean"] == pytest.approx(2 / 3)


def test_the_oracle_is_a_system_where_it_exists(folders):
    assert list(scored(folders)["systems"]) == ["LEADRE", "popularity"]
    tables.write(tables.LISTS, lists({u: [ad] for u, ad in CLICKED.items()}), folders["world"] / "oracle.parquet")
    assert scored(folders)["systems"]["oracle"]["HR@1"] == 1


def test_a_duplicate_ad_is_dropped_and_counted(folders):
    tables.write(tables.LISTS, lists({"u1": ["b", "b", "a"]}), folders["generations"] / PART)
    leadre = scored(folders)["systems"]["LEADRE"]
    assert leadre["duplicate_ads"] == 1
    assert leadre["duplicate_rate"] == 1 / 3
    assert leadre["HR@2"] == pytest.approx(1 / 3)


def test_the_same_files_give_the_same_bytes_whatever_the_order_of_their_rows(folders):
    scored(folders)
    before = [(folders["out"] / name).read_bytes() for name in ("scores.json", "per_user.parquet")]
    for path in (folders["world"] / "split.parquet", folders["generations"] / PART):
        pl.read_parquet(path).reverse().write_parquet(path)
    scored(folders)
    assert before == [(folders["out"] / name).read_bytes() for name in ("scores.json", "per_user.parquet")]


def test_the_parts_of_lists_are_scored_as_one_table(folders):
    whole = scored(folders)
    given = lists(LEADRE_LISTS)
    for number, user in enumerate(LEADRE_LISTS):
        path = folders["generations"] / f"lists/part-{number:05d}.parquet"
        tables.write(tables.LISTS, given.filter(user_id=user), path)
    assert scored(folders) == whole


def test_without_labels_ltrr_is_null_and_everything_else_stays(folders):
    tables.write(tables.LISTS, lists({}), folders["ltr"] / "labels.parquet")
    scores = scored(folders)
    assert scores["systems"]["LEADRE"]["LTRR@2"] is None
    assert scores["intervals"]["LEADRE"]["LTRR@2"] == [None, None]
    assert scores["systems"]["LEADRE"]["HR@2"] == pytest.approx(2 / 3)


def test_an_empty_table_of_lists_scores_nothing(folders):
    tables.write(tables.LISTS, lists({}), folders["generations"] / PART)
    leadre = scored(folders)["systems"]["LEADRE"]
    assert (leadre["HR@2"], leadre["invalid_rate"], leadre["duplicate_rate"]) == (0, 0, 0)


def test_a_cut_behind_the_end_of_every_list_is_warned_of(folders, caplog):
    with caplog.at_level(logging.WARNING):
        scored(folders, MetricsConfig(**{**SETTINGS, "hr_ks": (1, 50)}))
    assert "LEADRE: no list has more than 2 ads, so numbers at 50 cannot pass those at 2" in caplog.text


def test_broken_tables_are_refused(folders):
    lists_path, split_path = folders["generations"] / PART, folders["world"] / "split.parquet"
    good = pl.read_parquet(lists_path)
    tables.write(tables.LISTS, good.with_columns(pl.col("rank") + 1), lists_path)
    with pytest.raises(ValueError, match=r"ranks of user 'stranger' \(one of 4\) are not 1..n, each once"):
        scored(folders)
    tables.write(tables.LISTS, good, lists_path)
    split = pl.read_parquet(split_path)
    tables.write(tables.SPLIT, pl.concat([split, split.head(1)]), split_path)
    with pytest.raises(ValueError, match="a user has one test target"):
        scored(folders)
    tables.write(tables.SPLIT, split.filter(pl.col("role") == "train"), split_path)
    with pytest.raises(ValueError, match="no user can be scored"):
        scored(folders)


def test_ads_outside_the_catalog_leave_the_oracles_lists_alone(folders):
    given = lists({"u1": ["gone", "a"], "u2": ["gone", "d", "b"], "u3": ["gone"]})
    tables.write(tables.LISTS, given, folders["world"] / "oracle.parquet")
    tables.write(tables.LISTS, given, folders["generations"] / PART)
    scores = scored(folders)
    oracle, leadre = scores["systems"]["oracle"], scores["systems"]["LEADRE"]
    assert (oracle["HR@1"], oracle["HR@2"], oracle["invalid_ads"]) == pytest.approx((1 / 3, 2 / 3, 0))
    assert (leadre["HR@1"], leadre["HR@2"], leadre["invalid_ads"]) == pytest.approx((0, 1 / 3, 3))
    ranks = pl.read_parquet(folders["out"] / "per_user.parquet").filter(system="oracle")
    assert ranks["rank"].to_list() == [1, 2, None]

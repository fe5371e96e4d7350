import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import leadre.ltr
from leadre import tables
from leadre.ltr.judge import captured
from leadre.ltr.known import read
from leadre.ltr.learn_to_rank import _money, _sample, learn_to_rank
from leadre.ltr.network import Network
from leadre.ltr.ranker import estimate, load
from leadre.ltr.rows import Rows

DAY = 86_400
NUM_USERS = 60
LABELS = ("labels", "valid_labels")


def _targets(frames, role, trained):
    """SPLIT rows of the label users."""
    users = tables.read(tables.LTR_USERS, trained / "users.parquet").filter(role="label")["user_id"]
    return frames["split"].filter(pl.col("role") == role, pl.col("user_id").is_in(users.implode())).sort("user_id")


def _run(config, frames, catalog, folder, written):
    out = folder / "out"
    out.mkdir(parents=True)
    learn_to_rank(config, written(frames, folder / "world"), catalog, out=out)
    return out


def _bytes(folder, *names):
    return [(folder / name).read_bytes() for name in names]


def test_labels_are_the_ads_of_highest_value_at_the_targets_time(world, trained, frames, catalog):
    ranker, ads = load(trained), frames["ads"]["ad_id"].sort().to_list()
    for role, name in (("test", "labels"), ("valid", "valid_labels")):
        targets, labels = _targets(frames, role, trained), tables.read(tables.LISTS, trained / f"{name}.parquet")
        value = estimate(ranker, read(world), targets.select("user_id", "time"), ads).value
        assert labels["user_id"].unique().sort().to_list() == targets["user_id"].to_list()
        for user, row in zip(targets["user_id"], value, strict=True):
            own = labels.filter(user_id=user)
            best = np.lexsort((np.arange(len(ads)), -row))[:4]
            assert own["rank"].to_list() == [1, 2, 3, 4]
            assert own["ad_id"].to_list() == [ads[place] for place in best]
            np.testing.assert_allclose(own["score"], row[best], rtol=1e-6)


def test_the_ranker_finds_the_taste_and_the_money(trained, frames):
    """By construction a user clicks ads of the category that the user reads about, and a later ad is worth more."""
    told = json.loads((trained / "ltr.json").read_text())
    assert told["held_out"]["click_auc"] > 0.7
    assert told["held_out"]["ecpm_spearman"] > 0.9
    assert told["held_out"]["value_captured"] > told["held_out"]["value_captured_by_popularity"]
    assert 0.7 < told["held_out"]["clicks_predicted_per_click"] < 1.4
    assert told["users"]["train"] + told["users"]["label"] == 60
    assert told["source"] == {"clicks": "impressions", "others": "impressions"}
    labels = tables.read(tables.LISTS, trained / "labels.parquet").filter(rank=1).join(frames["ads"], on="ad_id")
    taste = labels["user_id"].str.slice(1).cast(pl.Int64) % 3
    assert (labels["second_category"] == "X" + taste.cast(pl.String())).mean() > 0.8


def test_a_ranker_that_is_kept_says_the_same_and_says_it_in_parts(world, trained, frames, monkeypatch):
    ranker = load(trained)
    targets, ads = _targets(frames, "test", trained).select("user_id", "time"), ["a03", "zz", "a00"]
    whole = estimate(ranker, read(world), targets, ads)
    monkeypatch.setattr("leadre.ltr.ranker.PAIRS_AT_ONCE", 7)
    for first, second in zip(whole, estimate(load(trained), read(world), targets, ads), strict=True):
        assert first.shape == (targets.height, 3)
        assert first.dtype == np.float32
        np.testing.assert_allclose(first, second, rtol=1e-5)
    one = estimate(ranker, read(world), targets[5:6], ["a00"])
    np.testing.assert_allclose(one.value[0, 0], whole.value[5, 2], rtol=1e-5)
    assert ((whole.click > 0) & (whole.click < 1) & (whole.ecpm > 0) & (whole.value > 0)).all()
    assert estimate(ranker, read(world), targets[:0], ads).click.shape == (0, 3)


def test_ecpm_is_an_amount_of_the_log(world, trained, frames):
    """Ad n always had an ECPM of ``1 + 2 n``."""
    targets = _targets(frames, "test", trained).select("user_id", "time")
    found = estimate(load(trained), read(world), targets, frames["ads"]["ad_id"].to_list()).ecpm.mean(axis=0)
    np.testing.assert_allclose(found, 1 + 2 * np.arange(12), rtol=0.35)


def test_the_same_world_gives_the_same_bytes(config, frames, catalog, trained, tmp_path, written):
    names = ["ranker.safetensors", "ranker.json", "users.parquet", "labels.parquet", "valid_labels.parquet", "ltr.json"]
    again = _run(config, frames, catalog, tmp_path, written)
    assert sorted(path.name for path in again.iterdir()) == sorted(names)
    assert _bytes(trained, *names) == _bytes(again, *names)


def test_nothing_of_label_users_and_nothing_from_valid_time_on_reaches_the_ranker(
    config, frames, catalog, trained, tmp_path, written
):
    label = tables.read(tables.LTR_USERS, trained / "users.parquet").filter(role="label")["user_id"].implode()
    limits = frames["split"].filter(role="valid").select("user_id", limit="time")
    late = pl.col("time") >= pl.col("limit")

    def changed(frame, *columns):
        dated = frame.join(limits, on="user_id", how="left", maintain_order="left")
        return dated.with_columns(columns).drop("limit")

    foreign = late | pl.col("user_id").is_in(label)
    other_ad = pl.when(foreign & (pl.col("domain") == "ad")).then(pl.lit("a05")).otherwise("item_id")
    spoiled = frames | {
        "behaviors": changed(frames["behaviors"], other_ad.alias("item_id")),
        "impressions": changed(
            frames["impressions"],
            pl.when(foreign).then(777.0).otherwise("ecpm").alias("ecpm"),
            pl.when(foreign).then(~pl.col("clicked")).otherwise("clicked").alias("clicked"),
        ),
    }
    assert not spoiled["behaviors"].equals(frames["behaviors"])
    assert not spoiled["impressions"].equals(frames["impressions"])
    again = _run(config, spoiled, catalog, tmp_path, written)
    assert _bytes(trained, "ranker.safetensors", "ranker.json") == _bytes(again, "ranker.safetensors", "ranker.json")


def test_a_click_of_its_own_users_does_change_the_ranker(config, frames, catalog, trained, tmp_path, written):
    train = tables.read(tables.LTR_USERS, trained / "users.parquet").filter(role="train")["user_id"]
    first = pl.int_range(pl.len()).over("user_id") == 0
    flipped = frames["impressions"].with_columns(
        clicked=pl.when((pl.col("user_id") == train[0]) & first).then(~pl.col("clicked")).otherwise("clicked")
    )
    again = _run(config, frames | {"impressions": flipped}, catalog, tmp_path, written)
    assert _bytes(trained, "ranker.safetensors") != _bytes(again, "ranker.safetensors")


def test_lists_and_the_hidden_state_are_no_input(config, frames, catalog, trained, tmp_path, written):
    """The verb has no parameter for them, no file of the room names them, and what lies in the world is not opened."""
    assert list(inspect.signature(learn_to_rank).parameters) == ["config", "world", "catalog", "out"]
    for path in Path(leadre.ltr.__file__).parent.glob("*.py"):
        source = path.read_text()
        assert not any(name in source for name in ("hidden.", "oracle", "generations", "adworld", "pairs/")), path
    world = written(frames, tmp_path / "world")
    for name in ("hidden.safetensors", "oracle.parquet", "lists.parquet"):
        (world / name).write_bytes(b"not to be read")
    out = tmp_path / "out"
    out.mkdir()
    learn_to_rank(config, world, catalog, out=out)
    assert _bytes(out, "labels.parquet") == _bytes(trained, "labels.parquet")


def test_an_ad_that_does_not_run_at_the_time_is_no_label(config, frames, catalog, trained, tmp_path, written):
    ended, begun = pl.col("ad_id") == "a10", pl.col("ad_id") == "a09"
    ads = frames["ads"].with_columns(
        end_time=pl.when(ended).then(pl.lit(DAY, pl.Int64())),
        start_time=pl.when(begun).then(pl.lit(100 * DAY, pl.Int64())),
    )
    before = tables.read(tables.LISTS, trained / "labels.parquet")["ad_id"]
    assert {"a09", "a10"} <= set(before)
    out = _run(config, frames | {"ads": ads}, catalog, tmp_path, written)
    for name in LABELS:
        labels = tables.read(tables.LISTS, out / f"{name}.parquet")
        assert not {"a09", "a10"} & set(labels["ad_id"])
        assert labels["rank"].to_list() == [1, 2, 3, 4] * (labels.height // 4)


def test_labels_are_ads_of_the_catalog_even_if_these_are_few(config, frames, world, catalog_of, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    learn_to_rank(config, world, catalog_of(["a04", "a01"], tmp_path / "catalog"), out=out)
    labels = tables.read(tables.LISTS, out / "labels.parquet")
    assert set(labels["ad_id"]) == {"a01", "a04"}
    assert labels["rank"].max() == 2


def test_without_impressions_it_learns_from_behaviors_and_says_so(config, frames, catalog, tmp_path, written, caplog):
    none = frames | {"impressions": frames["impressions"].clear()}
    with caplog.at_level("WARNING"):
        out = _run(config, none, catalog, tmp_path, written)
    assert (
        "no impression of its users was clicked: the ranker takes ad behaviors for clicks, each of ECPM 1"
        in caplog.text
    )
    told = json.loads((out / "ltr.json").read_text())
    assert told["source"] == {"clicks": "behaviors", "others": "random"}
    assert told["held_out"]["click_auc"] > 0.7
    assert told["held_out"]["ecpm_spearman"] is None
    assert tables.read(tables.LISTS, out / "labels.parquet").height > 0
    targets = _targets(frames, "test", out).select("user_id", "time")
    assert (estimate(load(out), read(tmp_path / "world"), targets, ["a00", "zz"]).ecpm == 1).all()


def test_an_ecpm_of_0_everywhere_is_an_ecpm_of_1(config, frames, catalog, tmp_path, written, caplog):
    """Both heads are then taught the same: a value is the odds of a click, up to how far training came."""
    free = frames | {"impressions": frames["impressions"].with_columns(ecpm=pl.lit(0.0))}
    with caplog.at_level("WARNING"):
        out = _run(config, free, catalog, tmp_path, written)
    assert "no click of its users has an ECPM above 0: the ranker takes each click for one of the same" in caplog.text
    targets = _targets(frames, "test", out).select("user_id", "time")
    found = estimate(load(out), read(tmp_path / "world"), targets, ["a00", "a07"])
    assert (found.ecpm == 1).all()
    np.testing.assert_allclose(found.value, found.click / (1 - found.click), rtol=0.7)


@pytest.mark.parametrize("of_others", [0.0, 5.0])
def test_clicks_without_an_ecpm_above_0_count_one_each(of_others):
    clicked = np.array([True, True, False, False])
    ones = np.ones(4)
    rows = Rows(ones, ones, ones, clicked, np.array([0.0, np.nan, of_others, 0.0]), ones)
    found = _sample(np.zeros((4, 2), dtype=np.float32), rows, _money(rows))
    assert found.worth.tolist() == [1, 1, 1, 1]
    assert found.log_ecpm.isnan().tolist() == [True, True, of_others == 0, True]
    priced = rows._replace(ecpm=np.array([0.0, 4.0, of_others, 0.0]))
    assert _sample(np.zeros((4, 2), dtype=np.float32), priced, _money(priced)).worth.tolist() == [0, 2, 1, 1]


def test_a_tie_of_all_ecpms_is_that_ecpm(config, frames, catalog, tmp_path, written):
    tied = frames | {"impressions": frames["impressions"].with_columns(ecpm=pl.lit(5.0))}
    out = _run(config, tied, catalog, tmp_path, written)
    targets = _targets(frames, "test", out).select("user_id", "time")
    np.testing.assert_allclose(
        estimate(load(out), read(tmp_path / "world"), targets, ["a00", "a07"]).ecpm, 5, rtol=1e-6
    )


@pytest.mark.parametrize("why", ["no behavior", "no training user"])
def test_nothing_to_learn_from_stops_no_run_and_is_told(config, frames, catalog, tmp_path, written, caplog, why):
    if why == "no behavior":
        frames = frames | {name: frames[name].clear() for name in ("behaviors", "impressions", "split")}
    else:
        config = replace(config, train_share=1e-6)
    with caplog.at_level("WARNING"):
        out = _run(config, frames, catalog, tmp_path, written)
    assert sorted(path.name for path in out.iterdir()) == [
        "labels.parquet",
        "ltr.json",
        "users.parquet",
        "valid_labels.parquet",
    ]
    assert all(tables.read(tables.LISTS, out / f"{name}.parquet").is_empty() for name in LABELS)
    assert tables.read(tables.LTR_USERS, out / "users.parquet").height == NUM_USERS
    told = json.loads((out / "ltr.json").read_text())
    assert told["users_with_labels"] == told["rows"]["clicked"] == 0
    count = told["users"]["train"]
    missing = f"its {count} training users have no clicked impression and no ad behavior before their valid targets"
    assert told["no_ranker"] == missing
    assert f"ltr has no ranker, since {missing}: there is no LTRR" in caplog.text
    with pytest.raises(ValueError, match=f"ltr has no ranker.json, since {missing}: use alignment=none, or give a lon"):
        load(out)


def test_without_label_users_there_is_a_ranker_and_no_label(config, frames, catalog, tmp_path, written, caplog):
    with caplog.at_level("WARNING"):
        out = _run(replace(config, train_share=1 - 1e-6), frames, catalog, tmp_path, written)
    assert all(tables.read(tables.LISTS, out / f"{name}.parquet").is_empty() for name in LABELS)
    assert isinstance(load(out).network, Network)
    told = json.loads((out / "ltr.json").read_text())
    assert set(told["held_out"].values()) == {None}
    assert told["users"] == {"train": NUM_USERS, "label": 0}
    assert "none of the ranker's 0 label users has a label: there is no LTRR" in caplog.text


def test_a_few_users_are_enough(config, frames, catalog, tmp_path, written):
    users = ["u000", "u001", "u002", "u003"]
    few = {
        name: frame.filter(pl.col("user_id").is_in(users)) if "user_id" in frame.columns else frame
        for name, frame in frames.items()
    }
    out = _run(config, few, catalog, tmp_path, written)
    told = json.loads((out / "ltr.json").read_text())
    assert told["users"]["train"] in {1, 2, 3}


def test_another_world_and_a_strange_ad_are_refused(config, frames, world, trained, tmp_path, written):
    ranker, targets = load(trained), pl.DataFrame({"user_id": ["u000"], "time": [9 * DAY]})
    with pytest.raises(ValueError, match=r"ad 'nothing' \(one of 1\) is not in the world"):
        estimate(ranker, read(world), targets, ["a00", "nothing"])
    other = written(frames | {"ads": frames["ads"].filter(pl.col("ad_id") != "a04")}, tmp_path)
    with pytest.raises(ValueError, match="its numbers are of that world's ads and profiles; train it anew"):
        estimate(ranker, read(other), targets, ["a00"])


def test_a_target_of_nobody_known_is_the_average_user(world, trained):
    found = estimate(
        load(trained), read(world), pl.DataFrame({"user_id": ["nobody"], "time": [9 * DAY]}), ["a00", "zz"]
    )
    assert np.isfinite(found.value).all()


def test_captured_value_by_hand():
    worth = pl.DataFrame({"user_id": ["u", "v"], "ad_id": ["a", "b"], "ecpm": [3.0, 1.0]})
    lists = pl.DataFrame({"user_id": ["u", "u", "v"], "ad_id": ["b", "a", "c"]})
    assert captured(worth, lists) == 0.75
    assert captured(worth.clear(), lists) is None

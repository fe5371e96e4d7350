import logging
from dataclasses import replace
from hashlib import sha256

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre import tables
from leadre.ltr import known as worlds
from leadre.ltr.rows import Rows, sample, shown, train_time
from leadre.ltr.statistics import priors, statistics
from leadre.ltr.users import draw, folds, roles

DAY = 86_400
IDS = [f"user_{n}" for n in range(4000)]


def test_half_of_the_users_teach_and_nobody_is_both():
    found = roles(IDS, train_share=0.5)
    assert found["user_id"].is_unique().all()
    assert abs(found.filter(role="train").height - 2000) < 4 * np.sqrt(1000)
    assert roles(IDS, train_share=0.1).filter(role="train").height < 500


@given(st.lists(st.text(), unique=True, max_size=8), st.lists(st.text(), unique=True, max_size=8))
def test_a_user_keeps_the_role_whoever_comes_or_goes(some, others):
    few, all_of_them = (dict(roles(ids, train_share=0.5).rows()) for ids in (some, sorted({*some, *others})))
    assert few.items() <= all_of_them.items()
    assert all(0 <= draw(user, "role") < 1 for user in all_of_them)


def test_roles_are_the_same_on_every_machine_and_day():
    digest = sha256(b"role\x00user_000001").hexdigest()
    assert draw("user_000001", "role") == int(digest[:13], 16) / 2**52
    found = roles([f"user_{n:06d}" for n in range(4)], train_share=0.5)
    assert found["role"].to_list() == ["train", "label", "train", "train"]


def test_folds_do_not_follow_roles():
    fold = np.array(folds(IDS, count=4))
    is_train = (roles(IDS, train_share=0.5).sort("user_id")["role"] == "train").to_numpy()
    by_id = np.array(folds(sorted(IDS), count=4))
    assert set(fold.tolist()) == {0, 1, 2, 3}
    assert all(0.4 < is_train[by_id == number].mean() < 0.6 for number in range(4))


def test_train_time_ends_before_the_users_own_valid_target(table):
    split = table(tables.SPLIT, [("u0", "train", "a", 1), ("u0", "valid", "a", 5), ("u0", "test", "a", 9)])
    events = pl.DataFrame({"user_id": ["u0", "u0", "u0", "u1"], "time": [4, 5, 6, 99]})
    assert train_time(events, split).rows() == [("u0", 4), ("u1", 99)]


def _shown(world, users, **arguments):
    known = worlds.read(world)
    rng = np.random.default_rng(0)
    return known, *shown(known, world, pl.Series(users, dtype=pl.String()), **{"negatives": 3, "rng": rng} | arguments)


def test_rows_are_of_the_asked_users_and_before_their_valid_target(world, frames):
    users = [f"u{n:03d}" for n in range(0, 60, 2)]
    known, rows, source = _shown(world, users)
    assert source == ("impressions", "impressions")
    assert {known.users[int(user)] for user in rows.user} == set(users)
    limits = dict(frames["split"].filter(role="valid").select("user_id", "time").rows())
    assert all(time < limits[known.users[int(user)]] for user, time in zip(rows.user, rows.time, strict=True))
    expected = train_time(frames["impressions"].filter(pl.col("user_id").is_in(users)), frames["split"])
    assert len(rows.user) == expected.height
    assert rows.clicked.sum() == expected["clicked"].sum()


def test_impressions_that_do_not_say_whether_they_were_clicked_are_left_out(frames, tmp_path, written):
    some = frames["impressions"].with_columns(
        clicked=pl.when(pl.col("ecpm") > 3).then("clicked")  # null else
    )
    _, rows, _ = _shown(written(frames | {"impressions": some}, tmp_path), ["u000", "u001"])
    assert (rows.ecpm > 3).all()


def test_without_impressions_ad_behaviors_are_clicks_and_other_ads_are_drawn(frames, tmp_path, written):
    world = written(frames | {"impressions": frames["impressions"].clear()}, tmp_path)
    known, rows, source = _shown(world, ["u000", "u001"])
    assert source == ("behaviors", "random")
    acted = frames["behaviors"].filter(pl.col("user_id").is_in(["u000", "u001"]) & (pl.col("domain") == "ad"))
    clicks = rows.part(rows.clicked)
    assert len(clicks.ad) == train_time(acted, frames["split"]).height
    assert (clicks.ecpm == 1).all()
    others = rows.part(~rows.clicked)
    assert len(others.ad) == 3 * len(clicks.ad)
    assert (others.weight == len(known.ads) / 3).all()
    assert np.isnan(others.ecpm).all()
    np.testing.assert_array_equal(others.time, np.repeat(clicks.time, 3))


def test_where_every_impression_was_clicked_other_ads_are_drawn(frames, tmp_path, written):
    world = written(frames | {"impressions": frames["impressions"].filter("clicked")}, tmp_path)
    _, rows, source = _shown(world, ["u000", "u001"])
    assert source == ("impressions", "random")
    assert (rows.ecpm[rows.clicked] >= 1).all()
    assert (~rows.clicked).sum() == 3 * rows.clicked.sum()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_an_ecpm_that_is_no_amount_is_told_and_not_learned_from(frames, tmp_path, caplog, bad, written):
    given = frames["impressions"].with_columns(ecpm=pl.when(pl.col("ad_id") == "a00").then(bad).otherwise("ecpm"))
    with caplog.at_level(logging.WARNING):
        _, rows, _ = _shown(written(frames | {"impressions": given}, tmp_path), ["u000", "u001"])
    assert (np.isnan(rows.ecpm) == (rows.ad == 0)).all()
    assert "have an ECPM that is negative or no number: none is learned from them" in caplog.text


def _rows(clicked, ads=None):
    count = len(clicked)
    numbers = np.zeros(count, dtype=np.int64) if ads is None else np.array(ads)
    return Rows(
        np.zeros(count, dtype=np.int64),
        numbers,
        np.arange(count),
        np.array(clicked),
        np.full(count, 2.0),
        np.ones(count),
    )


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_a_sample_keeps_all_clicks_and_the_weight_of_all_others(clicked, negatives, seed):
    rows = _rows(clicked)
    kept = sample(rows, negatives, np.random.default_rng(seed))
    assert kept.clicked.sum() == rows.clicked.sum()
    assert kept.weight[kept.clicked].sum() == rows.clicked.sum()
    np.testing.assert_allclose(kept.weight.sum(), len(clicked))
    assert (~kept.clicked).sum() == min((~rows.clicked).sum(), max(1, negatives * rows.clicked.sum()))


def test_statistics_by_hand(world, frames):
    """Ad 0 (category X0): 2 clicks of 3; ad 1 (X1): 0 of 1. Smoothing 2; the average is (2 + 1)/(4 + 1 + 2)."""
    known = worlds.read(world)
    rows = _rows([True, True, False, False], [0, 0, 0, 1])
    found = statistics(known, [rows], priors(known, frames["behaviors"].clear()), smoothing=2.0)
    average = 3 / 7
    x0, x1 = (2 + 2 * average) / (3 + 2), (0 + 2 * average) / (1 + 2)
    expected = [np.log((2 + 2 * x0) / (3 + 2)), np.log(x0), np.log(2), np.log((3 + 1) / (4 / 12 + 1))]
    np.testing.assert_allclose(found.ads[0, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(found.ads[0, 1, :2], [np.log((0 + 2 * x1) / (1 + 2)), np.log(x1)], rtol=1e-6)
    value = known.values[0, 0]  # the age of the one user
    lifts = [((2 + 2 * x0) / (3 + 2)) / x0, ((0 + 2 * x1) / (1 + 2)) / x1]
    np.testing.assert_allclose(np.exp(found.profiles[0, value, known.category[:2]]), lifts, rtol=1e-6)
    others = [v for v in range(known.num_values) if v not in known.values[0]]
    np.testing.assert_allclose(found.profiles[0, others], 0, atol=1e-6)


def test_priors_by_hand(world, table):
    """Ad a00 was clicked, content c1 (category X1, SPU S1) read twice; one is added to each group."""
    known = worlds.read(world)
    rows = [
        ("u000", "a00", "ad", "click", DAY),
        ("u000", "c1", "content", "read", 1),
        ("u000", "c1", "content", "read", 2),
    ]
    prior = priors(known, table(tables.BEHAVIORS, rows))
    groups, count = known.groups, known.num_groups
    assert prior[groups[0, 0]] == pytest.approx(2 / (1 + count))
    assert prior[groups[0, 1]] == pytest.approx(1 / (1 + count))
    assert prior[count + groups[2, 1]] == pytest.approx(3 / (2 + count))
    assert prior[count + groups[2, 0]] == pytest.approx(1 / (2 + count))


def test_settings_refuse_what_makes_no_sense(config):
    with pytest.raises(ValueError, match="folds"):
        replace(config, folds=1)
    with pytest.raises(ValueError, match="train_share"):
        replace(config, train_share=1.0)

import numpy as np
import polars as pl
import pytest

from leadre import tables
from leadre.ltr import known as worlds
from leadre.ltr.features import describe, describe_rows, interests
from leadre.ltr.rows import shown
from leadre.ltr.statistics import Statistics, priors, statistics

DAY = 86_400
SIZES = {"window_days": 9, "half_lives_days": (2.0, 20.0)}


@pytest.fixture(scope="module")
def known(world):
    return worlds.read(world)


@pytest.fixture(scope="module")
def rows(known, world):
    return shown(known, world, known.users, negatives=3, rng=np.random.default_rng(0))[0]


@pytest.fixture(scope="module")
def counted(known, rows):
    halves = [rows.part(rows.user % 2 == half) for half in (0, 1)]
    return statistics(known, halves, priors(known, known.behaviors), smoothing=5.0)


def plainly(frames, counted, known, *, user, ad, time, fold, smoothing):
    """The features as their docstring tells them, a behavior at a time."""
    ads = {row["ad_id"]: row for row in frames["ads"].iter_rows(named=True)}
    contents = {row["item_id"]: row for row in frames["contents"].iter_rows(named=True)}
    levels = ("ad_id", "spu", "second_category", "first_category")
    mine = frames["behaviors"].filter(
        (pl.col("user_id") == user) & (pl.col("time") < time) & (pl.col("time") >= time - 9 * DAY)
    )
    found, number = [], known.ads.to_list().index(ad)
    for half_life in (2.0, 20.0):
        for place, domain in enumerate(("ad", "content")):
            past = [
                (row["item_id"], 2 ** (-(time - row["time"]) / DAY / half_life))
                for row in mine.filter(domain=domain).iter_rows(named=True)
            ]
            total = sum(weight for _, weight in past)
            for level in levels[place:]:
                name = ads[ad][level]
                if domain == "ad":
                    about = [weight for item, weight in past if name is not None and ads[item][level] == name]
                else:
                    field = "spu" if level == "spu" else "category"
                    about = [weight for item, weight in past if name is not None and contents[item][field] == name]
                if name is None:
                    found.append(0.0)
                    continue
                prior = counted.prior[known.groups[levels.index(level), number] + place * known.num_groups]
                found.append(np.log((sum(about) + smoothing * prior) / ((total + smoothing) * prior)))
            found.append(np.log1p(total))
    values = known.values[known.users.to_list().index(user)]
    return [*found, *counted.profiles[fold, values, known.category[number]], *counted.ads[fold, number]]


def test_features_are_those_told_a_behavior_at_a_time(known, rows, counted, frames):
    few = rows.part(np.random.default_rng(1).choice(len(rows.user), 40, replace=False))
    fold = 1 - few.user % 2
    found = describe_rows(known, counted, few, fold=fold, smoothing=1.5, **SIZES)
    expected = [
        plainly(
            frames, counted, known, user=known.users[int(u)], ad=known.ads[int(a)], time=int(t), fold=f, smoothing=1.5
        )
        for u, a, t, f in zip(few.user, few.ad, few.time, fold, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (rows.ad == len(known.ads) - 1).any()  # the ad without groups


def test_all_pairs_at_once_have_the_features_of_single_rows(known, rows, counted):
    few = rows.part(np.arange(7))
    targets = pl.DataFrame({"user_id": known.users[few.user], "time": few.time})
    ad, zero = np.arange(len(known.ads)), np.zeros(1, dtype=np.int64)
    done = interests(known, targets, **SIZES)
    every = describe(
        known, counted, done, fold=zero, target=np.arange(7)[:, None], user=few.user[:, None], ad=ad, smoothing=1.5
    )
    alone = describe_rows(known, counted, few, fold=np.zeros(7, dtype=np.int64), smoothing=1.5, **SIZES)
    np.testing.assert_array_equal(every[np.arange(7), few.ad], alone)


def test_rows_in_parts_have_the_features_of_all_at_once(known, rows, counted, monkeypatch):
    few = rows.part(np.arange(20))
    arguments = {"fold": few.user % 2, "smoothing": 1.5, **SIZES}
    whole = describe_rows(known, counted, few, **arguments)
    monkeypatch.setattr("leadre.ltr.features.ROWS_AT_ONCE", 7)
    np.testing.assert_array_equal(describe_rows(known, counted, few, **arguments), whole)


def test_the_behaviors_of_some_users_are_those_of_the_whole_table(known):
    for names in (["u007", "nobody", "u003", "u007", ""], ["zzz"], [], known.users.to_list()):
        users = pl.Series("user_id", names, dtype=pl.String())
        expected = known.behaviors.filter(pl.col("user_id").is_in(users.implode()))
        assert known.behaviors_of(users).equals(expected)
    assert known._replace(behaviors=known.behaviors.clear()).behaviors_of(users).is_empty()


def test_a_world_is_hashed_once_and_sorted_by_user(known, frames, tmp_path, written):
    mixed = frames["behaviors"].sample(fraction=1.0, shuffle=True, seed=0)
    found = worlds.read(written(frames | {"behaviors": mixed}, tmp_path))
    assert found.fingerprint == known.fingerprint
    assert found.behaviors["user_id"].is_sorted()
    users = frames["users"].with_columns(gender=pl.lit("g0"))
    assert worlds.read(written(frames | {"users": users}, tmp_path)).fingerprint != known.fingerprint


def test_what_happens_at_or_after_the_time_is_not_seen(known, rows, counted):
    few = rows.part(np.arange(0, len(rows.user), 50))
    at = pl.DataFrame({"user_id": known.users[few.user], "time": few.time})
    later = at.with_columns(item_id=pl.lit("a03"), domain=pl.lit("ad"), action=pl.lit("click"))
    later = pl.concat([later, later.with_columns(pl.col("time") + 5)]).select(list(tables.BEHAVIORS.columns))
    for number in range(len(few.user)):
        row = few.part(np.array([number]))
        own = later.filter((pl.col("user_id") == at["user_id"][number]) & (pl.col("time") >= at["time"][number]))
        more = known._replace(behaviors=pl.concat([known.behaviors, own]).sort("user_id", "time"))
        first, second = (
            describe_rows(world, counted, row, fold=np.zeros(1, dtype=np.int64), smoothing=1.0, **SIZES)
            for world in (known, more)
        )
        np.testing.assert_array_equal(first, second)


def test_a_stranger_without_behaviors_has_no_interests_and_no_profile(known, counted):
    targets = pl.DataFrame({"user_id": ["nobody"], "time": [9 * DAY]})
    zero = np.zeros(1, dtype=np.int64)
    done = interests(known, targets, **SIZES)
    told = describe(known, counted, done, fold=zero, target=zero, user=zero - 1, ad=zero, smoothing=1.0)[0]
    np.testing.assert_allclose(told[:-4], 0, atol=1e-6)
    np.testing.assert_array_equal(told[-4:], counted.ads[0, 0])


def test_contents_belong_to_the_categories_and_spus_whose_names_they_bear(known):
    columns = known.items.filter(pl.col("domain") == "content", pl.col("item_id") == "c1")["column"].to_list()
    groups = known.groups[:, 1]  # ad a01: SPU S1, second category X1
    assert sorted(columns) == sorted(known.num_groups + groups[[1, 2]])


def test_numbers_of_groups_fit_the_arrays(known, counted):
    assert isinstance(counted, Statistics)
    assert known.groups.shape == (4, len(known.ads))
    assert (known.groups[1:, -1] == -1).all()  # the ad without groups is in a group of its own alone
    assert known.groups[0].tolist() == list(range(len(known.ads)))
    assert counted.prior.shape == (2 * known.num_groups,)
    assert known.items["column"].is_between(0, 2 * known.num_groups - 1).all()

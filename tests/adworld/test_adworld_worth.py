import math

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from leadre import tables
from leadre.adworld.appraise import appraise, values_of
from leadre.adworld.auction import Shown
from leadre.adworld.catalog import DAY, START, alive
from leadre.adworld.response import affinity, click_probability
from leadre.adworld.simulate import _conversions, simulate
from leadre.adworld.worth import pack, unpack, worth


@pytest.fixture(scope="module")
def hidden(tiny_world):
    return unpack(tiny_world.hidden)


def _everything(hidden):
    """``(U, 1)`` users and ``(1, N)`` ads."""
    return np.arange(len(hidden.user_ids))[:, None], np.arange(hidden.catalog.num_ads)[None, :]


def test_worth_is_that_of_the_formula_a_pair_at_a_time(hidden):
    """The click and conversion logits of the world's own description, in plain Python."""
    clicks, conversions = hidden.config.clicks, hidden.config.conversions
    wanting = np.flatnonzero((hidden.state.intent >= 0) & (hidden.state.age >= 1))[:5]
    assert len(wanting) == 5
    rng = np.random.default_rng(0)
    for user in wanting.tolist():
        category, brand = int(hidden.state.intent[user]), int(hidden.state.brand[user])
        wanted = np.flatnonzero(hidden.catalog.category == category)
        for ad in [*wanted.tolist(), *rng.integers(0, hidden.catalog.num_ads, 3).tolist()]:
            c = int(hidden.catalog.category[ad])
            fit = float(np.dot(hidden.state.vector[user], hidden.catalog.vector[ad]))
            grown = min(int(hidden.state.age[user]) / hidden.config.intents.ramp_days, 1)
            click = clicks.intercept + clicks.fit * fit + float(hidden.catalog.quality[ad])
            click += clicks.taste * math.log(48 * float(hidden.state.taste[user, c]) + 1e-6)
            click -= clicks.fatigue * float(hidden.state.fatigue[user, c])
            if c == category:
                click += grown * (clicks.intent + clicks.brand * (int(hidden.catalog.brand[ad]) == brand))
            gap = abs(int(hidden.catalog.price[ad]) - int(hidden.users.consumption[user]))
            convert = conversions.intercept + conversions.fit * fit - conversions.price_gap * gap
            convert += conversions.intent * (c == category)
            value = 1000 * float(hidden.catalog.bid[ad]) / (1 + math.exp(-click)) / (1 + math.exp(-convert))
            lives = hidden.catalog.start_day[ad] <= hidden.day[user] < hidden.catalog.end_day[ad]
            assert worth(hidden, np.array(user), np.array(ad)).item() == pytest.approx(value * lives, rel=1e-4)


def test_an_intent_raises_the_worth_of_its_ads_and_of_no_others(hidden):
    user, ad = _everything(hidden)
    calm = hidden._replace(state=hidden.state._replace(intent=np.full_like(hidden.state.intent, -1)))
    now, without = worth(hidden, user, ad), worth(calm, user, ad)
    wanted = hidden.catalog.category[ad] == hidden.state.intent[user]
    assert (now > without)[wanted & (without > 0)].all()
    np.testing.assert_array_equal(now[~wanted], without[~wanted])


def test_an_ad_that_does_not_live_earns_nothing(hidden):
    user, ad = _everything(hidden)
    living = np.stack([alive(hidden.catalog, int(day)) for day in hidden.day])
    np.testing.assert_array_equal(worth(hidden, user, ad) > 0, living)
    assert not living.all()


def test_the_mean_of_many_simulated_outcomes_is_the_worth(hidden):
    """Every user is shown an ad of value again and again; the simulator's own draws decide clicks and conversions."""
    user = np.repeat(np.arange(len(hidden.user_ids)), 2000)
    ad = worth(hidden, *_everything(hidden)).argmax(axis=1)[user]
    expected = worth(hidden, user, ad)
    fit = affinity(hidden.state, hidden.catalog, user, ad)
    shown = Shown(user, ad, pctr=expected, ecpm=expected, price=expected, fit=fit)
    click = click_probability(hidden.state, hidden.catalog, user, ad, fit, config=hidden.config)
    clicked = np.random.default_rng(0).random(len(user)) < click
    rows, _ = _conversions(
        hidden.state, hidden.catalog, hidden.users, shown, clicked, config=hidden.config, seed=0, day=0
    )
    earned = np.zeros(len(user))
    earned[rows] = 1000 * hidden.catalog.bid[ad[rows]]
    deviation = np.sqrt((expected * 1000 * hidden.catalog.bid[ad] - expected**2).sum())
    assert abs(earned.sum() - expected.sum()) < 4 * deviation
    assert deviation < 0.03 * expected.sum()


def test_clicks_of_the_log_come_with_the_probability_that_worth_is_made_of(tiny_world, hidden):
    """On the day of a user's moment the log's true click probability is the one of the hidden state."""
    log = pl.concat([tiny_world.impressions, tiny_world.truth], how="horizontal").with_columns(
        day=(pl.col("time") - START) // DAY
    )
    moments = pl.DataFrame({"user_id": hidden.user_ids.astype(str), "day": hidden.day}).with_row_index("user")
    ads = pl.DataFrame({"ad_id": hidden.ad_ids.astype(str)}).with_row_index("ad")
    found = log.join(moments, on=["user_id", "day"]).join(ads, on="ad_id")
    assert found.height > 200
    user, ad = (found[name].cast(pl.Int64).to_numpy() for name in ("user", "ad"))
    fit = affinity(hidden.state, hidden.catalog, user, ad)
    expected = click_probability(hidden.state, hidden.catalog, user, ad, fit, config=hidden.config)
    np.testing.assert_allclose(found["click_probability"].to_numpy(), expected, rtol=1e-4)


def test_the_hidden_state_survives_a_file_and_says_what_is_missing(tiny_world, hidden, tmp_path):
    save_file(tiny_world.hidden, tmp_path / "hidden.safetensors")
    arrays = load_file(tmp_path / "hidden.safetensors")
    again = unpack(arrays)
    assert again.config == hidden.config
    assert (again.user_ids.tolist(), again.ad_ids.tolist()) == (hidden.user_ids.tolist(), hidden.ad_ids.tolist())
    user, ad = _everything(hidden)
    np.testing.assert_array_equal(worth(again, user, ad), worth(hidden, user, ad))
    del arrays["state.taste"]
    with pytest.raises(ValueError, match=r"the hidden state has no 'state.taste' \(one of 1\): gather the world anew"):
        unpack(arrays)


def test_a_world_without_anybody_to_test_has_an_empty_hidden_state(world_config, tmp_path):
    save_file(simulate(world_config("days=1", "users.num_users=1"), 0).hidden, tmp_path / "hidden.safetensors")
    hidden = unpack(load_file(tmp_path / "hidden.safetensors"))
    assert len(hidden.user_ids) == 0
    pairs = pl.DataFrame({"user_id": ["user_000000"], "ad_id": [hidden.ad_ids[0]]})
    tables.write(tables.VALUES, values_of(hidden, pairs), tmp_path / "values.parquet")


def test_every_listed_pair_is_appraised_once_and_strangers_are_left_out(tiny_world, hidden, tmp_path):
    folders = [tmp_path / name for name in ("world", "baselines", "generations", "out")]
    for folder in (*folders, folders[2] / "lists"):
        folder.mkdir()
    save_file(tiny_world.hidden, folders[0] / "hidden.safetensors")
    first, second = hidden.user_ids[:2].tolist()
    a, b = hidden.ad_ids[[5, 9]].tolist()

    def lists(rows, path):
        tables.write(tables.LISTS, pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row"), path)

    lists([(first, 1, a, 0.0), ("stranger", 1, a, 0.0)], folders[0] / "oracle.parquet")
    lists([(first, 1, a, 0.0), (first, 2, "gone", 0.0)], folders[1] / "popularity.parquet")
    lists([(first, 1, b, 0.0)], folders[2] / "lists" / "part-00000.parquet")
    lists([(second, 1, a, 0.0)], folders[2] / "lists" / "part-00001.parquet")
    appraise(*folders[:3], out=folders[3])
    values = tables.read(tables.VALUES, folders[3] / "values.parquet")
    expected = worth(hidden, np.array([0, 0, 1]), np.array([5, 9, 5]))
    assert dict(zip(values.select("user_id", "ad_id").rows(), values["value"], strict=True)) == {
        (first, a): expected[0],
        (first, b): expected[1],
        (second, a): expected[2],
    }
    assert values.equals(values.sort("user_id", "ad_id"))


def test_ids_of_any_length_and_script_are_kept(hidden):
    odd = hidden._replace(ad_ids=np.array(["a", "ад_22", *hidden.ad_ids[2:]], dtype=object))
    assert unpack(pack(odd)).ad_ids[:3].tolist() == ["a", "ад_22", hidden.ad_ids[2]]

import numpy as np
import pytest

from leadre.adworld.auction import pools, quote, second_price, show, tower_categories
from leadre.adworld.catalog import alive, draw_catalog
from leadre.adworld.oracle import choice_probability, exposure
from leadre.adworld.state import begin
from leadre.adworld.users import draw_users


def test_the_winner_pays_the_second_score():
    """Slot 2 has the highest eCPM, 9; the next is 6."""
    result = second_price(np.array([[3.0, 6.0, 9.0, 1.0]]), np.array([[10, 11, 12, 13]]))
    assert (result.slot[0], result.score[0], result.price[0]) == (2, 9.0, 6.0)


def test_an_ad_drawn_twice_does_not_bid_against_itself():
    result = second_price(np.array([[8.0, 9.0, 5.0]]), np.array([[4, 4, 7]]))
    assert (result.slot[0], result.price[0]) == (1, 5.0)


def test_a_lone_ad_pays_nothing_and_the_first_of_equals_wins_at_its_own_score():
    assert second_price(np.array([[2.0, 3.0]]), np.array([[4, 4]])).price[0] == 0.0
    tie = second_price(np.array([[3.0, 3.0]]), np.array([[4, 5]]))
    assert (tie.slot[0], tie.price[0]) == (0, 3.0)


def test_nobody_pays_more_than_his_score():
    rng = np.random.default_rng(0)
    result = second_price(rng.random((500, 6)), rng.integers(0, 9, (500, 6)))
    assert (result.price <= result.score).all()
    assert (result.price >= 0).all()


@pytest.fixture
def scene(world_config):
    config = world_config("ads.ads_per_category=2", "users.num_users=3", "ads.churn_per_day=0.02")
    catalog = draw_catalog(config.ads, config.days, 1)
    users = draw_users(config.users, config.ads.width, 1)
    return config, catalog, users, begin(users, catalog.category_vectors)


def test_only_living_ads_are_shown(scene):
    config, catalog, users, state = scene
    shown = show(
        state,
        catalog,
        users,
        pools(catalog, 20),
        np.repeat([0, 1, 2], 500),
        config=config,
        rng=np.random.default_rng(0),
    )
    assert alive(catalog, 20)[shown.ad].all()


def test_the_exposure_formula_agrees_with_many_auctions(scene):
    """The integral over the winner's noise against 60,000 auctions a user."""
    config, catalog, users, state = scene
    pool, count, ads = pools(catalog, 20), 60_000, np.arange(catalog.num_ads)[None, :]
    user = np.repeat(np.arange(3), count)
    shown = show(state, catalog, users, pool, user, config=config, rng=np.random.default_rng(0))
    seen = np.stack([np.bincount(shown.ad[shown.user == u], minlength=catalog.num_ads) for u in range(3)]) / count
    fit = state.vector @ catalog.vector.T
    view = quote(state, catalog, users, np.arange(3)[:, None], ads, fit, config=config)
    towers = tower_categories(state.logits, pool, config.exposure.two_tower_sharpness)
    within = towers[:, catalog.category] * pool.within
    expected = exposure(view.log_score, within, pool, config=config.exposure)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0)
    assert np.abs(seen - expected).max() < 6 * np.sqrt(0.25 / count)
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.999


def test_the_oracle_prefers_ads_of_a_ripe_intent_and_never_a_dead_ad(scene):
    config, catalog, users, state = scene
    pool = pools(catalog, 20)
    living = int(np.flatnonzero(alive(catalog, 20))[0])
    category = catalog.category[living]
    wanting = state._replace(intent=np.full(3, category), age=np.full(3, 5))
    calm = choice_probability(state, catalog, users, np.arange(3), pool, config=config)
    eager = choice_probability(wanting, catalog, users, np.arange(3), pool, config=config)
    assert (eager[:, living] > calm[:, living]).all()
    assert eager[:, ~alive(catalog, 20)].max() == 0
    np.testing.assert_allclose(eager.sum(axis=1), 1.0)

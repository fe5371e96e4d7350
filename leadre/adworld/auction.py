"""One ad slot: candidates by the logging policy, scores by eCPM, a generalized second-price auction."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.adworld import words
from leadre.adworld.catalog import Catalog, alive
from leadre.adworld.config import ExposureConfig, WorldConfig
from leadre.adworld.response import affinity, base_click_logit, conversion_logit, expected_intent_logit, sigmoid
from leadre.adworld.state import State
from leadre.adworld.users import Users

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Pools(NamedTuple):
    """From where the candidates of a day are drawn."""

    popular: Doubles  # (N,) probability by popularity, 0 for ads that do not live
    random: Doubles  # (N,) equal probability of the ads that live
    within: Doubles  # (N,) equal probability of the ads that live, given the category
    open: NDArray[np.bool_]  # (C,) categories with an ad that lives


def pools(catalog: Catalog, day: int) -> Pools:
    """The pools of a day.

    Raises:
        ValueError: If no ad lives.
    """
    living = alive(catalog, day)
    if not living.any():
        raise ValueError(
            f"no ad lives on day {day}: lower data.world.ads.churn_per_day or raise data.world.ads.ads_per_category"
        )
    weight = catalog.weight * living
    living_in = np.bincount(catalog.category, living, minlength=words.NUM_CATEGORIES)
    within = living / np.maximum(living_in, 1)[catalog.category]
    return Pools(weight / weight.sum(), living / living.sum(), within, living_in > 0)


def tower_categories(taste_logits: Floats, pool: Pools, sharpness: float) -> Doubles:
    """The crude two-tower's category probabilities, ``(U, C)``: the taste, blurred, over open categories."""
    logits = np.where(pool.open, sharpness * taste_logits.astype(np.float64), -np.inf)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)


def draw_candidates(
    catalog: Catalog, pool: Pools, towers: Doubles, user: Ints, *, config: ExposureConfig, rng: np.random.Generator
) -> Ints:
    """Candidates of ``(n,)`` auctions, ``(n, K)``: popular, two-tower and random ads; one may be drawn twice."""
    popular = _draw(pool.popular, rng.random((len(user), config.popular)))
    # One sorted array for all users: user u's cumulative probabilities lie in (u, u + 1].
    cumulative = np.cumsum(towers, axis=1)
    cumulative = cumulative / cumulative[:, -1:] + np.arange(len(towers))[:, None]
    point = user[:, None] + np.minimum(rng.random((len(user), config.two_tower)), 1 - 1e-7)
    category = np.searchsorted(cumulative.ravel(), point, side="right") - user[:, None] * towers.shape[1]
    tower = _draw_within(catalog, pool, category, rng.random(category.shape))
    living = np.flatnonzero(pool.random)
    anything = living[rng.integers(0, len(living), (len(user), config.random))]
    return np.concatenate([popular, tower, anything], axis=1)


class Quotes(NamedTuple):
    """What the ranker says of ads before its noise, all of one shape."""

    pctr: Floats
    pcvr: Floats
    log_score: Doubles  # log(1000 pCTR pCVR B)


def quote(
    state: State, catalog: Catalog, users: Users, user: Ints, ad: Ints, fit: Floats, *, config: WorldConfig
) -> Quotes:
    """The ranker's view: it knows taste, quality and fatigue, and of intents only how often they come."""
    logit = base_click_logit(state, catalog, user, ad, fit, config=config)
    pctr = sigmoid(logit + expected_intent_logit(state, catalog, user, ad, config=config))
    pcvr = sigmoid(conversion_logit(state, catalog, users, user, ad, fit, config=config.conversions))
    return Quotes(pctr, pcvr, np.log(1000.0 * pctr * pcvr * catalog.bid[ad]))


class Winners(NamedTuple):
    """The results of n auctions."""

    slot: Ints  # (n,) which candidate won
    score: Doubles  # (n,) its eCPM
    price: Doubles  # (n,) what it pays for a thousand impressions


def second_price(score: Doubles, ad: Ints) -> Winners:
    """The highest eCPM wins and pays the highest eCPM of another ad; 0 if there is no other ad.

    Args:
        score: eCPM of the candidates, ``(n, K)``; the first of equals wins.
        ad: The candidates, ``(n, K)``.

    Example:
        >>> second_price(np.array([[3.0, 8.0, 5.0]]), np.array([[4, 7, 9]])).price.tolist()
        [5.0]
    """
    rows = np.arange(len(score))
    slot = score.argmax(axis=1)
    others = np.where(ad == ad[rows, slot][:, None], 0.0, score)
    return Winners(slot, score[rows, slot], others.max(axis=1))


class Shown(NamedTuple):
    """n impressions."""

    user: Ints
    ad: Ints
    pctr: Doubles  # the ranker's noisy probability
    ecpm: Doubles  # the winner's score
    price: Doubles  # what it pays for a thousand impressions
    fit: Floats


def show(
    state: State,
    catalog: Catalog,
    users: Users,
    pool: Pools,
    user: Ints,
    *,
    config: WorldConfig,
    rng: np.random.Generator,
) -> Shown:
    """Run one auction for each of ``(n,)`` page views."""
    exposure = config.exposure
    towers = tower_categories(state.logits, pool, exposure.two_tower_sharpness)
    ad = draw_candidates(catalog, pool, towers, user, config=exposure, rng=rng)
    fit = affinity(state, catalog, user[:, None], ad)
    view = quote(state, catalog, users, user[:, None], ad, fit, config=config)
    noise = np.exp(exposure.pctr_noise * rng.standard_normal(ad.shape))
    winners = second_price(np.exp(view.log_score) * noise, ad)
    won = np.arange(len(user)), winners.slot
    pctr = np.minimum(view.pctr[won] * noise[won], 1.0)
    return Shown(user, ad[won], pctr, winners.score, winners.price, fit[won])


def _draw(probability: Doubles, uniform: Doubles) -> Ints:
    cumulative = np.cumsum(probability)
    return np.asarray(np.searchsorted(cumulative, uniform * (1 - 1e-9) * cumulative[-1], side="right"), dtype=np.int64)


def _draw_within(catalog: Catalog, pool: Pools, category: Ints, uniform: Doubles) -> Ints:
    """Ads are sorted by category, so a category is a piece of the cumulative sum over all ads."""
    cumulative = np.cumsum(pool.within)
    first = np.searchsorted(catalog.category, np.arange(words.NUM_CATEGORIES))
    before = np.concatenate([[0.0], cumulative])[first]
    return np.asarray(
        np.searchsorted(cumulative, before[category] + uniform * (1 - 1e-9), side="right"), dtype=np.int64
    )

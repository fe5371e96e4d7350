"""How users answer ads: the true click and conversion logits, and what the platform's ranker knows of them."""

import numpy as np
from numpy.typing import NDArray

from leadre.adworld import words
from leadre.adworld.catalog import Catalog
from leadre.adworld.config import ConversionsConfig, WorldConfig
from leadre.adworld.state import State, ramp
from leadre.adworld.users import Users

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def affinity(state: State, catalog: Catalog, user: Ints, ad: Ints) -> Floats:
    """``<z_u, v_a>`` for broadcast indices of users and ads, such as ``(n, 1)`` and ``(n, K)``."""
    vectors = catalog.vector[ad]
    places = np.broadcast_to(state.vector[user], vectors.shape)
    return np.asarray(np.einsum("...d,...d->...", places, vectors), dtype=np.float32)


def base_click_logit(
    state: State, catalog: Catalog, user: Ints, ad: Ints, fit: Floats, *, config: WorldConfig
) -> Floats:
    """The click logit without the intent: taste, vector, quality and fatigue."""
    category, clicks = catalog.category[ad], config.clicks
    taste = np.log(words.NUM_CATEGORIES * state.taste[user, category] + np.float32(1e-6))
    logit = clicks.intercept + clicks.fit * fit + clicks.taste * taste + catalog.quality[ad]
    return np.asarray(logit - clicks.fatigue * state.fatigue[user, category], dtype=np.float32)


def intent_click_logit(state: State, catalog: Catalog, user: Ints, ad: Ints, *, config: WorldConfig) -> Floats:
    """What an intent adds: for ads of its category, and more for its brand; grows over the first days."""
    same = catalog.category[ad] == state.intent[user]
    brand = same & (catalog.brand[ad] == state.brand[user])
    grown = ramp(state, config.intents.ramp_days)[user]
    return np.asarray(grown * (config.clicks.intent * same + config.clicks.brand * brand), dtype=np.float32)


def expected_intent_logit(state: State, catalog: Catalog, user: Ints, ad: Ints, *, config: WorldConfig) -> Floats:
    """What the ranker puts in place of the intent, which it cannot see.

    It knows how often intents come and that their category follows the taste, so it is right on average:
    ``log(1 + P(intent under way) theta_uc (exp(beta_I) - 1))``.
    """
    days = config.intents.start_probability * (1 + config.intents.mean_days)
    under_way = days / (1 + days)
    odds = np.float32(under_way * np.expm1(config.clicks.intent))
    return np.asarray(np.log1p(odds * state.taste[user, catalog.category[ad]]), dtype=np.float32)


def conversion_logit(
    state: State,
    catalog: Catalog,
    users: Users,
    user: Ints,
    ad: Ints,
    fit: Floats,
    *,
    config: ConversionsConfig,
) -> Floats:
    """The logit of a conversion given a click: fit, and the gap between price and consumption level.

    It is without the part of the intent, which the ranker does not know.
    """
    gap = np.abs(catalog.price[ad] - users.consumption[user])
    return np.asarray(config.intercept + config.fit * fit - config.price_gap * gap, dtype=np.float32)


def click_probability(
    state: State, catalog: Catalog, user: Ints, ad: Ints, fit: Floats, *, config: WorldConfig
) -> Floats:
    """The truth that clicks are drawn with: the intent included."""
    logit = base_click_logit(state, catalog, user, ad, fit, config=config)
    return sigmoid(logit + intent_click_logit(state, catalog, user, ad, config=config))


def conversion_probability(
    state: State,
    catalog: Catalog,
    users: Users,
    user: Ints,
    ad: Ints,
    fit: Floats,
    *,
    config: ConversionsConfig,
) -> Floats:
    """The truth that conversions are drawn with, given a click: the intent included."""
    logit = conversion_logit(state, catalog, users, user, ad, fit, config=config)
    return sigmoid(logit + np.float32(config.intent) * (catalog.category[ad] == state.intent[user]))


def sigmoid(logit: Floats) -> Floats:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-logit)), dtype=np.float32)

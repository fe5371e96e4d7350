"""The best list there can be: the hidden state, the logging policy and the click model are all known."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import ndtr

from leadre import tables
from leadre.adworld.auction import Pools, pools, quote, tower_categories
from leadre.adworld.catalog import Catalog
from leadre.adworld.config import ExposureConfig, WorldConfig
from leadre.adworld.response import click_probability
from leadre.adworld.state import State, select_users
from leadre.adworld.users import Users

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]

CHUNK = 128
"""Users ranked at once; bounds the memory at CHUNK x N x D floats."""


def oracle_lists(
    moments: State,
    day: Ints,
    catalog: Catalog,
    users: Users,
    asked: Ints,
    *,
    config: WorldConfig,
    names: tuple[NDArray[np.object_], NDArray[np.object_]],
) -> pl.DataFrame:
    """Rank all ads by the true probability of being the next ad clicked (LISTS, top ``oracle_size``).

    ``P(next clicked ad = a | hidden state) = exposure(a) click(a) / sum over ads``: the ad has to win an auction of
    the logging policy and then be clicked. Both are exact (`exposure`, the world's own click logit). The hidden
    state is that of the day of the user's last ad behavior. Where that behavior is a conversion, the ad is one
    clicked before, which this list does not look for.

    Args:
        moments: Hidden state of all U users at that day.
        day: That day, ``(U,)``.
        catalog: The N ads.
        users: The U users.
        asked: Users to rank for; without any there are no lists.
        config: The world's settings.
        names: ad_id ``(N,)`` and user_id ``(U,)``.
    """
    size = min(config.oracle_size, catalog.num_ads)
    ad_id, user_id = names
    frames = []
    for today, chunk in _chunks(day, asked):
        chance = choice_probability(moments, catalog, users, chunk, pools(catalog, today), config=config)
        # Ties (dead ads at 0) are broken by ad_id, so that the order is total.
        order = np.lexsort((np.broadcast_to(ad_id.astype(str), chance.shape), -chance), axis=1)[:, :size]
        frames.append(
            pl.DataFrame(
                {
                    "user_id": pl.Series(np.repeat(user_id[chunk], size), dtype=pl.String),
                    "rank": pl.Series(np.tile(np.arange(1, size + 1), len(chunk)), dtype=pl.Int32),
                    "ad_id": pl.Series(ad_id[order].ravel(), dtype=pl.String),
                    "score": np.take_along_axis(chance, order, axis=1).ravel(),
                }
            )
        )
    return pl.concat([pl.DataFrame(schema=tables.LISTS.schema), *frames]).sort("user_id", "rank")


def choice_probability(
    moments: State, catalog: Catalog, users: Users, chunk: Ints, pool: Pools, *, config: WorldConfig
) -> Doubles:
    """The probability of each ad to be the next clicked, ``(B, N)``; rows sum to 1."""
    state = select_users(moments, chunk)
    few = Users._make(field[chunk] for field in users)
    user, ad = np.arange(len(chunk))[:, None], np.arange(catalog.num_ads)[None, :]
    fit = np.asarray(state.vector @ catalog.vector.T)
    view = quote(state, catalog, few, user, ad, fit, config=config)
    clicked = click_probability(state, catalog, user, ad, fit, config=config)
    towers = tower_categories(state.logits, pool, config.exposure.two_tower_sharpness)
    within = towers[:, catalog.category] * pool.within
    chance = exposure(view.log_score, within, pool, config=config.exposure) * clicked
    return np.asarray(chance / chance.sum(axis=1, keepdims=True), dtype=np.float64)


def exposure(log_score: Doubles, tower: Doubles, pool: Pools, *, config: ExposureConfig) -> Doubles:
    """The probability of each ad to win the auction of one page view, ``(B, N)``; rows sum to 1.

    A candidate of log score s wins with ``integral phi(x - s) prod_others F(x) dx``, where F is the distribution of
    the noisy log score of a candidate from the popular, two-tower or random pool. Scores are put on a grid
    of a quarter of the noise's deviation.

    Args:
        log_score: The ranker's log score before its noise, ``(B, N)``.
        tower: Probability of a two-tower draw, ``(B, N)``.
        pool: The day's pools.
        config: Numbers of candidates and the noise of their scores.
    """
    noise, rows = config.pctr_noise, len(log_score)
    step = noise / 4
    low = log_score.min()
    place = np.rint((log_score - low) / step).astype(np.int64)
    width = int(place.max()) + 1
    tail = 16  # four deviations beyond the lowest and the highest score
    at = np.arange(width) * step
    x = np.arange(-tail, width + tail) * step
    below = ndtr((x[:, None] - at) / noise)  # (X, G)
    density = np.exp(-0.5 * ((x[:, None] - at) / noise) ** 2)
    density /= density.sum(axis=0)
    counts = (config.popular, config.two_tower, config.random)
    sources = (np.broadcast_to(pool.popular, tower.shape), tower, np.broadcast_to(pool.random, tower.shape))
    cell = (np.arange(rows)[:, None] * width + place).ravel()
    masses = [np.bincount(cell, source.ravel(), minlength=rows * width) for source in sources]
    falls = [mass.reshape(rows, width) @ below.T for mass in masses]  # F of one draw, (B, X)
    won = np.zeros_like(log_score)
    for kind, source in enumerate(sources):
        others = [
            fall ** (count - (kind == other)) for other, (fall, count) in enumerate(zip(falls, counts, strict=True))
        ]
        win = np.prod(others, axis=0) @ density  # (B, G)
        won += counts[kind] * source * np.take_along_axis(win, place, axis=1)
    return np.asarray(won / won.sum(axis=1, keepdims=True), dtype=np.float64)


def _chunks(day: Ints, asked: Ints) -> Iterator[tuple[int, Ints]]:
    for today in np.unique(day[asked]):
        same = asked[day[asked] == today]
        for start in range(0, len(same), CHUNK):
            yield int(today), same[start : start + CHUNK]

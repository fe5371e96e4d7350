"""Simulate a display-ad world day by day (the synthetic data behind the quick start and every test)."""

import logging
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.adworld.auction import Shown, pools, show
from leadre.adworld.catalog import DAY, START, Catalog, ad_ids, ads_frame, draw_catalog
from leadre.adworld.config import WorldConfig
from leadre.adworld.contents import (
    Library,
    Read,
    browse,
    content_ids,
    contents_frame,
    draw_habits,
    item_actions,
    library,
)
from leadre.adworld.oracle import oracle_lists
from leadre.adworld.response import click_probability, conversion_probability
from leadre.adworld.state import State, begin, copy_users, next_day, select_users, tire
from leadre.adworld.streams import stream
from leadre.adworld.users import Users, draw_users, user_ids, users_frame
from leadre.adworld.worth import Hidden, pack

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
MIN_AD_BEHAVIORS = 2
"""The oracle ranks for users with so many: a tested user has a test and a valid target."""


class World(NamedTuple):
    """A simulated world; the columns are declared in `leadre.tables` where a table is named."""

    ads: pl.DataFrame
    """ADS without ``description``."""
    users: pl.DataFrame
    """USERS."""
    contents: pl.DataFrame
    """CONTENTS."""
    behaviors: pl.DataFrame
    """BEHAVIORS: actions ``click`` and ``conversion`` on ads, and those of the content domain."""
    impressions: pl.DataFrame
    """IMPRESSIONS: every ad shown, with the winner's eCPM and the ranker's noisy click probability."""
    oracle: pl.DataFrame
    """LISTS: see `leadre.adworld.oracle.oracle_lists`."""
    truth: pl.DataFrame
    """Row for row with impressions: ``click_probability`` (true) and ``price`` (paid a thousand impressions)."""
    hidden: dict[str, NDArray[Any]]
    """`leadre.adworld.worth.Hidden` of the users that the oracle ranks for, as arrays to keep."""


class _Day(NamedTuple):
    """Everything that happens in one day; ``time`` in seconds since the world's start."""

    shown: Shown
    probability: NDArray[np.float64]
    clicked: NDArray[np.bool_]
    shown_time: Ints
    converted: Ints  # rows of shown
    converted_time: Ints
    read: Read
    read_time: Ints


def simulate(config: WorldConfig, seed: int) -> World:
    """Simulate a world; the same config and seed give the same rows, byte for byte.

    Each day taste drifts and intents come and go, then users read content and see ads. An intent changes what is
    read from its first day on, and what is clicked from its second on: content precedes ads. Ad and
    content times of a user are all distinct. A conversion after the last day is not seen.
    """
    catalog = draw_catalog(config.ads, config.days, seed)
    users = draw_users(config.users, config.ads.width, seed)
    books, habits = library(config.contents, config.ads), draw_habits(users, config.contents, seed)
    state = begin(users, catalog.category_vectors)
    moments, moment_day = State._make(field.copy() for field in state), np.full(users.num_users, -1)
    days: list[_Day] = []
    for day in range(config.days):
        state = next_day(state, users, catalog.category_vectors, config=config, seed=seed, day=day)
        days.append(_live(state, catalog, users, habits, books, config=config, seed=seed, day=day))
        acting = _acting_on(days, day)
        copy_users(moments, state, acting)
        moment_day[acting] = day
        shown = days[-1].shown
        state = tire(state, shown.user, catalog.category[shown.ad], config.clicks.fatigue_decay)
    names = ad_ids(catalog, seed), user_ids(users.num_users)
    behaviors = _behaviors(days, books, config.days, names)
    counts = np.bincount(_ad_users(days, config.days), minlength=users.num_users)
    asked = np.flatnonzero(counts >= MIN_AD_BEHAVIORS)
    oracle = oracle_lists(moments, moment_day, catalog, users, asked, config=config, names=names)
    impressions, truth = _impressions(days, names)
    hidden = Hidden(
        config=config,
        state=select_users(moments, asked),
        day=moment_day[asked],
        users=Users._make(field[asked] for field in users),
        catalog=catalog,
        user_ids=names[1][asked],
        ad_ids=names[0],
    )
    log.info("simulated %s users, %s ads, %s behaviors", users.num_users, catalog.num_ads, len(behaviors))
    return World(
        ads=ads_frame(catalog, config.ads, config.days, seed),
        users=users_frame(users, config.users, seed),
        contents=contents_frame(books),
        behaviors=behaviors,
        impressions=impressions,
        oracle=oracle,
        truth=truth,
        hidden=pack(hidden),
    )


def _live(
    state: State,
    catalog: Catalog,
    users: Users,
    habits: NDArray[np.float64],
    books: Library,
    *,
    config: WorldConfig,
    seed: int,
    day: int,
) -> _Day:
    """One day: impressions, clicks, conversions and content of everybody."""
    rng = stream(seed, "impressions", day)
    mean = config.exposure.impressions_per_day * users.activity.astype(np.float64)
    user = np.repeat(np.arange(users.num_users), rng.poisson(mean))
    pool = pools(catalog, day)
    shown = show(state, catalog, users, pool, user, config=config, rng=stream(seed, "auction", day))
    probability = click_probability(state, catalog, user, shown.ad, shown.fit, config=config).astype(np.float64)
    clicked = stream(seed, "clicks", day).random(len(user)) < probability
    read = browse(state, users, habits, books, config=config.contents, seed=seed, day=day)
    time = _distinct_times(np.concatenate([user, read.user]), stream(seed, "times", day)) + day * DAY
    shown_time = time[: len(user)]
    converted, delay = _conversions(state, catalog, users, shown, clicked, config=config, seed=seed, day=day)
    return _Day(
        shown, probability, clicked, shown_time, converted, shown_time[converted] + delay, read, time[len(user) :]
    )


def _conversions(
    state: State,
    catalog: Catalog,
    users: Users,
    shown: Shown,
    clicked: NDArray[np.bool_],
    *,
    config: WorldConfig,
    seed: int,
    day: int,
) -> tuple[Ints, Ints]:
    """Rows of ``shown`` that convert, and the delay in seconds, odd so that it meets no other behavior."""
    rows = np.flatnonzero(clicked)
    user, ad, fit = shown.user[rows], shown.ad[rows], shown.fit[rows]
    probability = conversion_probability(state, catalog, users, user, ad, fit, config=config.conversions)
    rng = stream(seed, "conversions", day)
    converted = rng.random(len(rows)) < probability
    hours = config.conversions.delay_hours * np.exp(config.conversions.delay_spread * rng.standard_normal(len(rows)))
    seconds = 1 + 2 * np.rint(hours * 1800).astype(np.int64)
    return rows[converted], seconds[converted]


def _distinct_times(user: Ints, rng: np.random.Generator) -> Ints:
    """An even second of the day for each event, ``(n,)``, in random order and distinct within a user.

    The k-th of a user's m events falls into the k-th of m equal parts of the day.
    """
    order = np.lexsort((rng.random(len(user)), user))
    first = np.searchsorted(user[order], user[order], side="left")
    count = np.bincount(user)[user[order]]
    part = (np.arange(len(user)) - first + rng.random(len(user))) / count
    time = np.empty(len(user), dtype=np.int64)
    time[order] = 2 * np.floor(part * (DAY // 2)).astype(np.int64)
    return time


def _acting_on(days: list[_Day], day: int) -> Ints:
    """Users with an ad behavior on ``day``: those who click, and those whose earlier click converts."""
    clickers = [days[-1].shown.user[days[-1].clicked]]
    due = [past.shown.user[past.converted[past.converted_time // DAY == day]] for past in days]
    return np.unique(np.concatenate(clickers + due))


def _ad_users(days: list[_Day], num_days: int) -> Ints:
    clicks = [day.shown.user[day.clicked] for day in days]
    return np.concatenate(clicks + [day.shown.user[day.converted[_seen(day, num_days)]] for day in days])


def _seen(day: _Day, num_days: int) -> NDArray[np.bool_]:
    return day.converted_time < num_days * DAY


def _behaviors(
    days: list[_Day], books: Library, num_days: int, names: tuple[NDArray[np.object_], NDArray[np.object_]]
) -> pl.DataFrame:
    ad_id, user_id = names
    item_id, action = content_ids(books.num_items), item_actions(books.num_items)
    frames = []
    for day in days:
        shown, seen = day.shown, _seen(day, num_days)
        bought = day.converted[seen]
        frames += [
            _rows(
                user_id[shown.user[day.clicked]],
                ad_id[shown.ad[day.clicked]],
                "ad",
                "click",
                day.shown_time[day.clicked],
            ),
            _rows(user_id[shown.user[bought]], ad_id[shown.ad[bought]], "ad", "conversion", day.converted_time[seen]),
            _rows(user_id[day.read.user], item_id[day.read.item], "content", action[day.read.item], day.read_time),
        ]
    return _apart(pl.concat(frames).sort("user_id", "time", "item_id", maintain_order=True))


def _apart(behaviors: pl.DataFrame) -> pl.DataFrame:
    """Two conversions of a user in one second are very rare; the later row is moved on by two seconds."""
    same = pl.int_range(pl.len()).over("user_id", "time")
    return behaviors.with_columns(pl.col("time") + 2 * same).sort("user_id", "time", maintain_order=True)


def _rows(
    user: NDArray[np.object_], item: NDArray[np.object_], domain: str, action: str | NDArray[np.object_], time: Ints
) -> pl.DataFrame:
    names = np.full(len(user), action, dtype=object) if isinstance(action, str) else action
    columns = {"user_id": user, "item_id": item, "domain": np.full(len(user), domain, dtype=object), "action": names}
    series = [pl.Series(name, values, dtype=pl.String) for name, values in columns.items()]
    return pl.DataFrame([*series, pl.Series("time", START + time, dtype=pl.Int64)])


def _impressions(
    days: list[_Day], names: tuple[NDArray[np.object_], NDArray[np.object_]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    ad_id, user_id = names
    frame = pl.concat(
        pl.DataFrame(
            {
                "user_id": pl.Series(user_id[day.shown.user], dtype=pl.String),
                "ad_id": pl.Series(ad_id[day.shown.ad], dtype=pl.String),
                "time": pl.Series(START + day.shown_time, dtype=pl.Int64),
                "ecpm": day.shown.ecpm,
                "pctr": day.shown.pctr,
                "clicked": day.clicked,
                "click_probability": day.probability,
                "price": day.shown.price,
            }
        )
        for day in days
    ).sort("user_id", "time", maintain_order=True)
    return frame.drop("click_probability", "price"), frame.select("click_probability", "price")

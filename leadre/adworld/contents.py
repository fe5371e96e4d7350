"""What users read, watch and search: half of it noise, and more of it about a category while an intent is under way."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.adworld import words
from leadre.adworld.config import AdsConfig, ContentsConfig
from leadre.adworld.state import State
from leadre.adworld.streams import stream
from leadre.adworld.users import Users

Ints = NDArray[np.int64]

NUM_NOISE = len(words.THEMES) * len(words.ANGLES)
NUM_COMMERCIAL = words.NUM_CATEGORIES * len(words.GUIDES)
NUM_TOPICS = NUM_COMMERCIAL + NUM_NOISE
"""Topics 0..NUM_COMMERCIAL-1 are a category told in one way each (category = topic // guides), the others are noise."""


class Library(NamedTuple):
    """How content items are numbered: first ``items_per_topic`` items a topic, then one item an SPU."""

    items_per_topic: int
    brands_per_category: int
    spus_per_brand: int

    @property
    def num_items(self) -> int:
        """The number of content items."""
        spus = words.NUM_CATEGORIES * self.brands_per_category * self.spus_per_brand
        return NUM_TOPICS * self.items_per_topic + spus


def library(contents: ContentsConfig, ads: AdsConfig) -> Library:
    """The library of a world; its texts come from ``words`` alone."""
    return Library(contents.items_per_topic, ads.brands_per_category, ads.spus_per_brand)


def content_ids(count: int) -> NDArray[np.object_]:
    """The id of each content item."""
    return np.array([f"content_{n:06d}" for n in range(count)], dtype=object)


def item_actions(count: int) -> NDArray[np.object_]:
    """The action of a positive behavior on each item."""
    return np.array(words.ACTIONS, dtype=object)[_forms(count)]


def contents_frame(books: Library) -> pl.DataFrame:
    """The CONTENTS table; items of noise topics have no SPU, and their category is a theme such as ``emotion``."""
    count = books.num_items
    forms = _forms(count).tolist()
    rows = [_topic_row(topic, n, books) for topic in range(NUM_TOPICS) for n in range(books.items_per_topic)]
    for category in range(words.NUM_CATEGORIES):
        for brand in range(books.brands_per_category):
            for number in range(books.spus_per_brand):
                unit = words.spu(category, brand, number)
                review = words.REVIEWS[forms[len(rows)]]
                rows.append((f"{unit} {review}", words.CATEGORIES[category][1], unit))
    schema = {"title": pl.String(), "category": pl.String(), "spu": pl.String()}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.select(pl.Series("item_id", content_ids(count), dtype=pl.String), *schema)


def draw_habits(users: Users, config: ContentsConfig, seed: int) -> NDArray[np.float64]:
    """Each user's cumulative probabilities over topics, ``(U, topics)``, from a sparse Dirichlet.

    They are independent of the user's taste: outside an intent, content says nothing about ads.
    """
    # A gamma of shape a underflows to all zeros for small a; in logs, log G(a) = log G(a + 1) + log(U) / a.
    rng, shape = stream(seed, "contents/habits"), (users.num_users, NUM_TOPICS)
    concentration = config.topic_concentration
    logs = np.log(rng.standard_gamma(concentration + 1, shape)) + np.log1p(-rng.random(shape)) / concentration
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    cumulative = np.cumsum(powers / powers.sum(axis=1, keepdims=True), axis=1)
    return np.asarray(cumulative / cumulative[:, -1:], dtype=np.float64)


class Read(NamedTuple):
    """n content behaviors of one day."""

    user: Ints
    item: Ints


def browse(
    state: State,
    users: Users,
    habits: NDArray[np.float64],
    books: Library,
    *,
    config: ContentsConfig,
    seed: int,
    day: int,
) -> Read:
    """One day of content.

    Everybody reads Poisson(base_per_day x activity) items of habit. Who has an intent reads Poisson(intent_per_day)
    more: each with probability ``signal`` about the intent's category (an SPU of its brand, or a guide), else
    about a topic drawn from all with equal probability.
    """
    rng = stream(seed, "contents/read", day)
    count = users.num_users
    habitual = np.repeat(np.arange(count), rng.poisson(config.base_per_day * users.activity.astype(np.float64)))
    wanting = np.repeat(np.arange(count), rng.poisson(config.intent_per_day, count) * (state.intent >= 0))
    flat = (habits + np.arange(count)[:, None]).ravel()
    point = habitual + np.minimum(rng.random(len(habitual)), 1 - 1e-7)
    habit_topic = np.searchsorted(flat, point, side="right") - habitual * NUM_TOPICS
    telling = rng.random(len(wanting)) < config.signal
    guide = rng.integers(0, len(words.GUIDES), len(wanting))
    any_topic = rng.integers(0, NUM_TOPICS, len(wanting))
    topic = np.where(telling, state.intent[wanting] * len(words.GUIDES) + guide, any_topic)
    any_brand = rng.integers(0, books.brands_per_category, len(habitual) + len(wanting))
    brand = np.where(
        np.concatenate([np.zeros(len(habitual), bool), telling]),
        np.concatenate([any_brand[: len(habitual)], state.brand[wanting]]),
        any_brand,
    )
    topics = np.concatenate([habit_topic, topic])
    return Read(np.concatenate([habitual, wanting]), _items(topics, brand, books, config.spu_share, rng))


def _items(topic: Ints, brand: Ints, books: Library, spu_share: float, rng: np.random.Generator) -> Ints:
    """An item of each topic; for a commercial topic it is about an SPU of the brand with ``spu_share``."""
    plain = topic * books.items_per_topic + rng.integers(0, books.items_per_topic, len(topic))
    number = rng.integers(0, books.spus_per_brand, len(topic))
    category = topic // len(words.GUIDES)
    review = (category * books.brands_per_category + brand) * books.spus_per_brand + number
    about_spu = (topic < NUM_COMMERCIAL) & (rng.random(len(topic)) < spu_share)
    return np.where(about_spu, NUM_TOPICS * books.items_per_topic + review, plain)


def _forms(count: int) -> Ints:
    return np.arange(count) % len(words.ACTIONS)


def _topic_row(topic: int, number: int, books: Library) -> tuple[str, str, str | None]:
    if topic < NUM_COMMERCIAL:
        group, category = words.CATEGORIES[topic // len(words.GUIDES)]
        before, after = words.GUIDES[topic % len(words.GUIDES)]
        nouns = words.GROUPS[group][category]
        return f"{before} {nouns[number % len(nouns)]}, {after} {number + 1}", category, None
    theme = words.THEMES[(topic - NUM_COMMERCIAL) // len(words.ANGLES)]
    before, after = words.ANGLES[(topic - NUM_COMMERCIAL) % len(words.ANGLES)]
    return f"{before} {theme} {after} {number + 1}", theme, None

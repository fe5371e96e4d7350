"""The ads of the world: what they are, what nobody can read in them, and when they live."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.adworld import words
from leadre.adworld.config import AdsConfig
from leadre.adworld.streams import stream

START = 1_704_067_200
"""The world starts on 2024-01-01, midnight UTC."""
DAY = 86_400

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Catalog(NamedTuple):
    """N ads, sorted by category; the text is made of the first four fields alone."""

    category: Ints  # (N,)
    brand: Ints  # (N,) number within the category
    spu: Ints  # (N,) number within the brand
    price: Ints  # (N,) level, 0 low
    vector: Floats  # (N, D) latent position
    quality: Floats  # (N,) what clicks depend on beside the vector; hidden
    bid: Doubles  # (N,) target cost of one conversion; independent of vector and quality
    weight: Doubles  # (N,) popularity of exposure
    start_day: Doubles  # (N,) lives in [start_day, end_day); -inf if it lived before the world started
    end_day: Doubles  # (N,)
    category_vectors: Floats  # (C, D) unit length

    @property
    def num_ads(self) -> int:
        """N."""
        return len(self.category)


def draw_catalog(config: AdsConfig, days: int, seed: int) -> Catalog:
    """Draw the catalog of a world of ``days`` days.

    Vectors: ``g_c = .8 s_(c mod 8) + .6 noise`` of unit length, plus a step of the brand and one of the ad.
    Bids: ``log B ~ N(bid_category_spread * z_c, bid_spread^2)``, drawn apart from vectors and quality, so that
    aligning a model with value cannot be the same as aligning it with relevance.
    """
    num_categories, count = words.NUM_CATEGORIES, words.NUM_CATEGORIES * config.ads_per_category
    category = np.repeat(np.arange(num_categories), config.ads_per_category)
    brand = stream(seed, "ads/brand").integers(0, config.brands_per_category, count)
    centers = _category_vectors(config.width, seed)
    brand_steps = _normal(seed, "ads/brand_vector", (num_categories, words.MAX_BRANDS, config.width))
    vector = centers[category] + (
        config.brand_spread * brand_steps[category, brand]
        + config.ad_spread * _normal(seed, "ads/vector", (count, config.width))
    ) / np.float32(np.sqrt(config.width))
    log_bid = config.bid_category_spread * _normal(seed, "ads/bid_category", (num_categories,))[category]
    log_bid = log_bid + config.bid_spread * _normal(seed, "ads/bid", (count,))
    rank = 1 + stream(seed, "ads/popularity").permutation(count)
    start_day, end_day = _life_spans(count, days, config.churn_per_day, seed)
    return Catalog(
        category=category,
        brand=brand,
        spu=stream(seed, "ads/spu").integers(0, config.spus_per_brand, count),
        price=stream(seed, "ads/price").integers(0, len(words.PRICES), count),
        vector=vector.astype(np.float32),
        quality=(config.quality_spread * _normal(seed, "ads/quality", (count,))).astype(np.float32),
        bid=np.exp(log_bid.astype(np.float64)),
        weight=rank.astype(np.float64) ** -config.exposure_exponent,
        start_day=start_day,
        end_day=end_day,
        category_vectors=centers,
    )


def alive(catalog: Catalog, day: int) -> NDArray[np.bool_]:
    """Which ads may be shown on a day, ``(N,)``: those that live at its first second."""
    return (catalog.start_day <= day) & (day < catalog.end_day)


def ad_ids(catalog: Catalog, seed: int) -> NDArray[np.object_]:
    """The id of each ad, ``(N,)``; ids are shuffled, so that they do not tell the category."""
    number = stream(seed, "ads/id").permutation(catalog.num_ads)
    return np.array([f"ad_{n:06d}" for n in number], dtype=object)


def ads_frame(catalog: Catalog, config: AdsConfig, days: int, seed: int) -> pl.DataFrame:
    """The ADS table without ``description``, sorted by ad_id.

    The text is a function of category, brand, SPU, price and attributes; a ``missing_share`` of the SPUs and
    attributes is left out, and the name is one of several paraphrases.
    """
    rng, count = stream(seed, "ads/text"), catalog.num_ads
    rows = [_texts(*fields, rng, config.missing_share) for fields in _identities(catalog)]
    start = [None if day < 0 else START + round(day * DAY) for day in catalog.start_day]
    end = [None if day >= days else START + round(day * DAY) for day in catalog.end_day]
    assert len(rows) == count
    frame = pl.DataFrame(rows, schema=_TEXT_SCHEMA, orient="row")
    ids = pl.Series("ad_id", ad_ids(catalog, seed), dtype=pl.String)
    times = [pl.Series("start_time", start, dtype=pl.Int64), pl.Series("end_time", end, dtype=pl.Int64)]
    return frame.with_columns(ids, *times).select("ad_id", *_TEXT_SCHEMA, "start_time", "end_time").sort("ad_id")


_TEXT_SCHEMA = {
    "name": pl.String(),
    "product_type": pl.String(),
    "first_category": pl.String(),
    "second_category": pl.String(),
    "attributes": pl.List(pl.String()),
    "spu": pl.String(),
}


def _identities(catalog: Catalog) -> list[tuple[int, int, int, int]]:
    columns = (catalog.category, catalog.brand, catalog.spu, catalog.price)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _texts(
    category: int, brand: int, spu: int, price: int, rng: np.random.Generator, missing_share: float
) -> tuple[str, str, str, str, list[str], str | None]:
    group, name = words.CATEGORIES[category]
    maker, unit = words.brand(category, brand), words.spu(category, brand, spu)
    noun = str(rng.choice(words.GROUPS[group][name]))
    title = str(rng.choice(words.AD_NAMES))
    attributes = [f"brand_{maker}", f"series_{unit}", f"price level_{words.PRICES[price]}"]
    attributes += [f"{key}_{rng.choice(values)}" for key, values in words.ATTRIBUTES[group].items()]
    missing = rng.random(len(attributes) + 1) < missing_share
    kept = [text for text, gone in zip(attributes, missing[1:], strict=True) if not gone]
    ad_name = title.format(brand=maker, line=words.line(category, brand, spu), noun=noun)
    return ad_name, f"{group} Products", group, name, kept, None if missing[0] else unit


def _category_vectors(width: int, seed: int) -> Floats:
    groups = _normal(seed, "ads/group_vector", (words.NUM_GROUPS, width))
    own = _normal(seed, "ads/category_vector", (words.NUM_CATEGORIES, width))
    vectors = 0.8 * groups[np.arange(words.NUM_CATEGORIES) % words.NUM_GROUPS] + 0.6 * own
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _life_spans(count: int, days: int, churn: float, seed: int) -> tuple[Doubles, Doubles]:
    """A steady state: as many ads are born as die, each lives ``Exp(1 / churn)`` days from then on."""
    if churn == 0:
        return np.full(count, -np.inf), np.full(count, np.inf)
    rng = stream(seed, "ads/life")
    old = rng.random(count) < 1 / (1 + churn * days)
    start = np.where(old, 0.0, rng.random(count) * days)
    end = start + rng.exponential(1 / churn, count)
    return np.where(old, -np.inf, start), end


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Floats:
    return stream(seed, name).standard_normal(shape, dtype=np.float32)

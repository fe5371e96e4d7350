"""A value ranker: what another retrieval strategy of the platform would choose (the labels of LTRR@K, LEADRE 5.1.2)."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.baselines.features import Tables

NO_CATEGORY = ""


class ValueScores(NamedTuple):
    """The value of each ad to each user, as its factors: all users times all ads would fill the memory."""

    interest: NDArray[np.float64]  # (U, G) of the user in the category
    category: NDArray[np.int64]  # (N,) of the ad
    worth: NDArray[np.float64]  # (N,) of the ad: click share x eCPM

    def of(self, start: int, stop: int) -> NDArray[np.float64]:
        """The scores of users ``start`` to ``stop - 1``, ``(stop - start, N)``."""
        return np.asarray(self.interest[start:stop][:, self.category] * self.worth)


def train_time(events: pl.DataFrame, split: pl.DataFrame) -> pl.DataFrame:
    """The events strictly before their user's valid target; all events of users without one.

    Args:
        events: Columns ``user_id`` and ``time`` and any others.
        split: A SPLIT frame.
    """
    limits = split.filter(pl.col("role") == "valid").select("user_id", limit="time")
    dated = events.join(limits, on="user_id", how="left", maintain_order="left")
    return dated.filter(pl.col("limit").is_null() | (pl.col("time") < pl.col("limit"))).drop("limit")


def value_scores(
    world: Tables,
    impressions: pl.DataFrame,
    users: pl.Series,
    ads: pl.Series,
    *,
    interest_smoothing: float,
    click_smoothing: float,
) -> ValueScores:
    """``score(u, a) = interest_u(category of a) x eCPM_a x click share of a within its category``.

    Our choice, for the paper does not publish its labels: a ranker with other features than LEADRE's, that
    values money and never sees LEADRE's lists. The caller gives behaviors and impressions of train time only.

    * interest: share of the category among the user's ad and content behaviors, ``interest_smoothing``
      behaviors of the average user added;
    * eCPM: mean over the ad's impressions, one impression of the average eCPM added; all 1 without impressions;
    * click share: the ad's clicks + ``click_smoothing``, over the sum in its category.

    Ads without a category share one.
    """
    category_of = _categories(world)
    category = _lookup(pl.DataFrame({"domain": ["ad"] * len(ads), "item_id": ads}), category_of)
    groups = category.unique().sort()
    code = _codes(category, groups)
    interest = _interest(world, users, groups, category_of, interest_smoothing)
    clicked = world.behaviors.filter(pl.col("domain") == "ad")["item_id"]
    clicks = _count(clicked, ads) + click_smoothing
    share = clicks / np.bincount(code, clicks, minlength=len(groups))[code]
    return ValueScores(interest, code, share * _mean_ecpm(impressions, ads))


def _categories(world: Tables) -> pl.DataFrame:
    """Columns ``domain``, ``item_id``, ``category`` over ads (second-level category, else the first) and contents.

    One id may stand for an ad and for a content: a product that is bought now on promotion, now without.
    """
    ads = world.ads.select(
        pl.lit("ad").alias("domain"), item_id="ad_id", category=pl.coalesce("second_category", "first_category")
    )
    both = pl.concat([ads, world.contents.select(pl.lit("content").alias("domain"), "item_id", "category")])
    return both.with_columns(pl.col("category").fill_null(NO_CATEGORY))


def _lookup(items: pl.DataFrame, category_of: pl.DataFrame) -> pl.Series:
    """The category of each item, given columns ``domain`` and ``item_id``."""
    found = items.join(category_of, on=["domain", "item_id"], how="left", maintain_order="left")
    return found["category"].fill_null(NO_CATEGORY)


def _codes(values: pl.Series, names: pl.Series) -> NDArray[np.int64]:
    """The place of each value in names, -1 for a stranger."""
    numbers = pl.DataFrame({"name": names}).with_row_index("code")
    asked = pl.DataFrame({"name": values}).join(numbers, on="name", how="left", maintain_order="left")
    return asked["code"].cast(pl.Int64).fill_null(-1).to_numpy()


def _count(values: pl.Series, names: pl.Series) -> NDArray[np.float64]:
    code = _codes(values, names)
    return np.bincount(code[code >= 0], minlength=len(names)).astype(np.float64)


def _interest(
    world: Tables, users: pl.Series, groups: pl.Series, category_of: pl.DataFrame, smoothing: float
) -> NDArray[np.float64]:
    user = _codes(world.behaviors["user_id"], users)
    group = _codes(_lookup(world.behaviors.select("domain", "item_id"), category_of), groups)
    average = np.bincount(group[group >= 0], minlength=len(groups)) + 1.0
    known = (user >= 0) & (group >= 0)
    cells = np.bincount(user[known] * len(groups) + group[known], minlength=len(users) * len(groups))
    counts = cells.reshape(len(users), len(groups)) + smoothing * average / average.sum()
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def _mean_ecpm(impressions: pl.DataFrame, ads: pl.Series) -> NDArray[np.float64]:
    if impressions.is_empty():
        return np.ones(len(ads))
    code = _codes(impressions["ad_id"], ads)
    ecpm = impressions["ecpm"].to_numpy()
    known = code >= 0
    total = np.bincount(code[known], ecpm[known], minlength=len(ads)) + ecpm.mean()
    return np.asarray(total / (np.bincount(code[known], minlength=len(ads)) + 1))

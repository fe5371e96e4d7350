"""What the ranker knows of ads and of profiles from its users' train time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.ltr.known import Ints, Known
from leadre.ltr.rows import Doubles, Rows

Floats = NDArray[np.float32]


class Statistics(NamedTuple):
    """Logs of smoothed rates of N ads, and of how profiles move them, as S parts of the users know them."""

    ads: Floats
    """``(S, N, 4)``: click rate of the ad, click rate of its category, ECPM, impressions over the average ad's."""
    profiles: Floats
    """``(S, V, C)``: click rate of a profile's value in a category, over the category's own."""
    prior: Floats
    """``(2G,)``: share of each group in the behaviors of its domain."""


def priors(known: Known, behaviors: pl.DataFrame) -> Floats:
    """The share of each group of ads among all behaviors of a domain, one behavior added to each; ``(2G,)``."""
    columns = behaviors.select("domain", "item_id").join(known.items, on=["domain", "item_id"], how="inner")["column"]
    count = np.bincount(columns.to_numpy(), minlength=2 * known.num_groups) + 1.0
    of_domain = [int((behaviors["domain"] == domain).sum()) + known.num_groups for domain in ("ad", "content")]
    return np.asarray(count / np.repeat(np.array(of_domain), known.num_groups), dtype=np.float32)


def statistics(known: Known, parts: Sequence[Rows], prior: Floats, *, smoothing: float) -> Statistics:
    """Count clicks of ads, of categories, and of profiles' values in categories, in each of S parts of the rows.

    Each rate is smoothed by ``smoothing`` impressions of what is above it: an ad by its category, a category
    and a mean log ECPM by all ads, a profile's value in a category by the category.
    """
    counted = [_of_part(known, rows, smoothing) for rows in parts]
    return Statistics(np.stack([ads for ads, _ in counted]), np.stack([lifts for _, lifts in counted]), prior)


def _of_part(known: Known, rows: Rows, smoothing: float) -> tuple[Floats, Floats]:
    num_ads, num_categories, category = len(known.ads), known.num_categories, known.category[rows.ad]
    clicks = rows.weight * rows.clicked
    average = (clicks.sum() + 1) / (rows.weight.sum() + 1 + smoothing)
    by_category = [_sums(category, weight, num_categories) for weight in (clicks, rows.weight)]
    of_category = (by_category[0] + smoothing * average) / (by_category[1] + smoothing)
    by_ad = [_sums(rows.ad, weight, num_ads) for weight in (clicks, rows.weight)]
    of_ad = (by_ad[0] + smoothing * of_category[known.category]) / (by_ad[1] + smoothing)
    columns = [np.log(of_ad), np.log(of_category)[known.category], _mean_log_ecpm(rows, num_ads, smoothing)]
    columns.append(np.log((by_ad[1] + 1) / (by_ad[1].mean() + 1)))  # a share: parts of the users have fewer of all
    ads = np.stack(columns, axis=1).astype(np.float32)
    return ads, _profile_lifts(known, rows, of_category, smoothing)


def _profile_lifts(known: Known, rows: Rows, of_category: Doubles, smoothing: float) -> Floats:
    cells = known.num_values * known.num_categories
    counts = np.zeros((2, cells))
    for values in known.values[rows.user].T:
        cell = values * known.num_categories + known.category[rows.ad]
        counts += [_sums(cell, weight, cells) for weight in (rows.weight * rows.clicked, rows.weight)]
    clicks, impressions = counts.reshape(2, known.num_values, known.num_categories)
    rate = (clicks + smoothing * of_category) / (impressions + smoothing)
    return np.asarray(np.log(rate / of_category), dtype=np.float32)


def _mean_log_ecpm(rows: Rows, num_ads: int, smoothing: float) -> Doubles:
    """Of each ad; 0 where no row has an ECPM above 0."""
    priced = rows.part(rows.ecpm > 0)
    if not len(priced.ad):
        return np.zeros(num_ads)
    logs = np.log(priced.ecpm)
    total = _sums(priced.ad, logs, num_ads) + smoothing * logs.mean()
    return np.asarray(total / (_sums(priced.ad, np.ones_like(logs), num_ads) + smoothing))


def _sums(place: Ints, weight: Doubles, size: int) -> Doubles:
    return np.bincount(place, weight, minlength=size).astype(np.float64)

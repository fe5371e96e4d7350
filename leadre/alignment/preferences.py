"""Pairs of one user's plausible ads, the one of higher ECPM preferred (LEADRE 4.3.2).

The paper selects "two potential ads that are likely to result in a click or conversion" and orders them by
their ECPM at the ranking stage. Our choice, as it says no more: an ad is plausible for a user who clicked it, or
whose ranker gave it as high a click probability as many clicked ads have. Without that floor the model would be
taught relevance and not value.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.alignment.config import PreferenceConfig
from leadre.tables import Column, Table

PREFERENCES = Table(
    "preferences",
    {
        "user_id": Column(pl.String()),
        "chosen_ad": Column(pl.String()),
        "rejected_ad": Column(pl.String()),
        "chosen_ecpm": Column(pl.Float64()),
        "rejected_ecpm": Column(pl.Float64()),
        "divergence": Column(pl.Int32()),
    },
)
"""One row a pair, sorted by user, chosen and rejected ad. ``divergence`` is the number of leading codes that the two
S-IDs share: DPO's gradient is exactly zero on them, so a pair that parts late trains only the last codes."""


class Preferences(NamedTuple):
    """The pairs and an account of what was left out.

    Attributes:
        pairs: A PREFERENCES table, at least one row.
        impressions: Impressions looked at.
        ads: Plausible (user, ad) combinations that were paired with one another.
        dropped: Impressions (up to ``user_beyond_latest_ads``), then pairs, left out for each reason, in order.
    """

    pairs: pl.DataFrame
    impressions: int
    ads: int
    dropped: dict[str, int]

    def account(self) -> dict[str, Any]:
        """What ``preferences.json`` holds: the counts, and how the pairs spread over levels, users and ads."""
        levels = self.pairs["divergence"].value_counts().sort("divergence")
        return {
            "impressions": self.impressions,
            "plausible_ads": self.ads,
            "dropped": self.dropped,
            "pairs": len(self.pairs),
            "users": self.pairs["user_id"].n_unique(),
            "chosen_ads": self.pairs["chosen_ad"].n_unique(),
            "rejected_ads": self.pairs["rejected_ad"].n_unique(),
            "divergence": {str(level): count for level, count in levels.iter_rows()},
        }


def preferences(
    impressions: pl.DataFrame,
    split: pl.DataFrame,
    sids: pl.DataFrame,
    prompted: pl.Series,
    *,
    config: PreferenceConfig,
) -> Preferences:
    """Compose preference pairs from the impressions of training time.

    Only impressions before the user's validation target count (for users without one: up to their last training
    target). No pair holds a user's validation or test target in either role; none rejects a training target
    unless ``reject_train_targets``. Where ``pctr`` is null, only clicked ads are plausible. The result is the same
    for the same seed, whatever the order of the rows given.

    Args:
        impressions: An IMPRESSIONS table.
        split: A SPLIT table.
        sids: The catalog, a SIDS table; other ads have no response.
        prompted: The user_ids that have a training prompt.
        config: Thresholds, caps and the seed.

    Raises:
        ValueError: If no pair is left.
    """
    dropped: dict[str, int] = {}
    ads = _plausible_ads(impressions, split, sids, prompted, config=config, dropped=dropped)
    pairs = _pairs(ads, split, config=config, dropped=dropped)
    pairs = _sample(pairs, config=config, dropped=dropped)
    if pairs.is_empty():
        raise ValueError(
            f"alignment.preferences left no pair of {len(impressions)} impressions "
            f"({', '.join(f'{reason}: {count}' for reason, count in dropped.items() if count) or 'none to drop'}): "
            "alignment compares two plausible ads of one user by their ECPM; loosen alignment.preferences where the "
            "counts are large, or train without alignment (alignment=none)"
        )
    pairs = pairs.with_columns(divergence=_shared_codes(pairs, sids)).select(list(PREFERENCES.columns))
    pairs = pairs.sort("user_id", "chosen_ad", "rejected_ad")
    return Preferences(pairs, impressions=len(impressions), ads=len(ads), dropped=dropped)


def _plausible_ads(
    impressions: pl.DataFrame,
    split: pl.DataFrame,
    sids: pl.DataFrame,
    prompted: pl.Series,
    *,
    config: PreferenceConfig,
    dropped: dict[str, int],
) -> pl.DataFrame:
    """One row a user and plausible ad, their latest usable impression: user_id, ad_id, ecpm, time."""
    held_out = split.filter(pl.col("role") != "train")
    users = pl.DataFrame({"user_id": prompted.unique()}, schema={"user_id": pl.String()})
    kept = _train_time(impressions, split)
    dropped["not_in_train_time"] = len(impressions) - len(kept)
    threshold = _pctr_threshold(kept, config.min_pctr_quantile)
    kept = _count("user_without_prompt", kept, kept.join(users, on="user_id", how="semi"), dropped)
    kept = _count("ad_not_in_catalog", kept, kept.join(sids, on="ad_id", how="semi"), dropped)
    usable = pl.col("ecpm").is_finite() & (pl.col("ecpm") > 0)
    kept = _count("unusable_ecpm", kept, kept.filter(usable), dropped)
    kept = _count("held_out_target", kept, kept.join(held_out, on=["user_id", "ad_id"], how="anti"), dropped)
    kept = _count("implausible", kept, kept.filter(_is_plausible(threshold)), dropped)
    kept = kept.sort("user_id", "time", "ad_id", "ecpm", descending=[False, True, False, True])
    latest = kept.unique(["user_id", "ad_id"], keep="first", maintain_order=True)
    kept = _count("shown_again_later", kept, latest, dropped)
    few = kept.filter(pl.int_range(pl.len()).over("user_id") < config.max_ads_per_user)
    return _count("user_beyond_latest_ads", kept, few, dropped).select("user_id", "ad_id", "ecpm", "time")


def _count(reason: str, before: pl.DataFrame, after: pl.DataFrame, dropped: dict[str, int]) -> pl.DataFrame:
    """Note how many rows a step took away, and hand on what is left."""
    dropped[reason] = len(before) - len(after)
    return after


def _train_time(impressions: pl.DataFrame, split: pl.DataFrame) -> pl.DataFrame:
    """The impressions before their user's validation target, or up to the last training target where there is none."""
    is_valid, is_train = pl.col("role") == "valid", pl.col("role") == "train"
    ends = split.group_by("user_id").agg(
        end=pl.coalesce(pl.col("time").filter(is_valid).min(), pl.col("time").filter(is_train).max() + 1)
    )
    joined = impressions.join(ends, on="user_id", how="inner", maintain_order="left")
    return joined.filter(pl.col("time") < pl.col("end")).drop("end")


def _pctr_threshold(impressions: pl.DataFrame, quantile: float) -> float | None:
    """The click probability that this share of clicked impressions stays below; None if none has one."""
    clicked = impressions.filter(pl.col("clicked"))["pctr"].drop_nulls().drop_nans()
    return clicked.quantile(quantile, interpolation="linear")


def _is_plausible(threshold: float | None) -> pl.Expr:
    """Clicked, or as likely to be clicked as ``threshold``. A NaN would count as the largest of numbers."""
    clicked = pl.col("clicked").fill_null(value=False)
    if threshold is None:
        return clicked
    pctr = pl.col("pctr").fill_nan(None)
    return clicked | (pctr >= threshold).fill_null(value=False)


def _pairs(
    ads: pl.DataFrame, split: pl.DataFrame, *, config: PreferenceConfig, dropped: dict[str, int]
) -> pl.DataFrame:
    """All pairs of a user's ads whose ECPMs are far enough apart: user_id, chosen and rejected ad and ECPM."""
    better = ads.select("user_id", chosen_ad="ad_id", chosen_ecpm="ecpm")
    worse = ads.select("user_id", rejected_ad="ad_id", rejected_ecpm="ecpm")
    pairs = better.join(worse, on="user_id").filter(pl.col("chosen_ecpm") > pl.col("rejected_ecpm"))
    num_ads = ads.group_by("user_id").len()["len"].cast(pl.Int64)
    num_pairs = int((num_ads * (num_ads - 1) // 2).sum())
    gap = pl.col("chosen_ecpm").log() - pl.col("rejected_ecpm").log()
    pairs = pairs.filter(gap >= config.min_log_ecpm_gap)
    dropped["ecpms_too_close"] = num_pairs - len(pairs)
    if config.reject_train_targets:
        return pairs
    # Pushing a training click down would undo what tuning has just taught.
    targets = split.select("user_id", rejected_ad="ad_id")
    clean = pairs.join(targets, on=["user_id", "rejected_ad"], how="anti")
    return _count("rejected_is_a_train_target", pairs, clean, dropped)


def _sample(pairs: pl.DataFrame, *, config: PreferenceConfig, dropped: dict[str, int]) -> pl.DataFrame:
    """A random sample under the caps; without them a few active users and high bidders would be all of it."""
    pairs = pairs.sort("user_id", "chosen_ad", "rejected_ad")
    pairs = pairs[np.random.default_rng(config.seed).permutation(len(pairs))]
    for column, cap in (
        ("user_id", config.max_pairs_per_user),
        ("chosen_ad", config.max_pairs_per_ad),
        ("rejected_ad", config.max_pairs_per_ad),
    ):
        capped = pairs.filter(pl.int_range(pl.len()).over(column) < cap)
        pairs = _count(f"beyond_cap_of_{column}", pairs, capped, dropped)
    return _count("beyond_max_pairs", pairs, pairs.head(config.max_pairs), dropped)


def _shared_codes(pairs: pl.DataFrame, sids: pl.DataFrame) -> pl.Series:
    """The number of leading codes that the two S-IDs of each pair have in common, as Int32."""
    same = codes_of(pairs["chosen_ad"], sids) == codes_of(pairs["rejected_ad"], sids)
    return pl.Series("divergence", np.cumprod(same, axis=1).sum(axis=1), dtype=pl.Int32)


def codes_of(ads: pl.Series, sids: pl.DataFrame) -> NDArray[np.int64]:
    """The S-IDs ``(N, L)`` of N ads that are all in the catalog."""
    rows = ads.to_frame("ad_id").join(sids, on="ad_id", how="left", maintain_order="left")
    return np.array(rows["sid"].to_list(), dtype=np.int64)

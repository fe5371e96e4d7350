"""Pairs of one user's plausible ads, the one that is worth more preferred (LEADRE 4.3.2).

Our choice, where the paper is silent: two ads of the log are compared by the ECPMs of the log; where one of the two is
of the model's own beam, and so has none, both are compared by the ranker's estimates for the same moment. The two
scales never meet in a pair. By value, the chance of a click times what it brings, all are compared by estimates.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.alignment.candidates import Candidates, Funnel, funnel, usable
from leadre.alignment.config import PreferenceConfig, Worth

_USERS = 1_000
"""Users whose pairs are in memory at a time, before the cap of a user."""
_ROLES = ("chosen", "rejected")
_GROUP = ("user_id", "chosen_ad")
_ORDER = ("turn", "lot", *_GROUP, "place")


class Preferences(NamedTuple):
    """The pairs and an account of what was left out.

    Attributes:
        pairs: A PREFERENCES table, at least one row.
        steps: The way from ``impressions`` and ``beam_ads`` over ``ads`` to ``pairs``: of each what came in, what was
            dropped for each reason, in order, and what went out. ``ads`` takes what goes out of the first two.
        floors: The click probability from which an ad of the log, and of the beam, is plausible.
        settings: What the ads are compared by, which control the pairs are of, and the seed.
    """

    pairs: pl.DataFrame
    steps: dict[str, dict[str, Any]]
    floors: dict[str, float | None]
    settings: dict[str, Any]

    def account(self) -> dict[str, Any]:
        """What ``preferences.json`` holds: the counts, and how the pairs spread over levels, sources, users and ads.

        ``rejected_per_chosen``: how many chosen ads of a user have 1, 2, ... rejected ones.
        """
        sources = pl.format("{}>{}", "chosen_source", "rejected_source").alias("sources")
        return {
            "steps": self.steps,
            "floors": self.floors,
            **self.settings,
            "pairs": self.pairs.height,
            "users": self.pairs["user_id"].n_unique(),
            "chosen_ads": self.pairs["chosen_ad"].n_unique(),
            "rejected_ads": self.pairs["rejected_ad"].n_unique(),
            "gini": _exposure(self.pairs),
            "rejected_per_chosen": _counts(self.pairs.group_by("user_id", "chosen_ad").len("rejected").drop(_GROUP)),
            "sources": _counts(self.pairs.select(sources)),
            "divergence": _counts(self.pairs.select("divergence")),
        }


def preferences(log: Candidates, beam: Candidates, sids: pl.DataFrame, *, config: PreferenceConfig) -> Preferences:
    """Compose preference pairs from plausible ads.

    Ads of the two sources are taken in turns, the log's latest and the beam's best first, until a user has
    ``max_ads_per_user``. Pairs are drawn at random, and each brings others of its user and chosen ad with it, up to
    ``rejected_per_chosen`` in all: those within the log and those with an ad of the beam in turns. The groups take
    turns too: each user's first that a pair within the log leads, and first that one with an ad of the beam leads, come
    before anybody's second, so that neither a source with many ads nor an active user is most of the sample. The caps
    then cut that order, over both sources. A control turns the pairs round last of all: its sample is that of the true
    pairs.

    The result is the same for the same seed, whatever the order of the rows given.

    Args:
        log: The ads of `leadre.alignment.candidates.logged`.
        beam: The ads of `leadre.alignment.candidates.beamed`.
        sids: The catalog, a SIDS table with all the ads.
        config: Thresholds, caps, control and the seed.

    Raises:
        ValueError: If no pair is left.
    """
    ads = _ads(log, beam, config.max_ads_per_user)
    kept = _sample(ads.rows, config)
    steps = {"impressions": log.funnel, "beam_ads": beam.funnel, "ads": ads, "pairs": kept}
    if kept.rows.is_empty():
        raise ValueError(_no_pair(steps))
    order = ["user_id", "chosen_ad", "rejected_ad"]
    pairs = _controlled(kept.rows.sort(order), config)
    pairs = pairs.with_columns(divergence=_shared_codes(pairs, sids)).select(list(tables.PREFERENCES.columns))
    return Preferences(
        pairs.sort(order),
        steps={name: step.account() for name, step in steps.items()},
        floors={"log": log.floor, "beam": beam.floor},
        settings={"worth": config.worth, "control": config.control, "seed": config.seed},
    )


def _ads(log: Candidates, beam: Candidates, max_ads: int) -> Funnel:
    """The ads that are paired with one another, sorted by user and ad."""
    kept = funnel(pl.concat([log.funnel.rows, beam.funnel.rows]))
    turns = kept.rows.sort("user_id", "place", pl.col("source") == "beam", "ad_id")
    kept = kept.left("user_beyond_max_ads", turns.filter(pl.int_range(pl.len()).over("user_id") < max_ads))
    kept = kept.keep("only_ad_of_user", pl.len().over("user_id") > 1)
    return kept._replace(rows=kept.rows.sort("user_id", "ad_id"))


def _sample(ads: pl.DataFrame, config: PreferenceConfig) -> Funnel:
    """A random sample of all pairs under the caps."""
    rng = np.random.default_rng([config.seed, 0])
    parts = ads.with_columns(part=pl.col("user_id").rle_id() // _USERS).partition_by("part", maintain_order=True)
    kept = _together([_pairs(part, config, rng) for part in parts] or [_pairs(ads, config, rng)])
    kept = kept._replace(rows=kept.rows.sort(_ORDER))
    for column in ("chosen_ad", "rejected_ad"):
        kept = kept.keep(f"beyond_cap_of_{column}", pl.int_range(pl.len()).over(column) < config.max_pairs_per_ad)
    return kept.left("beyond_max_pairs", kept.rows.head(config.max_pairs))


def _pairs(ads: pl.DataFrame, config: PreferenceConfig, rng: np.random.Generator) -> Funnel:
    """The pairs of some users that may be made, up to the cap of a user."""
    kept = funnel(ads.join(ads, on="user_id", suffix="_other").filter(pl.col("ad_id") < pl.col("ad_id_other")))
    kept = kept._replace(rows=_on_one_scale(kept.rows, config.worth))
    kept = kept.keep("unusable_estimate", usable("worth") & usable("worth_other"))
    gap = pl.col("worth").log() - pl.col("worth_other").log()
    kept = kept.keep("tied", pl.col("worth") != pl.col("worth_other"))
    kept = kept.keep("too_close", gap.abs() >= config.min_log_gap)
    kept = kept._replace(rows=_drawn(_ordered(kept.rows), rng))
    kept = kept.keep("beyond_rejected_per_chosen", pl.col("place") < config.rejected_per_chosen)
    return kept.keep("beyond_cap_of_user", pl.int_range(pl.len()).over("user_id") < config.max_pairs_per_user)


def _on_one_scale(pairs: pl.DataFrame, worth: Worth) -> pl.DataFrame:
    """``worth`` and ``worth_other``: both ECPMs of the log, or both estimates where that is asked or the log lacks one.

    ``of_log`` tells the pairs of which both ads are of the log.
    """
    of_log = pl.col("ecpm").is_not_null() & pl.col("ecpm_other").is_not_null()
    told = of_log if worth == "ecpm" else pl.lit(value=False)
    worths = {
        f"worth{other}": pl.when(told).then(f"ecpm{other}").otherwise(f"estimate{other}") for other in ("", "_other")
    }
    return pairs.with_columns(of_log=of_log, **worths)


def _ordered(pairs: pl.DataFrame) -> pl.DataFrame:
    """The ad that is worth more as the chosen one."""
    first = pl.col("worth") > pl.col("worth_other")
    columns = {"ad": "ad_id", "worth": "worth", "source": "source"}
    chosen = {f"chosen_{to}": pl.when(first).then(of).otherwise(f"{of}_other") for to, of in columns.items()}
    rejected = {f"rejected_{to}": pl.when(first).then(f"{of}_other").otherwise(of) for to, of in columns.items()}
    return pairs.select("user_id", "of_log", **chosen, **rejected)


def _drawn(pairs: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The pairs in the order of a draw: a user and a chosen ad at a time, the ``place`` of each pair among theirs.

    Pairs within the log and the others take turns, among the pairs of a chosen ad and among the chosen ads of a user;
    which of the two comes first is drawn anew, else it would be the source of more pairs.
    """
    pairs = pairs.sort(*_GROUP, "rejected_ad")
    draws = rng.random((pairs.height, 2))
    pairs = pairs.with_columns(draw=pl.Series(draws[:, 0]), lot=pl.Series(draws[:, 1])).sort("draw")
    pairs = pairs.with_columns(turn=pl.int_range(pl.len()).over(*_GROUP, "of_log")).sort("turn", "lot")
    pairs = pairs.with_columns(place=pl.int_range(pl.len()).over(_GROUP))
    first = pairs.filter(pl.col("place") == 0).sort("draw")
    turns = first.select(*_GROUP, "lot", turn=pl.int_range(pl.len()).over("user_id", "of_log"))
    return pairs.drop("lot", "turn").join(turns, on=_GROUP).sort(_ORDER)


def _together(parts: list[Funnel]) -> Funnel:
    """The funnels of some parts of the rows, which all went the same steps, as one."""
    dropped = {reason: sum(part.dropped[reason] for part in parts) for reason in parts[0].dropped}
    return Funnel(pl.concat([part.rows for part in parts]), sum(part.seen for part in parts), dropped)


def _controlled(pairs: pl.DataFrame, config: PreferenceConfig) -> pl.DataFrame:
    """The pairs of the control: all turned round, or each by a coin; without a control as they are."""
    if config.control is None:
        return pairs
    coins = np.random.default_rng([config.seed, 1]).random(pairs.height) < 0.5
    turned = pl.lit(value=True) if config.control == "flipped" else pl.lit(pl.Series(coins))
    swapped = {
        f"{role}_{of}": pl.when(turned).then(f"{other}_{of}").otherwise(f"{role}_{of}")
        for role, other in (_ROLES, _ROLES[::-1])
        for of in ("ad", "worth", "source")
    }
    return pairs.with_columns(**swapped)


def _no_pair(steps: dict[str, Funnel]) -> str:
    reasons = [f"{reason}: {count}" for step in steps.values() for reason, count in step.dropped.items() if count]
    return (
        f"alignment.preferences left no pair of {steps['impressions'].seen} impressions and "
        f"{steps['beam_ads'].seen} ads of beams ({', '.join(reasons) or 'none to drop'}): alignment compares two "
        "plausible ads of one user by what they are worth; loosen alignment.preferences where the counts are large, or "
        "train without alignment (alignment=none)"
    )


def _exposure(pairs: pl.DataFrame) -> dict[str, float]:
    """The Gini coefficient of how often an ad is chosen, and rejected, over all ads of the pairs."""
    ads = pl.concat([pairs.select(ad_id=f"{role}_ad") for role in _ROLES]).unique()
    counts = {role: pairs.group_by(ad_id=f"{role}_ad").len() for role in _ROLES}
    return {
        role: gini(ads.join(count, on="ad_id", how="left")["len"].fill_null(0).to_numpy())
        for role, count in counts.items()
    }


def gini(counts: NDArray[Any]) -> float:
    """How unequal counts are: 0 if all are equal, near 1 if one has all. Half the mean difference over the mean.

    Example:
        >>> gini(np.array([3, 3])), gini(np.array([0, 0, 0, 5]))
        (0.0, 0.75)
    """
    ordered = np.sort(counts.astype(np.float64))
    places = 2 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return round(float(places @ ordered / (len(ordered) * ordered.sum())), 6)


def _counts(column: pl.DataFrame) -> dict[str, int]:
    name = column.columns[0]
    counts = column.group_by(name).len().sort(name)
    return {str(value): count for value, count in counts.iter_rows()}


def _shared_codes(pairs: pl.DataFrame, sids: pl.DataFrame) -> pl.Series:
    """The number of leading codes that the two S-IDs of each pair have in common, as Int32.

    DPO's gradient is exactly zero on them, so a pair that parts late trains only the last codes.
    """
    same = codes_of(pairs["chosen_ad"], sids) == codes_of(pairs["rejected_ad"], sids)
    return pl.Series("divergence", np.cumprod(same, axis=1).sum(axis=1), dtype=pl.Int32)


def codes_of(ads: pl.Series, sids: pl.DataFrame) -> NDArray[np.int64]:
    """The S-IDs ``(N, L)`` of N ads that are all in the catalog."""
    rows = ads.to_frame("ad_id").join(sids, on="ad_id", how="left", maintain_order="left")
    return np.array(rows["sid"].to_list(), dtype=np.int64)

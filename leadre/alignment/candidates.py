"""Ads that a user may well click: from the log of what was shown, and from the model's own beam (LEADRE 4.3.2).

The paper selects "two potential ads that are likely to result in a click or conversion". Our choice, as it says no
more: an ad of the log is plausible if the user clicked it, or if the platform's ranker gave it as high a click
probability as a share of clicked ads has at least. An ad of the beam was not shown, so it is judged in the same way by
our own ranker, against that ranker's estimates for ads that were clicked: each source has a floor on its own scale.
Without a floor the model would be taught relevance and not value.
"""

from typing import Any, NamedTuple

import polars as pl

SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "ad_id": pl.String(),
        "source": pl.String(),
        "place": pl.Int64(),
        "ecpm": pl.Float64(),
        "estimate": pl.Float64(),
    }
)
"""One row a plausible ad of a user. ``source`` is ``click``, ``shown`` or ``beam``; ``place`` counts the user's ads of
the log from the latest, those of the beam from the best; ``ecpm`` is the log's, null for an ad of the beam;
``estimate`` is what the ranker says it is worth, null where nothing was estimated."""


class Funnel(NamedTuple):
    """What is left of the rows that came in, and how many each step has taken away.

    Attributes:
        rows: What is left.
        seen: Rows that came in: always those left and all dropped.
        dropped: Rows that went, by reason, in the order of the steps.
    """

    rows: pl.DataFrame
    seen: int
    dropped: dict[str, int]

    def left(self, reason: str, rows: pl.DataFrame) -> "Funnel":
        """The funnel after a step that left ``rows``."""
        return Funnel(rows, self.seen, {**self.dropped, reason: self.rows.height - rows.height})

    def keep(self, reason: str, wanted: pl.Expr) -> "Funnel":
        """The funnel after a step that keeps the rows where ``wanted`` is true; null is not."""
        return self.left(reason, self.rows.filter(wanted))

    def account(self) -> dict[str, Any]:
        """The counts, for ``preferences.json``."""
        return {"in": self.seen, "dropped": self.dropped, "out": self.rows.height}


def funnel(rows: pl.DataFrame) -> Funnel:
    """A funnel that nothing has gone through yet."""
    return Funnel(rows, rows.height, {})


class Candidates(NamedTuple):
    """The plausible ads of one source.

    Attributes:
        funnel: Its rows are as `SCHEMA` says, in no set order.
        floor: The click probability from which an ad is plausible; None where nothing says one.
    """

    funnel: Funnel
    floor: float | None


def logged(
    impressions: pl.DataFrame,
    split: pl.DataFrame,
    sids: pl.DataFrame,
    *,
    learners: pl.Series,
    prompted: pl.Series,
    min_pctr_quantile: float,
    train_targets: bool,
) -> Candidates:
    """The plausible ads that were shown in training time, each with the ECPM of its latest usable impression.

    Only impressions before the user's validation target count (for users without one: up to their last training
    target). Where ``pctr`` is null, only clicked ads are plausible. An ad is of the source ``click`` if the user
    clicked it in any of the impressions that are left.

    Args:
        impressions: An IMPRESSIONS table.
        split: A SPLIT table.
        sids: The catalog, a SIDS table; other ads have no response.
        learners: The user_ids that pairs may be made of.
        prompted: The user_ids that have a training prompt.
        min_pctr_quantile: The share of clicked impressions whose click probability lies below the floor.
        train_targets: Whether a user's training targets stay.
    """
    kept = funnel(impressions).left("not_in_train_time", _train_time(impressions, split))
    kept = kept.left("not_an_ltr_training_user", _of(kept.rows, learners))
    floor = click_floor(kept.rows.filter(pl.col("clicked"))["pctr"], min_pctr_quantile)
    kept = kept.left("user_without_prompt", _of(kept.rows, prompted))
    kept = kept.left("ad_not_in_catalog", kept.rows.join(sids, on="ad_id", how="semi"))
    kept = _with_usable("ecpm", kept)
    kept = _without_targets(kept, split, train_targets=train_targets)
    clicked = pl.col("clicked").fill_null(value=False)
    kept = kept.keep("implausible", clicked | _reaches("pctr", floor))
    source = pl.when(clicked.any().over("user_id", "ad_id")).then(pl.lit("click")).otherwise(pl.lit("shown"))
    rows = kept.rows.with_columns(source=source)
    rows = rows.sort("user_id", "time", "ad_id", "ecpm", descending=[False, True, False, True])
    rows = rows.unique(["user_id", "ad_id"], keep="first", maintain_order=True)
    kept = kept.left("shown_again_later", rows.with_columns(place=pl.int_range(pl.len()).over("user_id")))
    return Candidates(_shaped(kept), floor)


def beamed(
    beams: pl.DataFrame,
    split: pl.DataFrame,
    ads: pl.DataFrame,
    log: pl.DataFrame,
    *,
    floor: float | None,
    train_targets: bool,
) -> Candidates:
    """The plausible ads of the model's own beams, each with what the ranker says it is worth.

    An ad that the log has for the user already stays the log's. An ad that did not run at the time of the prompt could
    not have been shown then (our choice).

    Args:
        beams: One row an ad of a user's beam: ``user_id``, ``ad_id``, ``place`` (0 is the best), ``time`` of the
            prompt's target, ``click`` and ``estimate``: the ranker's click probability and what it says the ad is worth
            at that time.
        split: A SPLIT table.
        ads: ``ad_id``, ``start_time`` and ``end_time`` of every ad.
        log: The plausible ads of the log.
        floor: The click probability from which an ad is plausible, see `click_floor`.
        train_targets: Whether a user's training targets stay.
    """
    kept = funnel(beams.join(ads, on="ad_id", how="left"))
    kept = _without_targets(kept, split, train_targets=train_targets)
    runs = (pl.col("start_time") <= pl.col("time")).fill_null(value=True)
    runs &= (pl.col("time") < pl.col("end_time")).fill_null(value=True)
    kept = kept.keep("not_running_then", runs)
    kept = kept.left("among_those_of_the_log", kept.rows.join(log, on=["user_id", "ad_id"], how="anti"))
    kept = _with_usable("estimate", kept)
    kept = kept.keep("implausible", _reaches("click", floor))
    return Candidates(_shaped(kept), floor)


def nothing() -> Candidates:
    """What a source gives that is not asked."""
    return Candidates(funnel(pl.DataFrame(schema=SCHEMA)), None)


def click_floor(clicks: pl.Series, quantile: float) -> float | None:
    """The click probability that this share of clicked ads stays below; None if none has one.

    Example:
        >>> click_floor(pl.Series([0.1, None, 0.3, float("nan")]), 0.5)
        0.2
    """
    floor = clicks.cast(pl.Float64).fill_nan(None).drop_nulls().quantile(quantile, interpolation="linear")
    return None if floor is None else float(floor)


def usable(column: str) -> pl.Expr:
    """Whether an ECPM can be compared: a number above zero that has a logarithm. Never null."""
    value = pl.col(column)
    return (value.is_finite() & (value > 0)).fill_null(value=False)


def _train_time(impressions: pl.DataFrame, split: pl.DataFrame) -> pl.DataFrame:
    """The impressions before their user's validation target, or up to the last training target where there is none."""
    is_valid, is_train = pl.col("role") == "valid", pl.col("role") == "train"
    ends = split.group_by("user_id").agg(
        end=pl.coalesce(pl.col("time").filter(is_valid).min(), pl.col("time").filter(is_train).max() + 1)
    )
    joined = impressions.join(ends, on="user_id", how="inner", maintain_order="left")
    return joined.filter(pl.col("time") < pl.col("end")).drop("end")


def _without_targets(kept: Funnel, split: pl.DataFrame, *, train_targets: bool) -> Funnel:
    """Drop the ads that are a validation or test target of their user, and, if not wanted, the training targets.

    To reject what tuning has just taught would undo it, and to prefer it would teach clicks and not value.
    """
    is_train = pl.col("role") == "train"
    kept = kept.left("held_out_target", _not_among(kept.rows, split.filter(~is_train)))
    return kept if train_targets else kept.left("train_target", _not_among(kept.rows, split.filter(is_train)))


def _not_among(rows: pl.DataFrame, targets: pl.DataFrame) -> pl.DataFrame:
    return rows.join(targets, on=["user_id", "ad_id"], how="anti", maintain_order="left")


def _of(rows: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    return rows.join(pl.DataFrame({"user_id": users}, schema={"user_id": pl.String}), on="user_id", how="semi")


def _with_usable(column: str, kept: Funnel) -> Funnel:
    """Drop ECPMs that cannot be compared, each kind by its own name."""
    value = pl.col(column)
    kept = kept.keep("ecpm_missing", value.is_not_null())
    kept = kept.keep("ecpm_nan", value.is_not_nan())
    kept = kept.keep("ecpm_infinite", value.is_finite())
    kept = kept.keep("ecpm_zero", value != 0)
    return kept.keep("ecpm_negative", value > 0)


def _reaches(column: str, floor: float | None) -> pl.Expr:
    """Whether a click probability reaches the floor. A NaN would count as the largest of numbers."""
    if floor is None:
        return pl.lit(value=False)
    return (pl.col(column).fill_nan(None) >= floor).fill_null(value=False)


def _shaped(kept: Funnel) -> Funnel:
    """The rows with the columns of `SCHEMA`; what a source does not know is null."""
    missing = {"source": pl.lit("beam"), "ecpm": pl.lit(None, pl.Float64), "estimate": pl.lit(None, pl.Float64)}
    lacking = {name: value for name, value in missing.items() if name not in kept.rows.columns}
    return kept._replace(rows=kept.rows.with_columns(**lacking).select(list(SCHEMA)).cast(SCHEMA))

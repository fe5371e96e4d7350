"""How good the ranker is on users that it has not learned from."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from leadre.ltr.features import describe_rows
from leadre.ltr.known import Known
from leadre.ltr.network import predict
from leadre.ltr.ranker import Estimates, Ranker, estimates
from leadre.ltr.rows import Rows


def judge(
    ranker: Ranker,
    known: Known,
    rows: Rows,
    *,
    targets: pl.DataFrame,
    labels: pl.DataFrame,
    popular: Sequence[str],
    impressions: pl.DataFrame,
) -> dict[str, float | None]:
    """Figures of held-out users; None where they cannot be told, such as an AUC without clicks.

    Args:
        ranker: The trained ranker.
        known: The world by numbers.
        rows: What those users were shown in train time, clicked or not; ``weight`` says what a row stands for.
        targets: Their valid targets (SPLIT).
        labels: The ranker's lists at the time of these targets.
        popular: The list of the ads with most clicks, the same for all.
        impressions: Tells the ECPM of the targets; a target without an impression counts 1.

    Returns:
        ``click_auc``; ``clicks_predicted_per_click``, 1 if probabilities are right on average; ``ecpm_spearman``;
        ``value_captured`` and ``value_captured_by_popularity``: the share of the targets' ECPM that is in the lists.
    """
    found = _estimates(ranker, known, rows)
    priced = rows.ecpm > 0
    worth = _worth(targets, impressions)
    return {
        "click_auc": _auc(rows.clicked, found.click),
        "clicks_predicted_per_click": _ratio(float((found.click * rows.weight).sum()), float(rows.clicked.sum())),
        "ecpm_spearman": _spearman(found.ecpm[priced], rows.ecpm[priced]),
        "value_captured": captured(worth, labels),
        "value_captured_by_popularity": captured(worth, worth.select("user_id").join(_list(popular), how="cross")),
    }


def captured(worth: pl.DataFrame, lists: pl.DataFrame) -> float | None:
    """The share of the ECPM of ``worth`` (user_id, ad_id, ecpm) whose user and ad stand in ``lists``."""
    inside = worth.join(lists, on=["user_id", "ad_id"], how="semi")
    return _ratio(float(inside["ecpm"].sum()), float(worth["ecpm"].sum()))


def _worth(targets: pl.DataFrame, impressions: pl.DataFrame) -> pl.DataFrame:
    keys = ["user_id", "ad_id", "time"]
    shown = impressions.join(targets, on=keys, how="semi").filter(pl.col("ecpm").is_finite())
    dearest = shown.group_by(keys).agg(pl.col("ecpm").max())
    joined = targets.select(keys).join(dearest, on=keys, how="left", maintain_order="left")
    return joined.with_columns(pl.col("ecpm").fill_null(1.0)).select("user_id", "ad_id", "ecpm")


def _list(ads: Sequence[str]) -> pl.DataFrame:
    return pl.DataFrame({"ad_id": list(ads)}, schema={"ad_id": pl.String()})


def _estimates(ranker: Ranker, known: Known, rows: Rows) -> Estimates:
    terms = ranker.terms
    if not len(rows.user):
        return estimates(terms, np.empty((0, 3), dtype=np.float32))
    told = describe_rows(
        known,
        ranker.statistics,
        rows,
        fold=np.zeros_like(rows.user),
        window_days=terms.window_days,
        half_lives_days=terms.half_lives_days,
        smoothing=terms.interest_smoothing,
    )
    return estimates(terms, predict(ranker.network, told))


def _auc(clicked: NDArray[np.bool_], score: NDArray[Any]) -> float | None:
    if clicked.all() or not clicked.any():
        return None
    return float(roc_auc_score(clicked, score))


def _spearman(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None

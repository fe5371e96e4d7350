"""The room's verb: train the ranker on one half of the users, name its ads for the other, and judge it there."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from leadre import tables
from leadre.ltr import known as worlds
from leadre.ltr.config import LtrConfig
from leadre.ltr.features import describe_rows
from leadre.ltr.judge import judge
from leadre.ltr.known import Known
from leadre.ltr.network import Network, Sample, fit, predict
from leadre.ltr.ranker import REMEDY, Ranker, Terms, estimate, save
from leadre.ltr.rows import Doubles, Rows, Source, sample, shown, train_time
from leadre.ltr.statistics import Floats, priors, statistics
from leadre.ltr.users import LABEL, TRAIN, folds, roles

VERSION = 2
PAIRS_AT_ONCE = 1 << 20
"""Pairs of a target and an ad whose value is held at once."""
LABEL_ROLES = {"labels": "test", "valid_labels": "valid"}
"""The tables of labels, and the role of the targets at whose time they are."""

log = logging.getLogger(__name__)


class Money(NamedTuple):
    """What ECPM is measured in."""

    mean: float
    log_mean: float
    log_deviation: float


def learn_to_rank(config: LtrConfig, world: Path, catalog: Path, *, out: Path) -> None:
    """Train the other retrieval strategy and write what it would retrieve (LEADRE 5.1.2; our choice in all parts).

    Writes ``ranker.safetensors`` and ``ranker.json``, ``users.parquet`` (LTR_USERS: who it learned from),
    ``labels.parquet`` (LISTS: for the other users with a test target its ads of highest value at that target's time),
    ``valid_labels.parquet`` (the same for valid targets), and ``ltr.json`` (how good it is on those other users).
    It learns from train time of its own users alone, and sees neither S-IDs nor prompts nor LEADRE's lists. Labels
    are ads of the catalog that run at the time; so there may be fewer than ``config.labels``. In a world of a handful
    of users there may be nothing to learn from: then there is no ranker, all labels are empty, and ``ltr.json`` says
    why (``no_ranker``).

    Args:
        config: Who, what and how.
        world: Ads, users, contents, behaviors, impressions and split.
        catalog: Holds ``sids``: the ads that may be labels.
        out: Where the results go.

    Raises:
        ValueError: If the ranker's training diverges.
    """
    known, rng = worlds.read(world), np.random.default_rng(config.seed)
    users = roles(known.users.to_list(), train_share=config.train_share)
    teachers, others = (users.filter(role=role)["user_id"] for role in (TRAIN, LABEL))
    rows, source = shown(known, world, teachers, negatives=config.negatives, rng=rng)
    tables.write(tables.LTR_USERS, users, out / "users.parquet")
    counts = _counts(teachers, others, rows, source, config)
    if not rows.clicked.any():
        _write_no_ranker(counts, out)
        return
    split = tables.read(tables.SPLIT, world / "split.parquet")
    log.info("ltr: %s clicks (%s) of %s users", rows.clicked.sum(), source.clicks, len(teachers))
    if source.clicks == "behaviors":
        log.warning("no impression of its users was clicked: the ranker takes ad behaviors for clicks, each of ECPM 1")
    ranker = learn(config, known, rows, train_time(_of(known.behaviors, teachers), split), rng=rng)
    save(ranker, out)
    ads = tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"].sort()
    lives = tables.read(tables.ADS, world / "ads.parquet").select("ad_id", "start_time", "end_time")
    lists = {}
    for name, role in LABEL_ROLES.items():
        targets = _of(split.filter(role=role), others).sort("user_id")
        lists[name] = retrieve(ranker, known, targets, ads, lives, size=config.labels)
        tables.write(tables.LISTS, lists[name], out / f"{name}.parquet")
    held_out, _ = shown(known, world, others, negatives=config.negatives, rng=rng)
    told = judge(
        ranker,
        known,
        sample(held_out, config.negatives, rng),
        targets=_of(split.filter(role="valid"), others),
        labels=lists["valid_labels"],
        popular=_popular(known, rows, ads, config.labels),
        impressions=tables.read(tables.IMPRESSIONS, world / "impressions.parquet"),
    )
    counts["users_with_labels"] = lists["labels"]["user_id"].n_unique()
    (out / "ltr.json").write_text(json.dumps(counts | {"held_out": told}, indent=1, allow_nan=False) + "\n")
    log.info("ltr on users it has not seen: %s", told)
    if lists["labels"].is_empty():
        log.warning("none of the ranker's %s label users has a label: there is no LTRR", len(others))


def learn(config: LtrConfig, known: Known, rows: Rows, behaviors: pl.DataFrame, *, rng: np.random.Generator) -> Ranker:
    """Train the ranker on rows and behaviors of its users in train time.

    A row's statistics are of the other folds' users, so that its own click is not among them; the last fold's users
    stop the training. What the ranker keeps are the statistics of all folds.
    """
    prior = priors(known, behaviors)
    fold_of_user = np.array(folds(known.users.to_list(), count=config.folds))
    kept = sample(rows, config.negatives, rng)
    fold, log_odds = fold_of_user[kept.user], float(-np.log(kept.weight[~kept.clicked].mean()))
    others = [rows.part(fold_of_user[rows.user] != left_out) for left_out in range(config.folds)]
    features = describe_rows(
        known,
        statistics(known, others, prior, smoothing=config.click_smoothing),
        kept,
        fold=fold,
        window_days=config.window_days,
        half_lives_days=config.half_lives_days,
        smoothing=config.interest_smoothing,
    )
    money = _money(kept)
    told = _sample(features, kept, money)
    last = fold == config.folds - 1
    network = fit(
        told.part(torch.from_numpy(np.flatnonzero(~last if not last.all() else last))),
        told.part(torch.from_numpy(np.flatnonzero(last))),
        hidden_size=config.hidden_size,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_epochs=config.max_epochs,
        patience=config.patience,
        seed=config.seed,
    )
    terms = Terms(
        world=known.fingerprint,
        window_days=config.window_days,
        half_lives_days=config.half_lives_days,
        interest_smoothing=config.interest_smoothing,
        hidden_size=config.hidden_size,
        log_odds=log_odds,
        mean_ecpm=money.mean,
        log_ecpm_mean=money.log_mean,
        log_ecpm_deviation=money.log_deviation,
        log_smear=_log_smear(network, features, kept, money),
    )
    whole = statistics(known, [rows], prior, smoothing=config.click_smoothing)
    return Ranker(network, whole, terms)


def retrieve(
    ranker: Ranker, known: Known, targets: pl.DataFrame, ads: pl.Series, lives: pl.DataFrame, *, size: int
) -> pl.DataFrame:
    """The ``size`` ads of highest value for each target among those that run at its time (LISTS); ties by ad_id.

    Args:
        ranker: The trained ranker.
        known: The world by numbers.
        targets: Columns ``user_id`` and ``time``, a row a user.
        ads: N ad_ids, sorted.
        lives: ``ad_id``, ``start_time`` and ``end_time``, null where unbounded.
        size: Length of a list.
    """
    spans = pl.DataFrame({"ad_id": ads}).join(lives, on="ad_id", how="left", maintain_order="left")
    start = spans["start_time"].fill_null(-(2**62)).to_numpy()
    end = spans["end_time"].fill_null(2**62).to_numpy()
    names, frames = ads.to_numpy(), [pl.DataFrame(schema=tables.LISTS.schema)]
    step = max(1, PAIRS_AT_ONCE // len(ads))
    for first in range(0, targets.height, step):
        part = targets[first : first + step]
        time = part["time"].to_numpy()[:, None]
        value = estimate(ranker, known, part, ads.to_list()).value
        value = np.where((start <= time) & (time < end), value, -np.inf)
        order = np.argsort(-value, axis=1, kind="stable")[:, :size]
        score = np.take_along_axis(value, order, axis=1)
        width = order.shape[1]
        frame = pl.DataFrame(
            {
                "user_id": np.repeat(part["user_id"].to_numpy(), width),
                "rank": np.tile(np.arange(1, width + 1, dtype=np.int32), part.height),
                "ad_id": names[order].ravel(),
                "score": score.ravel().astype(np.float64),
            },
            schema=tables.LISTS.schema,
        )
        frames.append(frame.filter(pl.col("score").is_finite()))
    return pl.concat(frames)


def _counts(teachers: pl.Series, others: pl.Series, rows: Rows, source: Source, config: LtrConfig) -> dict[str, Any]:
    return {
        "users": {TRAIN: len(teachers), LABEL: len(others)},
        "source": source._asdict(),
        "rows": {"clicked": int(rows.clicked.sum()), "others": int((~rows.clicked).sum())},
        "labels": config.labels,
    }


def _write_no_ranker(counts: dict[str, Any], out: Path) -> None:
    """Empty labels, and why, so that a run without alignment goes on to all other scores."""
    why = (
        f"its {counts['users'][TRAIN]} training users have no clicked impression and no ad behavior before their valid "
        "targets"
    )
    log.warning("ltr has no ranker, since %s: there is no LTRR, and no alignment can be trained; %s", why, REMEDY)
    for name in LABEL_ROLES:
        tables.write(tables.LISTS, pl.DataFrame(schema=tables.LISTS.schema), out / f"{name}.parquet")
    told = counts | {"users_with_labels": 0, "no_ranker": why, "held_out": None}
    (out / "ltr.json").write_text(json.dumps(told, indent=1) + "\n")


def _money(rows: Rows) -> Money:
    """Of clicks and of all rows; without any ECPM above 0 each is 1."""
    clicks, priced = rows.ecpm[rows.clicked], rows.ecpm[rows.ecpm > 0]
    logs = np.log(priced) if len(priced) else np.zeros(1)
    mean = float(np.nanmean(clicks)) if (clicks > 0).any() else 1.0
    return Money(mean, float(logs.mean()), float(logs.std()))


def _worth(rows: Rows, money: Money) -> Doubles:
    """ECPM over its mean for a click, 1 for all others; 1 for each click too if none has an ECPM above 0."""
    if not (rows.ecpm[rows.clicked] > 0).any():
        log.warning("no click of its users has an ECPM above 0: the ranker takes each click for one of the same worth")
        return np.ones(len(rows.ecpm))
    return np.where(rows.clicked, np.nan_to_num(rows.ecpm, nan=money.mean) / money.mean, 1.0)


def _sample(features: Floats, rows: Rows, money: Money) -> Sample:
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ecpm = (np.log(np.where(rows.ecpm > 0, rows.ecpm, np.nan)) - money.log_mean) / (money.log_deviation or 1.0)
    return Sample(
        features=torch.from_numpy(features),
        clicked=torch.from_numpy(rows.clicked.astype(np.float32)),
        worth=torch.from_numpy(_worth(rows, money).astype(np.float32)),
        log_ecpm=torch.from_numpy(log_ecpm.astype(np.float32)),
    )


def _log_smear(network: Network, features: Floats, rows: Rows, money: Money) -> float:
    priced = rows.ecpm > 0
    if money.log_deviation == 0 or not priced.any():
        return 0.0
    found = money.log_mean + money.log_deviation * predict(network, features[priced])[:, 2].astype(np.float64)
    return float(np.log(rows.ecpm[priced].mean() / np.exp(found).mean()))


def _popular(known: Known, rows: Rows, ads: pl.Series, size: int) -> list[str]:
    """The ads with most clicks of the ranker's users; ties by ad_id."""
    clicks: Doubles = np.bincount(rows.ad[rows.clicked], minlength=len(known.ads)).astype(np.float64)
    counted = pl.DataFrame({"ad_id": known.ads, "clicks": clicks}).filter(pl.col("ad_id").is_in(ads.implode()))
    return counted.sort("clicks", "ad_id", descending=[True, False])["ad_id"].head(size).to_list()


def _of(frame: pl.DataFrame, users: pl.Series) -> pl.DataFrame:
    return frame.filter(pl.col("user_id").is_in(users.implode()))

"""The verb of the room: score LEADRE and every baseline on the test users, and compare them."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from leadre import tables
from leadre.metrics import diversity, ranking, uncertainty
from leadre.metrics.config import MetricsConfig
from leadre.metrics.ranking import NO_AD, Rows, Scores

VERSION = 4

LEADRE = "LEADRE"
ORACLE = "oracle"
IN_PER_USER = ("LTRR@", "Value@")
"""The metrics that ``per_user.parquet`` holds beside the rank, which gives HR@K and NDCG@K."""

log = logging.getLogger(__name__)


class Lists(NamedTuple):
    """One system's lists for the N scored users.

    Attributes:
        rows: ``(N, W)`` catalog rows by rank, -1 where there is no ad or one that the catalog does not have.
        invalid: How many ads of these lists are not in the catalog; each is a miss at its place.
        other_users: How many users have a list and are not scored.
    """

    rows: Rows
    invalid: int
    other_users: int


class Truth(NamedTuple):
    """What the lists of the N scored users are measured by.

    Attributes:
        targets: ``(N, 1)`` the catalog row of the clicked ad.
        labels: ``(N, M)`` another retrieval strategy's ads, -1 where there is none; LTRR is measured on them.
        worths: ``(N, W)`` each label's worth to that strategy.
        appraised: ``(N, G)`` ads whose true value is known, -1 where there is none; without columns where none is.
        values: ``(N, G)`` that value.
        categories: ``(A,)`` of each catalog row.
    """

    targets: Rows
    labels: Rows
    worths: Scores
    appraised: Rows
    values: Scores
    categories: Rows


def score(
    config: MetricsConfig,
    world: Path,
    catalog: Path,
    baselines: Path,
    ltr: Path,
    generations: Path,
    *values: Path,
    out: Path,
) -> None:
    """Score all lists against the ads that the test users clicked (LEADRE 5.1.2, 5.2.3).

    Writes ``scores.json`` and ``per_user.parquet``: user_id, system, rank of the clicked ad, null where it is not in
    the list, and LTRR@K and Value@K of the user, null where they are not defined. A user without a test target, or
    with one that the catalog does not have, is left out and counted; a user without a list scores 0 and is counted.
    LTRR is of the users alone that the other retrieval strategy has not learned from, for the others have no labels;
    Value@K is there where values are given. An ad that the catalog does not have is a miss at its place; the
    oracle alone ranks all ads of the world by design, so such ads leave its lists before they are scored.

    Args:
        config: The cuts and the bootstrap.
        world: Holds ``split``, ``ads`` and, for a synthetic world, ``oracle``.
        catalog: Holds ``sids``: the row order of the catalog.
        baselines: One table of lists a baseline.
        ltr: ``labels``: lists of another retrieval strategy.
        generations: ``lists``, a folder of parts: what LEADRE recommends.
        values: None or one: ``values``, the true worth of the listed ads.
        out: Where the results go.

    Raises:
        ValueError: If no user can be scored, a user has two test targets, or ranks are not 1..n.
        TableError: If a table is not as declared.
    """
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    ads = sids.select("ad_id").with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    users, excluded = scored_users(tables.read(tables.SPLIT, world / "split.parquet"), ads)
    labels = tables.read(tables.LISTS, ltr / "labels.parquet").rename({"score": "value"})
    known = [tables.read(tables.VALUES, path / "values.parquet") for path in values]
    truth = Truth(
        users["row"].to_numpy()[:, None],
        *_read_values(labels, users, ads),
        *_read_values(pl.concat([pl.DataFrame(schema=tables.VALUES.schema), *known]), users, ads),
        _categories(tables.read(tables.ADS, world / "ads.parquet"), ads),
    )
    systems = {
        name: read_lists(path, users, ads, drop_outside=name == ORACLE)
        for name, path in _systems(world, baselines, generations).items()
    }
    _warn_of_short_lists(config, systems)
    measured = {name: _per_user(config, lists.rows, truth) for name, lists in systems.items()}
    result = {
        "users": len(users),
        "excluded": excluded,
        "ads": len(ads),
        "ltr_users": int((truth.labels != NO_AD).any(axis=1).sum()),
        "value_users": int((truth.appraised != NO_AD).any(axis=1).sum()),
        "chance": {f"HR@{k}": min(1.0, k / len(ads)) for k in config.hr_ks},
        "systems": {name: _summary(config, lists, measured[name], truth.categories) for name, lists in systems.items()},
        "intervals": {name: _intervals(config, of_users) for name, of_users in measured.items()},
        "differences": {
            f"{LEADRE} - {name}": _difference(config, measured[LEADRE], measured[name])
            for name in systems
            if name != LEADRE
        },
        "bootstrap": {
            "samples": config.bootstrap_samples,
            "seed": config.seed,
            "confidence": config.confidence,
        },
    }
    (out / "scores.json").write_text(json.dumps(_nan_to_none(result), indent=2, allow_nan=False) + "\n")
    _by_user(users, systems, measured, truth.targets).write_parquet(out / "per_user.parquet")
    log.info("scored %s systems on %s users", len(systems), len(users))


def scored_users(split: pl.DataFrame, ads: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Find the users that have a test target in the catalog.

    Args:
        split: The table of targets.
        ads: ``ad_id`` and its catalog ``row``.

    Returns:
        ``user_id``, ``user`` (0..N-1, by user_id) and ``row`` of the target; and how many are left out, and why.

    Raises:
        ValueError: If nobody is left, or a user has two test targets.
    """
    targets = split.filter(pl.col("role") == "test").select("user_id", "ad_id")
    if twice := targets["user_id"].is_duplicated().sum():
        raise ValueError(f"split has {twice} test rows of users with more than one: a user has one test target")
    users = targets.join(ads, on="ad_id", how="inner").sort("user_id").select("user_id", "row")
    excluded = {
        "no_test_target": split["user_id"].n_unique() - len(targets),
        "target_outside_catalog": len(targets) - len(users),
    }
    if users.is_empty():
        raise ValueError(f"no user can be scored ({excluded}): the split needs test targets that the catalog has")
    return users.with_row_index("user").with_columns(pl.col("user").cast(pl.Int64)), excluded


def read_lists(path: Path, users: pl.DataFrame, ads: pl.DataFrame, *, drop_outside: bool = False) -> Lists:
    """Read a table of lists as catalog rows of the scored users.

    Args:
        path: The table.
        users: What `scored_users` gives.
        ads: ``ad_id`` and its catalog ``row``.
        drop_outside: Whether ads that the catalog does not have leave the lists, and the ads behind them move up.

    Raises:
        ValueError: If a user's ranks are not 1..n, each once.
        TableError: If the table is not as declared.
    """
    lists = tables.read(tables.LISTS, path)
    of_user = lists.group_by("user_id").agg(
        (pl.col("rank").n_unique() != pl.len()) | (pl.col("rank").min() != 1) | (pl.col("rank").max() != pl.len())
    )
    if broken := of_user.filter(pl.col("rank"))["user_id"].sort().to_list():
        raise ValueError(f"{path}: ranks of user {broken[0]!r} (one of {len(broken)}) are not 1..n, each once")
    if drop_outside:
        inside = lists.join(ads, on="ad_id", how="semi")
        lists = inside.with_columns(pl.col("rank").rank("ordinal").over("user_id").cast(pl.Int64))
    ours = lists.join(users.select("user_id", "user"), on="user_id").join(ads, on="ad_id", how="left")
    places = ours["rank"].to_numpy() - 1
    rows = np.full((len(users), int(places.max(initial=-1)) + 1), NO_AD, dtype=np.int64)
    rows[ours["user"].to_numpy(), places] = ours["row"].fill_null(NO_AD).to_numpy()
    others = lists["user_id"].n_unique() - ours["user_id"].n_unique()
    return Lists(rows=rows, invalid=ours["row"].null_count(), other_users=others)


def _systems(world: Path, baselines: Path, generations: Path) -> dict[str, Path]:
    """The table of each system: LEADRE, the baselines by name, then the oracle of a synthetic world."""
    found = {LEADRE: generations / "lists"}
    found |= {path.stem: path for path in sorted(baselines.glob("*.parquet"))}
    if (oracle := world / f"{ORACLE}.parquet").exists():
        found[ORACLE] = oracle
    return found


def _categories(ads: pl.DataFrame, rows: pl.DataFrame) -> Rows:
    """``(A,)`` the first category of each catalog row as a number; our choice: ads without one share a category."""
    names = rows.join(ads.select("ad_id", "first_category"), on="ad_id", how="left", maintain_order="left")
    return names["first_category"].rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def _read_values(table: pl.DataFrame, users: pl.DataFrame, ads: pl.DataFrame) -> tuple[Rows, Scores]:
    """Ads that are worth something to users, as ``(N, G)`` catalog rows and values.

    Args:
        table: ``user_id``, ``ad_id`` and ``value``, in any order; users that are not scored and ads that the catalog
            does not have are left out.
        users: What `scored_users` gives.
        ads: ``ad_id`` and its catalog ``row``.
    """
    known = table.join(users.select("user_id", "user"), on="user_id").join(ads, on="ad_id").sort("user", "row")
    user, place = known["user"].to_numpy(), known.select(pl.int_range(pl.len()).over("user")).to_series().to_numpy()
    rows = np.full((len(users), int(place.max(initial=-1)) + 1), NO_AD, dtype=np.int64)
    values = np.zeros(rows.shape)
    rows[user, place], values[user, place] = known["row"].to_numpy(), known["value"].to_numpy()
    return rows, values


def _per_user(config: MetricsConfig, lists: Rows, truth: Truth) -> dict[str, Scores]:
    """Each metric's ``(N,)`` numbers, in the order of the report."""
    k, labels, categories = config.diversity_k, truth.labels, truth.categories
    value_ks = config.value_ks if truth.appraised.size else ()
    return (
        {f"HR@{k}": ranking.hit_rate(lists, truth.targets, k=k) for k in config.hr_ks}
        | {f"NDCG@{k}": ranking.ndcg(lists, truth.targets, k=k) for k in config.ndcg_ks}
        | {f"LTRR@{k}": ranking.recall(lists, labels, k=k) for k in config.ltrr_ks}
        | {f"LTRR_capped@{k}": ranking.capped_recall(lists, labels, k=k) for k in config.ltrr_ks}
        | {f"LTRR_value@{k}": ranking.value_recall(lists, labels, truth.worths, k=k) for k in config.ltrr_ks}
        | {f"Value@{k}": ranking.mean_value(lists, truth.appraised, truth.values, k=k) for k in value_ks}
        | {
            f"Concentration@{k}": diversity.concentration(lists, categories, k=k),
            f"Abundance@{k}": diversity.abundance(lists, categories, k=k),
            f"Diversity@{k}": diversity.diversity(lists, categories, k=k),
        }
    )


def _summary(config: MetricsConfig, lists: Lists, values: Mapping[str, Scores], categories: Rows) -> dict[str, float]:
    """The means over users, and what is wrong with the lists."""
    kept = ranking.deduplicate(lists.rows)
    sizes = (kept != NO_AD).sum(axis=1)
    duplicates = int((lists.rows != NO_AD).sum() - sizes.sum())
    listed = max(1, int((lists.rows != NO_AD).sum()) + lists.invalid)
    means = dict(zip(values, uncertainty.mean_of_scored(_table(values)).tolist(), strict=True))
    spread = diversity.global_concentration(lists.rows, categories, k=config.diversity_k)
    return means | {
        f"global_concentration@{config.diversity_k}": spread,
        "invalid_ads": lists.invalid,
        "duplicate_ads": duplicates,
        "invalid_rate": lists.invalid / listed,
        "duplicate_rate": duplicates / listed,
        "empty_lists": int((sizes == 0).sum()),
        "short_lists": int((sizes < _longest_cut(config)).sum()),
        "other_users": lists.other_users,
    }


def _longest_cut(config: MetricsConfig) -> int:
    return max(*config.hr_ks, *config.ndcg_ks, *config.ltrr_ks, *config.value_ks, config.diversity_k)


def _warn_of_short_lists(config: MetricsConfig, systems: Mapping[str, Lists]) -> None:
    longest = _longest_cut(config)
    for name, lists in systems.items():
        if (width := lists.rows.shape[1]) < longest:
            log.warning(
                "%s: no list has more than %s ads, so numbers at %s cannot pass those at %s",
                name,
                width,
                longest,
                width,
            )


def _intervals(config: MetricsConfig, values: Mapping[str, Scores]) -> dict[str, list[float]]:
    """Wilson's interval for HR@K, the bootstrap's for the rest."""
    ends = uncertainty.bootstrap_interval(
        _table(values),
        samples=config.bootstrap_samples,
        confidence=config.confidence,
        generator=np.random.default_rng(config.seed),
    )
    found = {name: [float(ends.low[i]), float(ends.high[i])] for i, name in enumerate(values)}
    for name in values:
        if name.startswith("HR@"):
            hits, users = int(values[name].sum()), len(values[name])
            found[name] = list(uncertainty.wilson(hits, users, confidence=config.confidence))
    return found


def _difference(
    config: MetricsConfig, first: Mapping[str, Scores], second: Mapping[str, Scores]
) -> dict[str, dict[str, float]]:
    found = uncertainty.paired_bootstrap(
        _table(first),
        _table(second),
        samples=config.bootstrap_samples,
        confidence=config.confidence,
        generator=np.random.default_rng(config.seed),
    )
    return {
        name: {field: float(column[i]) for field, column in found._asdict().items()} for i, name in enumerate(first)
    }


def _by_user(
    users: pl.DataFrame, systems: Mapping[str, Lists], measured: Mapping[str, Mapping[str, Scores]], targets: Rows
) -> pl.DataFrame:
    """``user_id``, ``system``, ``rank`` of the clicked ad, null where it does not stand, and some metrics."""
    return pl.concat(
        users.select(
            "user_id",
            pl.lit(name).alias("system"),
            pl.Series("rank", ranking.rank_of(lists.rows, targets), dtype=pl.Int32).replace(0, None),
            *(pl.Series(key, column) for key, column in measured[name].items() if key.startswith(IN_PER_USER)),
        )
        for name, lists in systems.items()
    ).fill_nan(None)


def _table(values: Mapping[str, Scores]) -> Scores:
    return np.stack(list(values.values()), axis=1)  # (N, V)


def _nan_to_none(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """JSON has no NaN: a metric that nobody could be scored in is null."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

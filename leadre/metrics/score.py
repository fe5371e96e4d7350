"""The verb of the room: score LEADRE and every baseline on the test users, and compare them."""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from leadre import tables
from leadre.metrics import diversity, ranking
from leadre.metrics.blocks import Block, Catalog, Lists, Source, blocks, read_lists, read_values, source
from leadre.metrics.config import MetricsConfig
from leadre.metrics.ranking import NO_AD, Rows, Scores, Worth, known_worth
from leadre.metrics.uncertainty import Tally, wilson

VERSION = 5

LEADRE = "LEADRE"
ORACLE = "oracle"
IN_PER_USER = ("LTRR@", "Value@", "Diversity@")
"""The metrics that ``per_user.parquet`` holds beside the rank, which gives HR@K and NDCG@K."""
USERS_AT_ONCE = 1 << 15

log = logging.getLogger(__name__)


class Truth(NamedTuple):
    """What the lists of the n users of a block are measured by.

    Attributes:
        targets: ``(n, 1)`` the catalog row of the clicked ad.
        labels: Another retrieval strategy's ads and their worth to it; LTRR is measured on them.
        appraised: Ads whose true value is known; None where no values are given.
    """

    targets: Rows
    labels: Worth
    appraised: Worth | None


class Tables(NamedTuple):
    """What is read of each block of users.

    Attributes:
        systems: The lists of each system: LEADRE, the baselines by name, then the oracle of a synthetic world.
        labels: Another retrieval strategy's lists.
        values: The true worth of listed ads; None where it is not given.
    """

    systems: Mapping[str, Source]
    labels: Source
    values: Source | None


class Totals:
    """What is kept of one system over all blocks of users.

    Attributes:
        counts: How many ads and lists there are, and what is wrong with them.
        categories: ``(C,)`` how often each category was recommended.
        longest: The most places that a list has.
        scores: Each metric's numbers of the users.
        margins: How much more LEADRE has of each.
    """

    def __init__(self, num_categories: int) -> None:
        self.counts: Counter[str] = Counter()
        self.categories = np.zeros(num_categories, dtype=np.int64)
        self.longest = 0
        self.scores: dict[str, Tally] = {}
        self.margins: dict[str, Tally] = {}


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
    the list, and LTRR@K, Value@K and Diversity@K of the user, null where they are not defined. A user without a test
    target, or with one that the catalog does not have, is left out and counted; a user without a list scores 0 and is
    counted. LTRR is of the users alone that the other retrieval strategy has not learned from, for the others have no
    labels; Value@K is there where values are given. An ad that the catalog does not have is a miss at its place; the
    oracle alone ranks all ads of the world by design, so such ads leave its lists before they are scored.

    Users are scored in blocks, so that memory does not grow with their number but for the ids of a column.

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
    ads = tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"]
    known, categories = Catalog(ads), _categories(tables.read(tables.ADS, world / "ads.parquet"), ads)
    given = Tables(
        {name: source(tables.LISTS, path) for name, path in _systems(world, baselines, generations).items()},
        source(tables.LISTS, ltr / "labels.parquet"),
        source(tables.VALUES, values[0] / "values.parquet") if values else None,
    )
    truths: Counter[str] = Counter()
    totals = {name: Totals(int(categories.max(initial=-1)) + 1) for name in given.systems}
    _write(_scored(config, world / "split.parquet", given, known, categories, truths, totals), out / "per_user.parquet")
    excluded = {name: truths[name] for name in ("no_test_target", "target_outside_catalog")}
    if not truths["users"]:
        raise ValueError(f"no user can be scored ({excluded}): the split needs test targets that the catalog has")
    _warn_of_short_lists(config, totals)
    result = {
        "users": truths["users"],
        "excluded": excluded,
        "ads": len(known),
        "ltr_users": truths["ltr_users"],
        "value_users": truths["value_users"],
        "chance": {f"HR@{k}": min(1.0, k / len(known)) for k in config.hr_ks},
        "systems": {name: _summary(config, of_system) for name, of_system in totals.items()},
        "intervals": {name: _intervals(config, of_system.scores) for name, of_system in totals.items()},
        "differences": {
            f"{LEADRE} - {name}": _differences(config, totals[LEADRE].scores, of_system)
            for name, of_system in totals.items()
            if name != LEADRE
        },
        "bootstrap": {"samples": config.bootstrap_samples, "seed": config.seed, "confidence": config.confidence},
    }
    (out / "scores.json").write_text(json.dumps(_nan_to_none(result), indent=2, allow_nan=False) + "\n")
    log.info("scored %s systems on %s users", len(totals), truths["users"])


def _scored(
    config: MetricsConfig,
    split: Path,
    given: Tables,
    catalog: Catalog,
    categories: Rows,
    truths: Counter[str],
    totals: Mapping[str, Totals],
) -> Iterator[pl.DataFrame]:
    """Score a block of users after another, add them to ``truths`` and ``totals``, and give each block's users."""
    for block in blocks(split, catalog, size=USERS_AT_ONCE):
        truth = _truth(given, block, catalog)
        truths.update(block.excluded)
        truths["users"] += len(block.users)
        truths["ltr_users"] += int((truth.labels.counts > 0).sum())
        truths["value_users"] += int((truth.appraised.counts > 0).sum()) if truth.appraised else 0
        frames: list[pl.DataFrame] = []
        leadre: dict[str, Scores] = {}
        for name, table in given.systems.items():
            lists = read_lists(table, block, catalog, drop_outside=name == ORACLE)
            kept = ranking.deduplicate(lists.rows)
            measured = measure(config, kept, truth, categories)
            leadre = leadre or measured
            _add(config, totals[name], lists, kept, categories)
            for metric, values in measured.items():
                totals[name].scores.setdefault(metric, Tally()).add(values)
                if name != LEADRE:
                    totals[name].margins.setdefault(metric, Tally()).add(leadre[metric] - values)
            frames.append(_of_users(block, name, ranking.rank_of(kept, truth.targets), measured))
        yield pl.concat(frames)


def _systems(world: Path, baselines: Path, generations: Path) -> dict[str, Path]:
    """The table of each system: LEADRE, the baselines by name, then the oracle of a synthetic world."""
    found = {LEADRE: generations / "lists"}
    found |= {path.stem: path for path in sorted(baselines.glob("*.parquet"))}
    if (oracle := world / f"{ORACLE}.parquet").exists():
        found[ORACLE] = oracle
    return found


def _categories(ads: pl.DataFrame, catalog: pl.Series) -> Rows:
    """``(A,)`` the first category of each catalog row as a number; our choice: ads without one share a category."""
    names = catalog.to_frame().join(
        ads.select("ad_id", "first_category"), on="ad_id", how="left", maintain_order="left"
    )
    return names["first_category"].rank("dense").fill_null(0).cast(pl.Int32).to_numpy()


def _truth(given: Tables, block: Block, catalog: Catalog) -> Truth:
    labels = known_worth(*read_values(given.labels, "score", block, catalog))
    appraised = known_worth(*read_values(given.values, "value", block, catalog)) if given.values else None
    return Truth(block.targets, labels, appraised)


def measure(config: MetricsConfig, lists: Rows, truth: Truth, categories: Rows) -> dict[str, Scores]:
    """Each metric's ``(n,)`` numbers, in the order of the report."""
    k, top = config.diversity_k, lists[:, : _longest_cut(config)]
    clicked, labels = ranking.find(top, truth.targets), ranking.find_worth(top, truth.labels)
    value = ranking.find_worth(top, truth.appraised) if truth.appraised else None
    spread = diversity.spread(top, categories, k=k)
    return (
        {f"HR@{k}": clicked.hit_rate(k) for k in config.hr_ks}
        | {f"NDCG@{k}": clicked.ndcg(k) for k in config.ndcg_ks}
        | {f"LTRR@{k}": labels.found.recall(k) for k in config.ltrr_ks}
        | {f"LTRR_capped@{k}": labels.found.capped_recall(k) for k in config.ltrr_ks}
        | {f"LTRR_value@{k}": labels.value_recall(k) for k in config.ltrr_ks}
        | ({f"Value@{k}": value.mean_value(k) for k in config.value_ks} if value else {})
        | {
            f"Concentration@{k}": spread.concentration,
            f"Abundance@{k}": spread.abundance,
            f"Diversity@{k}": spread.diversity,
        }
    )


def _add(config: MetricsConfig, totals: Totals, lists: Lists, kept: Rows, categories: Rows) -> None:
    """Add a block's lists, which are ``kept`` without duplicates, to what is counted."""
    sizes = (kept != NO_AD).sum(axis=1)
    listed = int((lists.rows != NO_AD).sum())
    totals.longest = max(totals.longest, lists.rows.shape[1])
    totals.categories += diversity.category_counts(kept, categories, k=config.diversity_k)
    totals.counts.update(
        listed=listed + lists.invalid,
        invalid_ads=lists.invalid,
        duplicate_ads=listed - int(sizes.sum()),
        empty_lists=int((sizes == 0).sum()),
        short_lists=int((sizes < _longest_cut(config)).sum()),
        other_users=lists.other_users,
    )


def _of_users(block: Block, system: str, ranks: Rows, measured: Mapping[str, Scores]) -> pl.DataFrame:
    """``user_id``, ``system``, ``rank`` of the clicked ad, null where it does not stand, and some metrics."""
    return block.users.select(
        "user_id",
        pl.lit(system).alias("system"),
        pl.Series("rank", ranks, dtype=pl.Int32).replace(0, None),
        *(pl.Series(name, values).fill_nan(None) for name, values in measured.items() if name.startswith(IN_PER_USER)),
    )


def _write(frames: Iterator[pl.DataFrame], path: Path) -> None:
    """Write frames of the same columns, of which there is one or more, as one Parquet file."""
    first: Any = next(frames).to_arrow()
    with pq.ParquetWriter(path, first.schema, compression="zstd", use_dictionary=["system"]) as file:
        file.write_table(first)
        for frame in frames:
            file.write_table(frame.to_arrow())


def _summary(config: MetricsConfig, totals: Totals) -> dict[str, float]:
    """The means over users, and what is wrong with the lists."""
    counts, listed = totals.counts, max(1, totals.counts["listed"])
    return {
        **{name: tally.mean for name, tally in totals.scores.items()},
        f"global_concentration@{config.diversity_k}": diversity.most_frequent(totals.categories),
        "invalid_ads": counts["invalid_ads"],
        "duplicate_ads": counts["duplicate_ads"],
        "invalid_rate": counts["invalid_ads"] / listed,
        "duplicate_rate": counts["duplicate_ads"] / listed,
        "empty_lists": counts["empty_lists"],
        "short_lists": counts["short_lists"],
        "other_users": counts["other_users"],
    }


def _longest_cut(config: MetricsConfig) -> int:
    return max(*config.hr_ks, *config.ndcg_ks, *config.ltrr_ks, *config.value_ks, config.diversity_k)


def _warn_of_short_lists(config: MetricsConfig, systems: Mapping[str, Totals]) -> None:
    cut = _longest_cut(config)
    for name, totals in systems.items():
        if (longest := totals.longest) < cut:
            text = "%s: no list has more than %s ads, so numbers at %s cannot pass those at %s"
            log.warning(text, name, longest, cut, longest)


def _intervals(config: MetricsConfig, scores: Mapping[str, Tally]) -> dict[str, tuple[float, float]]:
    """Wilson's interval for HR@K, the bootstrap's for the rest."""
    return {
        name: wilson(round(tally.total), tally.scored, confidence=config.confidence)
        if name.startswith("HR@")
        else _interval(config, tally)
        for name, tally in scores.items()
    }


def _differences(config: MetricsConfig, leadre: Mapping[str, Tally], other: Totals) -> dict[str, dict[str, float]]:
    """How much more LEADRE has: the mean over users, its interval, and the ratio of the means."""
    found = {}
    for name, margin in other.margins.items():
        low, high = _interval(config, margin)
        base = other.scores[name].mean
        ratio = leadre[name].mean / base if base > 0 else math.nan
        found[name] = {"mean": margin.mean, "low": low, "high": high, "ratio": ratio}
    return found


def _interval(config: MetricsConfig, tally: Tally) -> tuple[float, float]:
    draws = np.random.default_rng(config.seed)
    return tally.interval(samples=config.bootstrap_samples, confidence=config.confidence, generator=draws)


def _nan_to_none(value: Any) -> Any:  # noqa: ANN401  # any JSON value
    """JSON has no NaN: a metric that nobody could be scored in is null."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value

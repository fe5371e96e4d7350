"""The room's verb: an ad world from its source, checked, split in time, and written as the declared tables."""

import json
import logging
from pathlib import Path
from typing import assert_never

import polars as pl
from safetensors.numpy import save_file

from leadre import tables
from leadre.data import quarantine
from leadre.data.ad_text import describe
from leadre.data.check import Checked, Found, check
from leadre.data.config import AmazonBeautyData, CompleteJourneyData, DataConfig, Language, SyntheticData, TablesData
from leadre.data.importers import amazon_beauty, completejourney, synthetic
from leadre.data.importers import tables as own_tables
from leadre.data.split import leave_one_out

VERSION = 3

log = logging.getLogger(__name__)


def gather(config: DataConfig, *, out: Path) -> None:
    """Import a world and write its tables and split; world.json tells the counts.

    ``quarantine.jsonl`` holds every refused row; it is written before the limit is checked, so that it is there to
    look at when the run stops. ``negatives.parquet`` holds the negative feedback that the source names, and every
    impression that was not clicked. A simulated world also has ``oracle.parquet``: for each tested user the ads by
    the true probability of being the next ad clicked, exposure x click; and ``hidden.safetensors``: the state behind.
    A world without behaviors, or without a user to be tested, is told of and let through: its ads can be indexed.

    Raises:
        ValueError: If source files are missing or have other columns, if a file has more bad rows than
            ``max_bad_share``, or if no ad is left.
    """
    found = _load(config)
    world = check(found, distinct=isinstance(config, TablesData))
    path = out / quarantine.NAME
    quarantine.write(world.refused, path)
    quarantine.limit(world.refused, totals=found.totals, max_bad_share=config.max_bad_share, path=path)
    if world.ads.is_empty():
        raise ValueError(f"the world has no ads: check data.root, and the refused rows in {path}")
    split = leave_one_out(world.behaviors, min_ads=config.min_ads)
    if world.behaviors.is_empty():
        log.warning("%s has no behaviors: it can be indexed, not trained on", config.kind)
    elif not (split["role"] == "test").any():
        log.warning(
            "no user has data.min_ads=%s ad behaviors, so nobody can be tested: the world can be indexed, not trained "
            "on; lower data.min_ads (at least 2), or give a longer log",
            config.min_ads,
        )
    tables.write(tables.ADS, _described(world.ads, config.language), out / "ads.parquet")
    tables.write(tables.USERS, world.users, out / "users.parquet")
    tables.write(tables.CONTENTS, world.contents, out / "contents.parquet")
    tables.write(tables.BEHAVIORS, world.behaviors, out / "behaviors.parquet")
    tables.write(tables.NEGATIVES, world.negatives, out / "negatives.parquet")
    tables.write(tables.IMPRESSIONS, world.impressions, out / "impressions.parquet")
    tables.write(tables.SPLIT, split, out / "split.parquet")
    if found.oracle is not None:
        tested = split.filter(pl.col("role") == "test")
        oracle = found.oracle.join(tested, on="user_id", how="semi", maintain_order="left")
        tables.write(tables.LISTS, oracle, out / "oracle.parquet")
    if found.hidden is not None:
        save_file(dict(found.hidden), out / "hidden.safetensors")
    told = {"name": config.kind, "language": config.language, **_counts(found, world, split)}
    (out / "world.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    log.info("%s: %s; refused rows: %s", config.kind, told["counts"], world.refused.height)


def _load(config: DataConfig) -> Found:
    match config:
        case SyntheticData():
            return synthetic.load(config.world, seed=config.seed)
        case CompleteJourneyData():
            return completejourney.load(
                config.root,
                domain=config.domain,
                ads_by=config.ads_by,
                min_ad_events=config.min_ad_events,
                language=config.language,
            )
        case AmazonBeautyData():
            return amazon_beauty.load(config.root, language=config.language)
        case TablesData():
            return own_tables.load(config.root, end_time=config.end_time)
        case _:
            assert_never(config)


def _described(ads: pl.DataFrame, language: Language) -> pl.DataFrame:
    features = ads.select("name", "product_type", "first_category", "second_category", "attributes")
    texts = [describe(**row, language=language) for row in features.iter_rows(named=True)]
    return ads.with_columns(pl.Series("description", texts, dtype=pl.String()))


def _counts(found: Found, world: Checked, split: pl.DataFrame) -> dict[str, object]:
    tested = split.filter(pl.col("role") == "test").height
    ad_behaviors = world.behaviors.filter(pl.col("domain") == "ad").height
    ad_negatives = world.negatives.filter(pl.col("domain") == "ad").height
    return {
        "counts": {
            "ads": world.ads.height,
            "users": world.users.height,
            "contents": world.contents.height,
            "ad_behaviors": ad_behaviors,
            "content_behaviors": world.behaviors.height - ad_behaviors,
            "ad_negatives": ad_negatives,
            "content_negatives": world.negatives.height - ad_negatives,
            "impressions": world.impressions.height,
        },
        "read": dict(found.totals),
        "quarantined": quarantine.by_reason(world.refused),
        "cut_texts": dict(world.cut),
        "users_with_test": tested,
        "users_without_test": world.behaviors["user_id"].n_unique() - tested,
        "ad_behaviors_at_the_time_of_valid": ad_behaviors - split.height,
    }

"""The verb ``recommend``: lists of simple recommenders."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from leadre import tables
from leadre.baselines.config import BaselinesConfig, LinearConfig
from leadre.baselines.features import Tables, describe_targets, to_bags, vocabulary
from leadre.baselines.linear import LinearModel, fit, predict
from leadre.baselines.lists import ranked_in_chunks
from leadre.baselines.past import read_tables
from leadre.baselines.popularity import own_history_lists, popular_lists, train_counts
from leadre.data.split import histories

log = logging.getLogger(__name__)

VERSION = 3


def recommend(config: BaselinesConfig, world: Path, catalog: Path, *learned: Path, out: Path) -> None:
    """Write lists for the users with a test target: ``popularity``, ``own_history``, ``linear`` ``.parquet``.

    Only ads of the catalog (``sids.parquet``) are recommended. Histories end strictly before the test
    target; counts and the linear model are made from train targets alone. The lists of learned baselines, which
    `leadre.baselines.learn.learn` has written, are put beside them under their names.

    Args:
        config: Which baselines.
        world: Ads, users, contents, behaviors and split.
        catalog: Holds ``sids``.
        learned: A folder with ``lists.parquet`` for each of ``config.learned``, in the order of their sorted names.
        out: Gets a table of lists a baseline.

    Raises:
        ValueError: If no train target is in the catalog, or the linear model's training diverges.
    """
    known = read_tables(world)
    split = tables.read(tables.SPLIT, world / "split.parquet")
    ads = sorted(tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"].to_list())
    test = split.filter(pl.col("role") == "test").sort("user_id", maintain_order=True)
    users, counts = test["user_id"].to_list(), train_counts(split, ads)
    past = histories(known.behaviors, test, config.window_days)
    size = config.list_length
    results = {
        "popularity": popular_lists(users, ads, counts, size=size),
        "own_history": own_history_lists(users, ads, counts, past, size=size),
        "linear": linear_lists(
            config.linear, known, split, ads, size=size, window_days=config.window_days, seed=config.seed
        ),
    }
    for name, folder in zip(sorted(config.learned), learned, strict=True):
        results[name] = tables.read(tables.LISTS, folder / "lists.parquet")
    for name, lists in results.items():
        tables.write(tables.LISTS, lists, out / f"{name}.parquet")
        log.info("baseline %s: lists of %s users", name, len(users))


def linear_lists(
    config: LinearConfig,
    world: Tables,
    split: pl.DataFrame,
    ads: Sequence[str],
    *,
    size: int,
    window_days: int,
    seed: int,
) -> pl.DataFrame:
    """Train the linear model on train targets, stop by valid targets, rank for test targets (LISTS).

    Raises:
        ValueError: If no train target is an ad of the catalog, or no epoch has a finite valid loss.
    """
    columns = {ad: place for place, ad in enumerate(ads)}
    in_catalog = split.filter((pl.col("role") == "test") | pl.col("ad_id").is_in(list(ads)))
    roles = [
        in_catalog.filter(pl.col("role") == role).sort("user_id", "time", maintain_order=True)
        for role in ("train", "valid", "test")
    ]
    train, valid, test = roles
    if train.is_empty():
        raise ValueError("0 train targets are ads of the catalog: the linear model needs some, include their ads")
    described = [
        describe_targets(
            world,
            targets,
            window_days=window_days,
            half_lives_days=config.half_lives_days,
            content_behaviors=config.content_behaviors,
        )
        for targets in roles
    ]
    names = vocabulary(described[0], min_count=config.min_count)
    bags = [to_bags(rows, names, num_targets=targets.height) for rows, targets in zip(described, roles, strict=True)]
    groups, num_groups = ad_groups(world.ads, ads)
    model = LinearModel(max(len(names), 1), groups, num_groups)
    numbers = [np.array([columns[ad] for ad in targets["ad_id"]], dtype=np.int64) for targets in (train, valid)]
    fit(
        model,
        bags[0],
        numbers[0],
        bags[1],
        numbers[1],
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_epochs=config.max_epochs,
        patience=config.patience,
        seed=seed,
    )
    return ranked_in_chunks(
        test["user_id"].to_list(),
        ads,
        lambda start, stop: predict(model, bags[2].part(start, stop), batch_size=config.batch_size),
        size=size,
    )


def ad_groups(ads: pl.DataFrame, catalog: Sequence[str]) -> tuple[Tensor, int]:
    """The groups of each ad of the catalog, ``(2, N)``: its first- and its second-level category; and their number.

    Ads without a category are a group of their own.
    """
    asked = pl.DataFrame({"ad_id": list(catalog)}, schema={"ad_id": pl.String()})
    joined = asked.join(ads, on="ad_id", how="left", maintain_order="left")
    codes, count = [], 0
    for level in ("first_category", "second_category"):
        place = joined[level].fill_null("").rank("dense").cast(pl.Int64).to_numpy() - 1
        codes.append(torch.from_numpy(place + count))
        count += int(place.max()) + 1
    return torch.stack(codes), count

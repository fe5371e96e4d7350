"""What a few users get, by names, so that a person can look and judge."""

from pathlib import Path

import polars as pl

from leadre import tables
from leadre.report.report import Sample

NUM_BEHAVIORS = 6
NUM_ADS = 5


def read_samples(world: Path, generations: Path, *, num_users: int) -> list[Sample]:
    """A handful of test users, evenly spaced over all who have a list: none is picked for how well it went.

    Args:
        world: The folder of the world.
        generations: The folder of the lists.
        num_users: How many users at most.
    """
    lists = tables.read(tables.LISTS, generations / "lists")
    targets = tables.read(tables.SPLIT, world / "split.parquet").filter(pl.col("role") == "test")
    users = lists["user_id"].unique(maintain_order=True).to_list()
    chosen = users[:: max(1, len(users) // num_users)][:num_users] if num_users else []
    targets = targets.filter(pl.col("user_id").is_in(chosen))
    behaviors = (
        pl.scan_parquet(world / "behaviors.parquet")
        .join(targets.lazy().select("user_id", until="time"), on="user_id", maintain_order="left")
        .filter(pl.col("time") < pl.col("until"))
        .sort("user_id", "time", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .tail(NUM_BEHAVIORS)
        .collect()
    )
    names = _names(world)
    return [
        _sample(
            user,
            lists.filter(pl.col("user_id") == user)["ad_id"].to_list(),
            targets.filter(pl.col("user_id") == user)["ad_id"].item(),
            behaviors.filter(pl.col("user_id") == user),
            names,
        )
        for user in chosen
    ]


def _sample(user: str, ads: list[str], clicked: str, behaviors: pl.DataFrame, names: dict[str, str]) -> Sample:
    told = [f"{action} {names.get(item, item)}" for action, item in behaviors.select("action", "item_id").iter_rows()]
    return Sample(
        user=user,
        behaviors=told,
        recommended=[names.get(ad, ad) for ad in ads[:NUM_ADS]],
        clicked=names.get(clicked, clicked),
        rank=ads.index(clicked) + 1 if clicked in ads else None,
    )


def _names(world: Path) -> dict[str, str]:
    """Names of ads and titles of contents; an item without any goes by its id."""
    ads = tables.read(tables.ADS, world / "ads.parquet")
    contents = tables.read(tables.CONTENTS, world / "contents.parquet")
    contents_named = contents.select("item_id", name=pl.coalesce("title", "item_id"))
    ads_named = ads.select(item_id="ad_id", name=pl.coalesce("name", "ad_id"))
    return dict(pl.concat([contents_named, ads_named]).iter_rows())

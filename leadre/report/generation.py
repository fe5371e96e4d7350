"""What a run that makes lists for a whole user base ends with: its figures, and what a few users get."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console

from leadre import tables
from leadre.report.table import NOTHING, Grid, rich_table, share

NUM_BEHAVIORS = 6


class Listing(NamedTuple):
    """What one user gets, by names.

    Attributes:
        user: The user.
        behaviors: The last behaviors, oldest first; None where they are not known.
        ads: Names and scores of the first ads of the list, best first.
    """

    user: str
    behaviors: Sequence[str] | None
    ads: Sequence[tuple[str, float]]


def figures_of(generation: Mapping[str, Any], *, reused: bool) -> dict[str, float | None]:
    """What a sweep's table tells of a generation.

    Args:
        generation: The content of ``generation.json``.
        reused: Whether the lists were there already, so that this run has no pace.
    """
    return {
        "users": generation["users"],
        "users/s": None if reused else generation["users_per_second"],
        "Invalid": generation["invalid_rate"],
        "Duplicate": generation["duplicate_rate"],
    }


def show_generation(
    generation: Mapping[str, Any],
    listings: Sequence[Listing],
    *,
    reused: bool,
    left_out: int | None,
    console: Console,
) -> None:
    """Print what a few users get, and below it the figures of all.

    Args:
        generation: The content of ``generation.json``.
        listings: What `read_lists` gives; may be empty.
        reused: Whether the lists were there already, so that this run has no pace.
        left_out: Users without a prompt; None where it is not known.
        console: Where it is printed.
    """
    for listing in listings:
        history = "" if listing.behaviors is None else f": {' → '.join(listing.behaviors) or 'no behavior'}"
        lines = [f"User {listing.user}{history}"]
        lines += [f"  {rank}. {name}  {score:.3f}" for rank, (name, score) in enumerate(listing.ads, start=1)]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    pace = figures_of(generation, reused=reused)["users/s"]
    row = (
        "lists",
        f"{generation['users']:,}",
        NOTHING if pace is None else f"{pace:,.1f}",
        share(generation["invalid_rate"]),
        share(generation["duplicate_rate"]),
        f"{generation['users_without_list']:,}",
        NOTHING if left_out is None else f"{left_out:,}",
    )
    head = ("", "users", "users/s", "Invalid", "Duplicate", "without list", "left out")
    console.print(rich_table(Grid(head, (row,)), title="Lists for all users"))


def read_lists(world: Path | None, audience: Path, generations: Path, *, num_users: int, num_ads: int) -> list[Listing]:
    """A few users of the first part, evenly spaced: none is picked for how well it went.

    Nothing is read of other parts, and of behaviors only those of these users.

    Args:
        world: The folder of the world that the prompts were made from; None where they were given: then no behavior
            and no name is known.
        audience: The folder of the prompts, for the time that they were made for.
        generations: The folder of the lists.
        num_users: How many users at most.
        num_ads: How many ads of a list at most.
    """
    part = min((generations / "lists").glob("*.parquet"))
    lists = tables.read(tables.LISTS, part).filter(pl.col("rank") <= num_ads)
    users = lists["user_id"].unique(maintain_order=True).to_list()
    chosen = users[:: max(1, len(users) // num_users)][:num_users] if num_users else []
    listed = lists.filter(pl.col("user_id").is_in(chosen)).sort("user_id", "rank")
    if world is None:
        return [Listing(user, None, _ads_of(user, listed, {})) for user in chosen]
    until = json.loads((audience / "prompts.json").read_text(encoding="utf-8"))["as_of"]
    behaviors = (
        tables.scan(tables.BEHAVIORS, world / "behaviors.parquet")
        .filter(pl.col("user_id").is_in(chosen), pl.col("time") < until)
        .collect()
        .sort("user_id", "time", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .tail(NUM_BEHAVIORS)
    )
    names = _names(world, pl.concat([behaviors["item_id"], listed["ad_id"]]))
    return [Listing(user, _behaviors_of(user, behaviors, names), _ads_of(user, listed, names)) for user in chosen]


def _behaviors_of(user: str, behaviors: pl.DataFrame, names: Mapping[str, str]) -> list[str]:
    own = behaviors.filter(pl.col("user_id") == user).select("action", "item_id")
    return [f"{action} {names.get(item, item)}" for action, item in own.iter_rows()]


def _ads_of(user: str, listed: pl.DataFrame, names: Mapping[str, str]) -> list[tuple[str, float]]:
    own = listed.filter(pl.col("user_id") == user).select("ad_id", "score")
    return [(names.get(ad, ad), score) for ad, score in own.iter_rows()]


def _names(world: Path, items: pl.Series) -> dict[str, str]:
    """The names of some ads and titles of some contents; an item without any has no entry."""
    wanted = items.unique().implode()
    ads = tables.scan(tables.ADS, world / "ads.parquet").select(item_id="ad_id", name="name")
    contents = tables.scan(tables.CONTENTS, world / "contents.parquet").select("item_id", name="title")
    named = pl.concat([contents, ads]).filter(pl.col("item_id").is_in(wanted), pl.col("name").is_not_null())
    return dict(named.collect().iter_rows())

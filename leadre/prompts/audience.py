"""The stage that composes the prompts of a whole user base, as of a time: what daily lists are made for."""

import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from leadre import tables
from leadre.prompts import components, tasks
from leadre.prompts.compose import (
    BEHAVIORS,
    DAY_S,
    ROWS,
    arrow,
    check_arrangement,
    check_items,
    history_of,
    write_about,
    writer,
)
from leadre.prompts.config import PromptsConfig
from leadre.prompts.items import items
from leadre.prompts.wording import Wording, wording_of

VERSION = 2
PART_USERS = 100_000
"""Users in a file of prompts, about, and users whose profiles are in memory at a time."""
SAMPLE = 200_000
"""User ids that the cuts between files are taken from, about."""

log = logging.getLogger(__name__)


class _Day(NamedTuple):
    """What all prompts of an audience share.

    Attributes:
        users: The table USERS, on disk.
        behaviors: The behaviors in the window, on disk.
        items: The items of both domains as text.
        until: The time of the prompts.
    """

    users: pl.LazyFrame
    behaviors: pl.LazyFrame
    items: pl.DataFrame
    until: int


def compose_audience(config: PromptsConfig, world: Path, catalog: Path, *, out: Path, as_of: int | None) -> None:
    """Write one prompt of the main task for every user: ``prompts-0000000.parquet`` and so on (LEADRE 4.2).

    A user has a prompt who has a behavior in the window before ``as_of``, or a profile; the others are counted in
    ``prompts.json``. The prompt is the one that `leadre.prompts.compose.compose` makes for a target at that time.
    Users are read in ranges of their ids, so that memory does not grow with their number.

    Args:
        config: The settings that the model was trained with.
        world: The users, their behaviors, ads and contents of today.
        catalog: The ads that have an S-ID; others are shown by their descriptions.
        out: Where the prompts go: one part a range of users, in the order of their ids.
        as_of: UTC seconds; only behaviors strictly before it are seen. None is one second after the last behavior.

    Raises:
        ValueError: If ``arrangement`` does not name each component once, if no behavior lies in the window, if a
            behavior's item is in no table of items, or if the world's language has no wording.
    """
    check_arrangement(config.arrangement)
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    wording = wording_of(language)
    known = items(
        tables.read(tables.ADS, world / "ads.parquet"),
        tables.read(tables.CONTENTS, world / "contents.parquet"),
        catalog=set(tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"]),
        content_title=config.content_title,
    )
    users, behaviors = (
        tables.scan(table, world / f"{table.name}.parquet") for table in (tables.USERS, tables.BEHAVIORS)
    )
    until = _until(behaviors, as_of, window_days=config.window_days)
    day = _Day(users, _window(behaviors, until, window_days=config.window_days), known, until)
    counts = {"users": 0, "without_behavior": 0, "left_out": 0}
    for part, within in enumerate(_ranges(world / "users.parquet")):
        found = _write_part(day, within, wording, config, path=out / f"prompts-{part:07d}.parquet")
        counts = {name: counts[name] + found[name] for name in counts}
    write_about(out, config, language, as_of=until, audience=counts)
    log.info("audience as of %s: %s", until, counts)


def _until(behaviors: pl.LazyFrame, as_of: int | None, *, window_days: int) -> int:
    """The time of the prompts; one that no behavior lies before is refused."""
    ends = behaviors.select(pl.col("time").min().alias("first"), pl.col("time").max().alias("last"))
    first, last = ends.collect(engine="streaming").row(0)
    if last is None:
        raise ValueError(
            "behaviors.parquet has no row: lists are made from what users did; add the table behaviors to data.root"
        )
    until: int = last + 1 if as_of is None else as_of
    if _window(behaviors, until, window_days=window_days).select(pl.len()).collect(engine="streaming").item() == 0:
        raise ValueError(
            f"as_of is {until}, but no behavior lies in the {window_days} days before it, and the behaviors reach "
            f"from {first} to {last}: give UTC seconds from {first + 1} to {last + window_days * DAY_S}, or "
            "leave as_of out"
        )
    return until


def _window(behaviors: pl.LazyFrame, until: int, *, window_days: int) -> pl.LazyFrame:
    return behaviors.filter(pl.col("time") >= until - window_days * DAY_S, pl.col("time") < until)


def _ranges(users: Path) -> Iterator[pl.Expr]:
    """Conditions that cut all possible user ids into ranges of about `PART_USERS` users."""
    file = pq.ParquetFile(users)
    every = max(1, file.metadata.num_rows // SAMPLE)
    ids = [batch.column("user_id")[::every].to_pylist() for batch in file.iter_batches(columns=["user_id"])]
    sample = sorted(user for batch in ids for user in batch)
    cuts = sample[PART_USERS // every :: PART_USERS // every]
    user_id = pl.col("user_id")
    for low, high in pairwise([None, *cuts, None]):
        from_low = pl.lit(True) if low is None else user_id >= low
        yield from_low if high is None else from_low & (user_id < high)


def _write_part(day: _Day, within: pl.Expr, wording: Wording, config: PromptsConfig, *, path: Path) -> dict[str, int]:
    """Write the prompts of one range of users, some at a time; count them."""
    users = day.users.filter(within).collect()
    seen = day.behaviors.filter(within).select("user_id").unique().collect(engine="streaming")
    has_profile = pl.any_horizontal(pl.exclude("user_id").is_not_null())
    audience = pl.concat([users.filter(has_profile).select("user_id"), seen]).unique().sort("user_id")
    if audience.height:
        with writer(tables.PROMPTS, path) as file:
            for some in audience.iter_slices(ROWS):
                profiles = components.profiles(users.join(some, on="user_id", how="semi"), wording)
                for prompts in _prompts(some, profiles, day, wording, config):
                    file.write_table(arrow(prompts))
    return {
        "users": audience.height,
        "without_behavior": audience.height - seen.height,
        "left_out": users.join(audience, on="user_id", how="anti").height,
    }


def _prompts(
    users: pl.DataFrame, profiles: pl.DataFrame, day: _Day, wording: Wording, config: PromptsConfig
) -> Iterator[pl.DataFrame]:
    """The prompts of some users, in the order of their ids."""
    first, last = pl.lit(users["user_id"][0]), pl.lit(users["user_id"][-1])
    behaviors = day.behaviors.filter(pl.col("user_id").is_between(first, last)).collect()
    check_items(behaviors, day.items)
    for some, of_some in _cut(users, behaviors.sort("user_id", maintain_order=True)):
        # An ad that is asked for is part of a pair, not of its prompt.
        targets = some.with_columns(
            target=pl.int_range(pl.len()), time=pl.lit(day.until, pl.Int64), ad_id=pl.lit("", pl.String)
        )
        history = history_of(targets, of_some, day.items, window_days=config.window_days)
        pairs = tasks.next_ad(targets, history, profiles, wording, config, ads="sid")
        yield pairs.select(list(tables.PROMPTS.columns))


def _cut(users: pl.DataFrame, behaviors: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield some users and their behaviors, about `BEHAVIORS` at a time; both are sorted by user."""
    counts = behaviors.group_by("user_id").agg(count=pl.len())
    ends = users.join(counts, on="user_id", how="left", maintain_order="left").with_columns(
        end=pl.col("count").fill_null(0).cast(pl.Int64).cum_sum()
    )
    start = 0
    for some in ends.with_columns(part=pl.col("end") // BEHAVIORS).partition_by("part", maintain_order=True):
        end = some["end"][-1]
        yield some.select("user_id"), behaviors.slice(start, end - start)
        start = end

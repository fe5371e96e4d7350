"""The stage that composes the prompts of a whole user base, as of a time: what daily lists are made for."""

import json
import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow.parquet as pq

from leadre import tables
from leadre.data.split import DAY
from leadre.prompts import components, tasks
from leadre.prompts.compose import BEHAVIORS, ROWS, arrow, check_arrangement, write_about, writer
from leadre.prompts.config import PromptsConfig
from leadre.prompts.known import Known, check_items, described, history_of, items_of, negatives_of, of_users, windows
from leadre.prompts.templates import Template, templates_of

VERSION = 3
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
        negatives: Negative feedback on disk; None where the summary counts none.
        items: The items of both domains as text.
        until: The time of the prompts.
    """

    users: pl.LazyFrame
    behaviors: pl.LazyFrame
    negatives: pl.LazyFrame | None
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
    templates = templates_of(language)[:1]
    known = items_of(world, catalog, config)
    negatives = negatives_of(world, known, config)
    users, behaviors = (
        tables.scan(table, world / f"{table.name}.parquet") for table in (tables.USERS, tables.BEHAVIORS)
    )
    until = _until(behaviors, as_of, window_days=config.window_days)
    window = _window(behaviors, until, window_days=config.window_days)
    day = _Day(users, window, negatives, known, until)
    counts = {"users": 0, "without_behavior": 0, "left_out": 0}
    for part, within in enumerate(_id_ranges(world / "users.parquet")):
        found = _write_part(day, within, templates, config, path=out / f"prompts-{part:07d}.parquet")
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
            f"from {first} to {last}: give UTC seconds from {first + 1} to {last + window_days * DAY}, or "
            "leave as_of out"
        )
    return until


def _window(behaviors: pl.LazyFrame, until: int, *, window_days: int) -> pl.LazyFrame:
    return behaviors.filter(pl.col("time") >= until - window_days * DAY, pl.col("time") < until)


def _id_ranges(users: Path) -> Iterator[pl.Expr]:
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


def _write_part(
    day: _Day, within: pl.Expr, templates: Sequence[Template], config: PromptsConfig, *, path: Path
) -> dict[str, int]:
    """Write the prompts of one range of users, some at a time; count them."""
    users = day.users.filter(within).collect()
    seen = day.behaviors.filter(within).select("user_id").unique().collect(engine="streaming")
    has_profile = pl.any_horizontal(pl.exclude("user_id").is_not_null())
    audience = pl.concat([users.filter(has_profile).select("user_id"), seen]).unique().sort("user_id")
    if audience.height:
        with writer(tables.PROMPTS, path) as file:
            for some in audience.iter_slices(ROWS):
                profiles = components.profiles(users.join(some, on="user_id", how="semi"), templates[0].wording)
                for prompts in _prompts(some, profiles, day, templates, config):
                    file.write_table(arrow(prompts))
    return {
        "users": audience.height,
        "without_behavior": audience.height - seen.height,
        "left_out": users.join(audience, on="user_id", how="anti").height,
    }


def _prompts(
    users: pl.DataFrame, profiles: pl.DataFrame, day: _Day, templates: Sequence[Template], config: PromptsConfig
) -> Iterator[pl.DataFrame]:
    """The prompts of some users, in the order of their ids."""
    # An ad that is asked for is part of a pair, not of its prompt.
    targets = users.with_columns(
        target=pl.int_range(pl.len()),
        time=pl.lit(day.until, pl.Int64),
        ad_id=pl.lit("", pl.String),
        template=pl.lit(0),
    )
    first, last = pl.lit(users["user_id"][0]), pl.lit(users["user_id"][-1])
    behaviors = day.behaviors.filter(pl.col("user_id").is_between(first, last)).collect()
    check_items(behaviors, day.items)
    for some, of_some in _cut(windows(targets, config), behaviors.sort("user_id", "time", maintain_order=True), day):
        negatives = None if day.negatives is None else of_users(day.negatives, some).collect()
        known = Known(profiles, of_some, negatives, day.items)
        told = described(some, known, templates[0].wording, config)
        pairs = tasks.next_ad(told, history_of(some, known, config), templates, config, ads="sid")
        yield pairs.select(list(tables.PROMPTS.columns))


def _cut(targets: pl.DataFrame, behaviors: pl.DataFrame, day: _Day) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield some targets and their behaviors, about `BEHAVIORS` rows to read at a time; both are sorted by user."""
    counts = [behaviors.group_by("user_id").agg(count=pl.len().cast(pl.Int64), read=pl.len().cast(pl.Int64))]
    if day.negatives is not None:
        read = of_users(day.negatives, targets).group_by("user_id").agg(read=pl.len().cast(pl.Int64))
        counts.append(read.collect(engine="streaming"))
    summed = pl.concat(counts, how="diagonal").group_by("user_id").sum()
    ends = targets.join(summed, on="user_id", how="left", maintain_order="left").with_columns(
        pl.col("count", "read").fill_null(0).cum_sum()
    )
    start = 0
    for some in ends.with_columns(part=pl.col("read") // BEHAVIORS).partition_by("part", maintain_order=True):
        end = some["count"][-1]
        yield some.select(targets.columns), behaviors.slice(start, end - start)
        start = end

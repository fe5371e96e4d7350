"""The stage that composes prompt-response pairs for all tasks (LEADRE 4.2, 4.3.1)."""

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq

from leadre import tables
from leadre.data.split import histories
from leadre.prompts import components, tasks
from leadre.prompts.config import PromptsConfig
from leadre.prompts.following import following, shuffled
from leadre.prompts.items import items
from leadre.prompts.wording import Wording, wording_of

VERSION = 2
NEXT_N, CONTROL = "next_n", "next_n_control"
"""The tasks of several ads; in targets, the columns of the ads that follow."""
DAY_S = 86_400
ROWS = 10_000
"""Prompts in memory at a time, at most; also the row groups of the files."""
BEHAVIORS = 250_000
"""Behaviors of histories in memory at a time, about."""

log = logging.getLogger(__name__)


class _World(NamedTuple):
    """What prompts are made of: the users, their behaviors, sorted by user, and the items as text."""

    users: pl.DataFrame
    behaviors: pl.DataFrame
    items: pl.DataFrame


def compose(config: PromptsConfig, world: Path, catalog: Path, *, out: Path) -> None:
    """Write the pairs of each task and split: ``{explicit,implicit,main}.{train,valid,test}.parquet``.

    The explicit task has one pair an ad of the catalog, for training alone. The implicit and the main task ask for
    the same targets. A target whose ad is not in the catalog makes no pair, and a train target without any
    behavior before it neither; both are counted in ``prompts.json``. Only behaviors strictly before the target,
    and within the window, enter a prompt or its summary.

    Where ``next_n`` is above 1, ``next_n.train.parquet`` holds the prompts of ``main.train`` with the target and the
    user's next distinct train targets as the response; with ``next_n_control``, ``next_n_control.train.parquet``
    holds them with what follows other users' targets.

    Raises:
        ValueError: If ``arrangement`` does not name each component once, if the catalog or the behaviors hold
            items that the world does not know, if the split tests nobody, or if the world's language has no wording.
    """
    check_arrangement(config.arrangement)
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    wording = wording_of(language)
    ads = tables.read(tables.ADS, world / "ads.parquet")
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    explicit = tasks.explicit(_described(sids, ads), wording, soft_tokens=config.soft_tokens)
    tables.write(tables.PAIRS, explicit, out / "explicit.train.parquet")
    contents = tables.read(tables.CONTENTS, world / "contents.parquet")
    sources = _World(
        tables.read(tables.USERS, world / "users.parquet"),
        tables.read(tables.BEHAVIORS, world / "behaviors.parquet").sort("user_id", maintain_order=True),
        items(ads, contents, catalog=set(sids["ad_id"]), content_title=config.content_title),
    )
    _check_behaviors(sources)
    split = tables.read(tables.SPLIT, world / "split.parquet")
    _check_split(split)
    counts = {}
    for role in ("train", "valid", "test"):
        targets = split.filter(pl.col("role") == role)
        counts[role] = _compose(targets, sources, wording, config, role=role, out=out)
    write_about(out, config, language, next_n=config.next_n, pairs=counts)


def write_about(out: Path, config: PromptsConfig, language: str, **more: object) -> None:
    """Write ``prompts.json``: what a reader of prompts must know of how they were made."""
    about = {
        "max_tokens": config.max_tokens,
        "soft_tokens": config.soft_tokens,
        "language": language,
        "arrangement": list(config.arrangement),
        "summary": config.summary,
        **more,
    }
    (out / "prompts.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def check_arrangement(arrangement: tuple[str, ...]) -> None:
    """Refuse an order of components that leaves one out, or names one twice."""
    if sorted(arrangement) != ["behaviors", "profile", "summary"]:
        raise ValueError(
            f"prompts.arrangement is {list(arrangement)}, but must name profile, summary and behaviors once each: "
            "put all three in an order, and leave one out by its own switch (summary: false)"
        )


def _check_behaviors(world: _World) -> None:
    if world.behaviors.is_empty():
        raise ValueError(
            "behaviors.parquet has no row: a world of ads alone can be indexed (index.py), not trained on; "
            "add the table behaviors to data.root"
        )
    check_items(world.behaviors, world.items)


def check_items(behaviors: pl.DataFrame, known: pl.DataFrame) -> None:
    """Refuse behaviors with items that are in no table."""
    unknown = behaviors.join(known, on=["domain", "item_id"], how="anti")
    if unknown.height:
        raise ValueError(
            f"behaviors.parquet names {unknown['item_id'].n_unique()} items, such as {unknown['item_id'][0]!r}, that "
            "ads.parquet and contents.parquet do not: add them, or leave their behaviors out"
        )


def _check_split(split: pl.DataFrame) -> None:
    if not (split["role"] == "test").any():
        raise ValueError(
            "split.parquet tests nobody, since no user has data.min_ads ad behaviors: such a world can be indexed "
            "(index.py), not trained on; lower data.min_ads (at least 2), or give a longer log"
        )


def _described(sids: pl.DataFrame, ads: pl.DataFrame) -> pl.DataFrame:
    """The ads of the catalog, in its order, with their descriptions."""
    described = sids.select("ad_id").join(ads, on="ad_id", how="left", maintain_order="left")
    if unknown := described["description"].null_count():
        raise ValueError(
            f"catalog holds {unknown} ads that ads.parquet does not: it was made from another world; "
            "make the catalog from this one"
        )
    return described


def _compose(
    targets: pl.DataFrame, world: _World, wording: Wording, config: PromptsConfig, *, role: str, out: Path
) -> dict[str, int]:
    """Write the pairs of one split, some users at a time; count them."""
    listed = targets.join(
        world.items.filter("listed"), left_on="ad_id", right_on="item_id", how="semi", maintain_order="left"
    )
    chosen = _train_targets(listed, config) if role == "train" else listed
    counts = {
        "pairs": 0,
        "ad_not_in_catalog": targets.height - listed.height,
        "without_history": chosen.height,
    }
    several = [task for task in (NEXT_N, CONTROL) if task in chosen.columns]
    counts |= {f"{task}_following": 0 for task in several}
    with ExitStack() as files:
        writers = {
            task: files.enter_context(writer(tables.PAIRS, out / f"{task}.{role}.parquet"))
            for task in ("main", "implicit", *several)
        }
        for chunk, behaviors in _chunks(chosen, world.behaviors):
            history = history_of(chunk, behaviors, world.items, window_days=config.window_days)
            if role == "train":
                chunk = chunk.join(history, on="target", how="semi", maintain_order="left")
            for task, pairs in _pairs(chunk, history, world, wording, config):
                writers[task].write_table(arrow(pairs))
                if task in several:
                    counts[f"{task}_following"] += int(pairs["following"].list.len().sum())
            counts["pairs"] += chunk.height
            counts["without_history"] -= chunk.height
    log.info("%s: %s", role, counts)
    return counts


def _pairs(
    targets: pl.DataFrame, history: pl.DataFrame, world: _World, wording: Wording, config: PromptsConfig
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each task with its pairs."""
    profiles = components.profiles(world.users.join(targets, on="user_id", how="semi"), wording)
    yield "implicit", tasks.next_ad(targets, history, profiles, wording, config, ads="description")
    main = tasks.next_ad(targets, history, profiles, wording, config, ads="sid")
    yield "main", main
    for task in (NEXT_N, CONTROL):
        if task in targets.columns:
            yield task, main.with_columns(targets[task].alias("following"))


def _train_targets(listed: pl.DataFrame, config: PromptsConfig) -> pl.DataFrame:
    """The train targets that make pairs; where responses name several ads, with what follows each target."""
    if config.next_n == 1:
        return _reused(listed, config.reuse_every)
    ordered = listed.sort("user_id", "time", maintain_order=True)
    after = following(ordered, ads=config.next_n - 1)
    chosen = _reused(ordered.with_columns(after.alias(NEXT_N)), config.reuse_every)
    if config.next_n_control is None:
        return chosen
    return chosen.with_columns(shuffled(chosen, chosen[NEXT_N], seed=config.next_n_control).alias(CONTROL))


def _reused(targets: pl.DataFrame, every: int | None) -> pl.DataFrame:
    """Every n-th target of each user, counted back from the last; the last alone where ``every`` is None."""
    ordered = targets.sort("time", maintain_order=True)
    back = pl.int_range(pl.len(), dtype=pl.Int64).reverse().over("user_id")
    return ordered.filter(back == 0 if every is None else back % every == 0)


def _chunks(targets: pl.DataFrame, behaviors: pl.DataFrame) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Yield some targets, numbered, with the behaviors of their users, so that memory does not grow with users."""
    first = behaviors.with_row_index("first").group_by("user_id", maintain_order=True)
    spans = first.agg(pl.col("first").first().cast(pl.Int64), pl.len().cast(pl.Int64).alias("count"))
    targets = targets.join(spans, on="user_id", how="left").fill_null(0).sort("first", "time", maintain_order=True)
    rows, histories_so_far = pl.int_range(pl.len()), pl.col("count").cum_sum()
    part = pl.struct(rows // ROWS, rows_read=histories_so_far // BEHAVIORS).rle_id()
    for chunk in targets.with_columns(part=part).partition_by("part", maintain_order=True):
        start = chunk["first"][0]
        stop = chunk["first"][-1] + chunk["count"][-1]
        numbered = chunk.drop("part", "first", "count").with_columns(target=pl.int_range(pl.len()))
        yield numbered, behaviors.slice(start, stop - start)


def history_of(
    targets: pl.DataFrame, behaviors: pl.DataFrame, items: pl.DataFrame, *, window_days: int
) -> pl.DataFrame:
    """The history of each target as `leadre.prompts.components` describes it.

    Our choice: days are whole days that have passed, so a behavior of the last 24 hours is 0 days ago.
    """
    asked = targets.select("target", asked="time")
    return (
        histories(behaviors, targets, window_days)
        .join(asked, on="target", how="left", maintain_order="left")
        .join(items, on=["domain", "item_id"], how="left", maintain_order="left")
        .with_columns(days=(pl.col("asked") - pl.col("time")) // DAY_S)
    )


def writer(table: tables.Table, path: Path) -> Any:  # noqa: ANN401  # pyarrow has no types
    """A Parquet file that prompts are written to some at a time."""
    return pq.ParquetWriter(path, arrow(pl.DataFrame(schema=table.schema)).schema, compression="zstd")


def arrow(prompts: pl.DataFrame) -> Any:  # noqa: ANN401  # pyarrow has no types
    """Prompts as what `writer` takes."""
    return prompts.to_arrow(compat_level=pl.CompatLevel.oldest())

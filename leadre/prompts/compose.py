"""The stage that composes prompt-response pairs for all tasks (LEADRE 4.2, 4.3.1)."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow.parquet as pq

from leadre import tables
from leadre.prompts import components, tasks
from leadre.prompts.config import PromptsConfig
from leadre.prompts.controls import descriptions_of_another, of_another_user
from leadre.prompts.draws import draws
from leadre.prompts.following import following, shuffled
from leadre.prompts.history import any_seen
from leadre.prompts.known import (
    Known,
    check_items,
    described,
    history_of,
    items_of,
    most_shown,
    negatives_of,
    of_users,
    windows,
)
from leadre.prompts.templates import Template, drawn_templates, templates_of

VERSION = 3
NEXT_N, CONTROL = "next_n", "next_n_control"
"""The tasks of several ads; in targets, the columns of the ads that follow."""
ROWS = 10_000
"""Prompts in memory at a time, at most; also the row groups of the files."""
BEHAVIORS = 250_000
"""Behaviors of histories, and behaviors and negatives of users, in memory at a time, about."""

log = logging.getLogger(__name__)


class _World(NamedTuple):
    """What prompts are made of.

    Attributes:
        users: The table USERS.
        behaviors: The table BEHAVIORS, sorted by user and time.
        negatives: Negative feedback on disk; None where the summary counts none.
        items: The items of both domains as text.
        spans: One row a user: where its behaviors begin (``first``), how many they are (``count``), and how many
            negatives it has.
    """

    users: pl.DataFrame
    behaviors: pl.DataFrame
    negatives: pl.LazyFrame | None
    items: pl.DataFrame
    spans: pl.DataFrame


def compose(config: PromptsConfig, world: Path, catalog: Path, *, out: Path) -> None:
    """Write the pairs of each task and split: ``{explicit,implicit,main}.{train,valid,test}.parquet``.

    The explicit task has one pair an ad of the catalog, for training alone. The implicit and the main task ask for
    the same targets. A target whose ad is not in the catalog makes no pair, and a train target without any
    behavior before it neither; both are counted in ``prompts.json``. Only behaviors strictly before the target,
    and within the window, enter a prompt or its summary.

    Where ``next_n`` is above 1, ``next_n.train.parquet`` holds the prompts of ``main.train`` with the target and the
    user's next distinct train targets as the response; with ``next_n_control``, ``next_n_control.train.parquet``
    holds them with what follows other users' targets.

    Templates and the order of profiles are drawn for train pairs alone, from the seed, the user and the target's time
    (the explicit task: the ad); valid and test prompts have the paper's template.

    Raises:
        ValueError: If ``arrangement`` does not name each component once, if the catalog or the behaviors hold
            items that the world does not know, if the summary counts negatives and the world has none, if the split
            tests nobody, or if the world's language has no wording.
    """
    check_arrangement(config.arrangement)
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    templates = templates_of(language)
    _write_explicit(world, catalog, templates, config, out=out)
    sources = _sources(world, catalog, config)
    split = tables.read(tables.SPLIT, world / "split.parquet")
    _check_split(split)
    counts = {}
    for role in ("train", "valid", "test"):
        targets = split.filter(pl.col("role") == role)
        counts[role] = _compose(targets, sources, templates, config, role=role, out=out)
    write_about(out, config, language, next_n=config.next_n, pairs=counts)


class Ingredients(NamedTuple):
    """What prompts of the main task are composed of, for some test targets: arguments of `tasks.next_ad`.

    Attributes:
        targets: One row a prompt: ``target``, ``user_id``, ``ad_id``, ``profile``, ``summary``, ``template`` and more.
        history: The behaviors that are shown, as `leadre.prompts.components` describes them.
        templates: Of the world's language.
    """

    targets: pl.DataFrame
    history: pl.DataFrame
    templates: Sequence[Template]


def ingredients(
    config: PromptsConfig, world: Path, catalog: Path, *, users: pl.Series | None = None
) -> Iterator[Ingredients]:
    """Yield what ``main.test.parquet`` is composed of, some users at a time: for studies that change a history.

    Args:
        config: As for `compose`, and so are the folders and what is refused.
        world: Holds the users and their behaviors.
        catalog: Holds the S-IDs.
        users: Ids of those whose targets are wanted; None is all.
    """
    check_arrangement(config.arrangement)
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    templates, sources = templates_of(language), _sources(world, catalog, config)
    listed = sources.items.filter("listed").select(ad_id="item_id")
    split = tables.read(tables.SPLIT, world / "split.parquet").filter(pl.col("role") == "test")
    targets = split.join(listed, on="ad_id", how="semi", maintain_order="left")
    if users is not None:
        targets = targets.join(users.to_frame("user_id"), on="user_id", how="semi", maintain_order="left")
    targets = _augmented(targets, config, templates=len(templates), role="test")
    for chunk, known in _chunks(windows(targets, config), sources, templates, config):
        told = described(chunk, known, templates[0].wording, config)
        yield Ingredients(told, history_of(chunk, known, config), templates)


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


def _write_explicit(
    world: Path, catalog: Path, templates: Sequence[Template], config: PromptsConfig, *, out: Path
) -> None:
    ads = tables.read(tables.ADS, world / "ads.parquet")
    if config.description_control is not None:
        ads = descriptions_of_another(ads, seed=config.description_control)
    asked = _described(tables.read(tables.SIDS, catalog / "sids.parquet"), ads)
    drawn = drawn_templates(asked.select("ad_id"), templates=len(templates), seed=config.template_seed)
    asked = asked.with_columns(template=pl.Series(drawn))
    explicit = tasks.explicit(asked, templates, soft_tokens=config.soft_tokens)
    tables.write(tables.PAIRS, explicit, out / "explicit.train.parquet")


def _sources(world: Path, catalog: Path, config: PromptsConfig) -> _World:
    known = items_of(world, catalog, config)
    behaviors = tables.read(tables.BEHAVIORS, world / "behaviors.parquet")
    if config.content_control is not None:
        behaviors = of_another_user(behaviors, domain="content", seed=config.content_control)
    behaviors = behaviors.sort("user_id", "time", maintain_order=True)
    if behaviors.is_empty():
        raise ValueError(
            "behaviors.parquet has no row: a world of ads alone can be indexed (index.py), not trained on; "
            "add the table behaviors to data.root"
        )
    check_items(behaviors, known)
    negatives = negatives_of(world, known, config)
    users = tables.read(tables.USERS, world / "users.parquet")
    return _World(users, behaviors, negatives, known, _rows_of_users(behaviors, negatives))


def _rows_of_users(behaviors: pl.DataFrame, negatives: pl.LazyFrame | None) -> pl.DataFrame:
    rows = behaviors.with_row_index("first").group_by("user_id", maintain_order=True)
    spans = rows.agg(pl.col("first").first().cast(pl.Int64), count=pl.len().cast(pl.Int64))
    if negatives is None:
        return spans.with_columns(negatives=pl.lit(0, pl.Int64))
    counts = negatives.group_by("user_id").agg(negatives=pl.len().cast(pl.Int64)).collect(engine="streaming")
    return spans.join(counts, on="user_id", how="left", maintain_order="left").with_columns(
        pl.col("negatives").fill_null(0)
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
    targets: pl.DataFrame,
    world: _World,
    templates: Sequence[Template],
    config: PromptsConfig,
    *,
    role: str,
    out: Path,
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
    augmented = _augmented(chosen, config, templates=len(templates), role=role)
    with ExitStack() as files:
        writers = {
            task: files.enter_context(writer(tables.PAIRS, out / f"{task}.{role}.parquet"))
            for task in ("main", "implicit", *several)
        }
        for chunk, known in _chunks(windows(augmented, config), world, templates, config):
            if role == "train":
                chunk = chunk.filter(any_seen(known.behaviors, chunk))
            for task, pairs in _pairs(chunk, known, templates, config):
                writers[task].write_table(arrow(pairs))
                if task in several:
                    counts[f"{task}_following"] += int(pairs["following"].list.len().sum())
            counts["pairs"] += chunk.height
            counts["without_history"] -= chunk.height
    log.info("%s: %s", role, counts)
    return counts


def _pairs(
    targets: pl.DataFrame, known: Known, templates: Sequence[Template], config: PromptsConfig
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each task with its pairs."""
    wording = templates[0].wording
    told = described(targets, known, wording, config)
    if "order" in told.columns:
        told = told.with_columns(components.reordered(told["profile"], told["order"].to_numpy(), wording))
    history = history_of(targets, known, config)
    yield "implicit", tasks.next_ad(told, history, templates, config, ads="description")
    main = tasks.next_ad(told, history, templates, config, ads="sid")
    yield "main", main
    for task in (NEXT_N, CONTROL):
        if task in targets.columns:
            yield task, main.with_columns(targets[task].alias("following"))


def _train_targets(listed: pl.DataFrame, config: PromptsConfig) -> pl.DataFrame:
    """The train targets that make pairs; where responses name several ads, with what follows each target."""
    if config.next_n == 1:
        return _reused(listed, config.reuse_every, config.reuse_seed)
    ordered = listed.sort("user_id", "time", maintain_order=True)
    after = following(ordered, ads=config.next_n - 1)
    chosen = _reused(ordered.with_columns(after.alias(NEXT_N)), config.reuse_every, config.reuse_seed)
    if config.next_n_control is None:
        return chosen
    return chosen.with_columns(shuffled(chosen, chosen[NEXT_N], seed=config.next_n_control).alias(CONTROL))


def _reused(targets: pl.DataFrame, every: int | None, seed: int | None) -> pl.DataFrame:
    """One target of each run of ``every`` of a user's: the last, or one that is drawn; all in one run if None.

    Runs are counted back from the user's last target, so the first run may be shorter.
    """
    ordered = targets.sort("time", maintain_order=True)
    back = pl.int_range(pl.len(), dtype=pl.Int64).reverse().over("user_id")
    if every is None:
        return ordered.filter(back == 0)
    if seed is None:
        return ordered.filter(back % every == 0)
    runs = ordered.select("user_id", run=back // every)
    drawn = pl.Series(draws(runs, seed=seed, of="reuse"))
    length = pl.len().cast(pl.UInt64).over("user_id", back // every)
    return ordered.filter((back % every).cast(pl.UInt64) == drawn % length)


def _augmented(targets: pl.DataFrame, config: PromptsConfig, *, templates: int, role: str) -> pl.DataFrame:
    """Add the ``template`` of each target and, where profiles are reordered, a drawn ``order``; for training alone."""
    keys, training = targets.select("user_id", "time"), role == "train"
    drawn = drawn_templates(keys, templates=templates, seed=config.template_seed if training else None)
    targets = targets.with_columns(template=pl.Series(drawn))
    if not training or config.profile_seed is None:
        return targets
    return targets.with_columns(order=pl.Series(draws(keys, seed=config.profile_seed, of="profile")))


def _chunks(
    targets: pl.DataFrame, world: _World, templates: Sequence[Template], config: PromptsConfig
) -> Iterator[tuple[pl.DataFrame, Known]]:
    """Yield some targets, numbered, with what is known of their users, so that memory does not grow with users."""
    spans = world.spans.columns[1:]
    targets = targets.join(world.spans, on="user_id", how="left", maintain_order="left")
    targets = targets.with_columns(pl.col(spans).fill_null(0)).sort("first", "time", maintain_order=True)
    of_user = pl.when(pl.col("user_id").is_first_distinct()).then(pl.col("count") + pl.col("negatives")).otherwise(0)
    shown = pl.min_horizontal("count", pl.lit(sum(most_shown(config).values())))
    part = pl.struct(pl.int_range(pl.len()) // ROWS, read=(of_user + shown).cum_sum() // BEHAVIORS).rle_id()
    for chunk in targets.with_columns(part=part).partition_by("part", maintain_order=True):
        start, stop = chunk["first"][0], chunk.select((pl.col("first") + pl.col("count")).max()).item()
        behaviors = world.behaviors.slice(start, stop - start)
        profiles = components.profiles(world.users.join(chunk, on="user_id", how="semi"), templates[0].wording)
        negatives = None if world.negatives is None else of_users(world.negatives, chunk).collect()
        known = Known(profiles, behaviors, negatives, world.items)
        yield chunk.drop("part", *spans).with_columns(target=pl.int_range(pl.len())), known


def writer(table: tables.Table, path: Path) -> Any:  # noqa: ANN401  # pyarrow has no types
    """A Parquet file that prompts are written to some at a time."""
    return pq.ParquetWriter(path, arrow(pl.DataFrame(schema=table.schema)).schema, compression="zstd")


def arrow(prompts: pl.DataFrame) -> Any:  # noqa: ANN401  # pyarrow has no types
    """Prompts as what `writer` takes."""
    return prompts.to_arrow(compat_level=pl.CompatLevel.oldest())

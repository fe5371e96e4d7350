"""What is known of a user at a target's time: the profile, the interest summary, and the history that is shown."""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.data.split import DAY
from leadre.prompts import components
from leadre.prompts.config import PromptsConfig
from leadre.prompts.controls import descriptions_of_another, names_of_another
from leadre.prompts.history import frequent, newest
from leadre.prompts.items import items
from leadre.prompts.segments import column
from leadre.prompts.wording import Wording


class Known(NamedTuple):
    """What prompts are made of.

    Attributes:
        profiles: Columns ``user_id`` and ``profile``, of `components.profiles`.
        behaviors: Sorted by user, and by time within a user.
        negatives: Columns ``user_id``, ``item_id``, ``domain`` and ``time``; None where the summary counts none.
        items: The items of both domains as text.
    """

    profiles: pl.DataFrame
    behaviors: pl.DataFrame
    negatives: pl.DataFrame | None
    items: pl.DataFrame


def items_of(world: Path, catalog: Path, config: PromptsConfig) -> pl.DataFrame:
    """Every item of a world as text."""
    ads = tables.read(tables.ADS, world / "ads.parquet")
    if config.description_control is not None:
        ads = descriptions_of_another(ads, seed=config.description_control)
    return items(
        ads,
        tables.read(tables.CONTENTS, world / "contents.parquet"),
        catalog=set(tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"]),
        content_title=config.content_title,
    )


def negatives_of(world: Path, known: pl.DataFrame, config: PromptsConfig) -> pl.LazyFrame | None:
    """The negative feedback that the summary counts, on disk: it may be a hundred times the behaviors.

    Raises:
        ValueError: If the summary counts it and the world has none, or if it names items that are in no table.
    """
    if not (config.summary and config.summary_negatives):
        return None
    path = world / "negatives.parquet"
    if not path.is_file():
        raise ValueError(
            "prompts.summary_negatives is true, but the world has no negatives.parquet: it was gathered before there "
            "were negatives; gather it again, or set prompts.summary_negatives=false"
        )
    negatives = tables.scan(tables.NEGATIVES, path)
    check_items(negatives.select("domain", "item_id").unique().collect(engine="streaming"), known, path.name)
    return negatives.filter(pl.col("domain").is_in(domains(config))).select("user_id", "item_id", "domain", "time")


def of_users(feedback: pl.LazyFrame, targets: pl.DataFrame) -> pl.LazyFrame:
    """The feedback of the targets' users, and of those between them, in the time from the first window to the last."""
    users, since, until = targets["user_id"], targets["since"].min(), targets["time"].max()
    between = pl.col("user_id").is_between(pl.lit(users.min()), pl.lit(users.max()))
    return feedback.filter(between, pl.col("time") >= since, pl.col("time") < until)


def check_items(feedback: pl.DataFrame, known: pl.DataFrame, file: str = "behaviors.parquet") -> None:
    """Refuse behaviors with items that are in no table."""
    unknown = feedback.join(known, on=["domain", "item_id"], how="anti")
    if unknown.height:
        raise ValueError(
            f"{file} names {unknown['item_id'].n_unique()} items, such as {unknown['item_id'].min()!r}, that "
            "ads.parquet and contents.parquet do not: add them, or leave their behaviors out"
        )


def domains(config: PromptsConfig) -> list[str]:
    """The domains that prompts tell of."""
    wanted = {"ad": config.ad_behaviors, "content": config.content_behaviors}
    return [domain for domain in wanted if wanted[domain]]


def most_shown(config: PromptsConfig) -> dict[str, int]:
    """How many behaviors of each domain are shown at most.

    No more than tokens fit in any case: so one very busy user does not fill the memory.
    """
    most = {"ad": config.max_ad_behaviors, "content": config.max_content_behaviors}
    return {domain: min(most[domain] or config.max_tokens, config.max_tokens) for domain in domains(config)}


def windows(targets: pl.DataFrame, config: PromptsConfig) -> pl.DataFrame:
    """Add ``since``, the start of each target's window, and ``shown_since``, the start of the history that it shows.

    They are the same, but where ``times`` is ``since_last``. Our choice: time is cut into blocks of half a window,
    counted from the epoch, and all targets in a block show the history since a window before the block's end. So every
    behavior shown lies in each one's window, and a user's histories in a block begin alike, whatever other targets
    there are; in return a target sees between half a window and a whole one. The summary counts the whole.

    Args:
        targets: Column ``time``, UTC seconds.
        config: ``window_days`` and ``times``.
    """
    window = config.window_days * DAY
    targets = targets.with_columns(since=pl.col("time") - window)
    if config.times == "ago":
        return targets.with_columns(shown_since="since")
    block = window // 2
    return targets.with_columns(shown_since=(pl.col("time") // block + 1) * block - window)


def history_of(targets: pl.DataFrame, known: Known, config: PromptsConfig) -> pl.DataFrame:
    """The history that each target shows, as `leadre.prompts.components` describes it.

    Our choice: days are whole days that have passed, so a behavior of the last 24 hours is 0 days ago.

    Args:
        targets: Columns ``target``, ``user_id``, ``time`` and ``shown_since``.
        known: What prompts are made of.
        config: Which domains are shown, and how much of them.
    """
    asked = targets.select("target", "user_id", "time", since="shown_since")
    return (
        newest(known.behaviors, asked, most=most_shown(config))
        .join(asked.select("target", asked="time"), on="target", how="left", maintain_order="left")
        .join(known.items, on=["domain", "item_id"], how="left", maintain_order="left")
        .with_columns(days=(pl.col("asked") - pl.col("time")) // DAY)
    )


def described(targets: pl.DataFrame, known: Known, wording: Wording, config: PromptsConfig) -> pl.DataFrame:
    """Add ``profile`` and ``summary`` to targets: segments, or null where nothing is known.

    Our choice: the summary counts the domains that are shown, and the whole window, also what is too old to be shown.

    Args:
        targets: Columns ``target``, ``user_id``, ``time`` and ``since``.
        known: What prompts are made of.
        wording: The fixed texts.
        config: What the summary counts.
    """
    frame = targets.join(known.profiles, on="user_id", how="left", maintain_order="left")
    nothing = column([])
    parts = _summaries(targets, known, wording, config) if config.summary else []
    for number, part in enumerate(parts):
        part = part.rename({"summary": f"summary{number}"})
        frame = frame.join(part, on="target", how="left", maintain_order="left")
    told = [pl.col(f"summary{number}").fill_null(nothing) for number in range(len(parts))]
    summary = pl.concat_list(told) if told else nothing
    return frame.select(*targets.columns, "profile", summary.alias("summary"))


def _summaries(targets: pl.DataFrame, known: Known, wording: Wording, config: PromptsConfig) -> list[pl.DataFrame]:
    """One list a kind: positive before negative feedback, each by what ``summary_by`` names."""
    shown = known.behaviors.filter(pl.col("domain").is_in(domains(config)))
    kinds = [(shown, {"category": wording.summary, "spu": wording.summary_spu})]
    if known.negatives is not None:
        openings = {"category": wording.summary_negative, "spu": wording.summary_negative_spu}
        kinds.append((known.negatives, openings))
    told = []
    for feedback, openings in kinds:
        named = feedback.join(known.items, on=["domain", "item_id"], how="left")
        for by in config.summary_by:
            names = named.select("user_id", "time", name=by)
            if config.summary_control is not None:
                names = names_of_another(names, known.items[by], seed=config.summary_control)
            counts = frequent(names, targets, most=config.summary_categories)
            told.append(components.interest_summary(counts, openings[by], wording))
    return told

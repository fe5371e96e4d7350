"""The rules that a world must keep, whatever source it came from; rows that break one go to quarantine."""

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.data import quarantine
from leadre.data.ad_text import cleaned
from leadre.data.quarantine import FILE, LINE

ADS = tables.Table("ads", {name: column for name, column in tables.ADS.columns.items() if name != "description"})
"""The ADS table as sources give it: without the description, which is made of the features."""

IDS = frozenset({"ad_id", "user_id", "item_id"})
_NAMED = ("name", "product_type", "first_category", "second_category")


class Found(NamedTuple):
    """What an importer found: the tables with columns ``file`` and ``line`` that tell each row's origin.

    Attributes:
        refused: The quarantine table of rows that never became one of a table.
        totals: File -> its number of rows, good and bad.
        latest: UTC seconds; a later behavior is refused. None: no such rule.
        oracle: LISTS by the true probability of being the next ad clicked; simulated worlds alone have one.
    """

    ads: pl.DataFrame
    users: pl.DataFrame
    contents: pl.DataFrame
    behaviors: pl.DataFrame
    impressions: pl.DataFrame
    refused: pl.DataFrame
    totals: Mapping[str, int]
    latest: int | None = None
    oracle: pl.DataFrame | None = None


class Checked(NamedTuple):
    """Tables as declared (ads without description), and all refused rows."""

    ads: pl.DataFrame
    users: pl.DataFrame
    contents: pl.DataFrame
    behaviors: pl.DataFrame
    impressions: pl.DataFrame
    refused: pl.DataFrame


def with_origin(frame: pl.DataFrame, file: str) -> pl.DataFrame:
    """Rows that no file holds line by line, numbered from 1."""
    return frame.select(pl.lit(file).alias(FILE), pl.int_range(1, pl.len() + 1).alias(LINE), pl.all())


def empty(table: tables.Table) -> pl.DataFrame:
    """A table without rows, with columns ``file`` and ``line``."""
    return pl.DataFrame(schema={FILE: pl.String(), LINE: pl.Int64(), **table.schema})


def check(found: Found, *, distinct: bool) -> Checked:
    """Clean all text, sift every table by its rules, and give each user of a behavior a row of `users`.

    Args:
        found: What an importer found.
        distinct: Whether a behavior or impression that equals an earlier one is a fault; a source in which two
            events may look alike says no.
    """
    ads, bad_ads = _sifted(found.ads, ADS, _ad_rules())
    users, bad_users = _sifted(found.users, tables.USERS, _key_rules("user_id"))
    contents, bad_contents = _sifted(found.contents, tables.CONTENTS, _key_rules("item_id"))
    behaviors, bad_behaviors = _sifted(
        found.behaviors,
        tables.BEHAVIORS,
        {**_behavior_rules(ads, contents), **_time_rules(found.latest), **_twin_rules(tables.BEHAVIORS, distinct)},
    )
    users = _with_all_users(users, behaviors)
    impressions, bad_impressions = _sifted(
        found.impressions,
        tables.IMPRESSIONS,
        {**_impression_rules(ads, users), **_time_rules(found.latest), **_twin_rules(tables.IMPRESSIONS, distinct)},
    )
    refused = pl.concat([found.refused, bad_ads, bad_users, bad_contents, bad_behaviors, bad_impressions])
    return Checked(ads, users, contents, behaviors.sort("user_id", "time", maintain_order=True), impressions, refused)


def _sifted(
    frame: pl.DataFrame, table: tables.Table, rules: Mapping[str, pl.Expr]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    good, refused = quarantine.sift(frame.with_columns(_cleaned_columns(table)), rules)
    return good.select(list(table.columns)), refused


def _cleaned_columns(table: tables.Table) -> list[pl.Expr]:
    """Features in clean text, null where nothing is left; ids stay as they are, since a changed id is another one."""
    columns = []
    for name, column in table.columns.items():
        if name in IDS:
            continue
        if column.dtype == pl.String():
            text = cleaned(pl.col(name))
            columns.append(pl.when(text != "").then(text).alias(name))
        elif column.dtype == pl.List(pl.String()):
            kept = pl.col(name).list.eval(cleaned(pl.element())).list.eval(pl.element().filter(pl.element() != ""))
            columns.append(kept)
    return columns


def _id_rules(*names: str) -> dict[str, pl.Expr]:
    rules = {f"no {name}": pl.col(name).is_null() | (pl.col(name) == "") for name in names}
    unclean = {
        f"{name} has hidden characters, outer spaces, no normal form C, or is too long": pl.col(name)
        != cleaned(pl.col(name))
        for name in names
    }
    return rules | unclean


def _key_rules(name: str) -> dict[str, pl.Expr]:
    return {**_id_rules(name), f"{name} seen before": ~pl.col(name).is_first_distinct()}


def _ad_rules() -> dict[str, pl.Expr]:
    unnamed = pl.all_horizontal(pl.col(name).is_null() for name in _NAMED) & (pl.col("attributes").list.len() == 0)
    return {
        **_key_rules("ad_id"),
        "no feature to describe the ad by": unnamed,
        "negative time": pl.min_horizontal("start_time", "end_time") < 0,
        "life span ends before it starts": pl.col("end_time") < pl.col("start_time"),
    }


def _behavior_rules(ads: pl.DataFrame, contents: pl.DataFrame) -> dict[str, pl.Expr]:
    is_ad, is_content = pl.col("domain") == "ad", pl.col("domain") == "content"
    return {
        **_id_rules("user_id", "item_id"),
        "domain is neither ad nor content": ~(is_ad | is_content).fill_null(value=False),
        "no action": pl.col("action").is_null(),
        "unknown ad": is_ad & ~pl.col("item_id").is_in(ads["ad_id"].implode()),
        "unknown content": is_content & ~pl.col("item_id").is_in(contents["item_id"].implode()),
    }


def _impression_rules(ads: pl.DataFrame, users: pl.DataFrame) -> dict[str, pl.Expr]:
    ecpm, pctr = pl.col("ecpm"), pl.col("pctr")
    return {
        **_id_rules("user_id", "ad_id"),
        "unknown ad": ~pl.col("ad_id").is_in(ads["ad_id"].implode()),
        "unknown user": ~pl.col("user_id").is_in(users["user_id"].implode()),
        "ecpm is missing, negative or not finite": ecpm.is_null() | ~ecpm.is_finite() | (ecpm < 0),
        "pctr is no probability": ~pctr.is_between(0, 1) | pctr.is_nan(),
    }


def _time_rules(latest: int | None) -> dict[str, pl.Expr]:
    time = pl.col("time")
    rules = {"no time": time.is_null(), "negative time": time < 0}
    return rules if latest is None else {**rules, "future time": time > latest}


def _twin_rules(table: tables.Table, distinct: bool) -> dict[str, pl.Expr]:
    return {"exact duplicate": ~pl.struct(list(table.columns)).is_first_distinct()} if distinct else {}


def _with_all_users(users: pl.DataFrame, behaviors: pl.DataFrame) -> pl.DataFrame:
    """A user without a profile is a user all the same."""
    unknown = behaviors.select("user_id").unique().join(users, on="user_id", how="anti").sort("user_id")
    return pl.concat([users, unknown], how="diagonal").select(list(tables.USERS.columns))

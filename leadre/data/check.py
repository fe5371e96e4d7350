"""The rules that a world must keep, whatever source it came from; rows that break one go to quarantine."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.data import quarantine
from leadre.data.ad_text import cleaned, num_cut
from leadre.data.quarantine import FILE, LINE

ADS = tables.Table("ads", {name: column for name, column in tables.ADS.columns.items() if name != "description"})
"""The ADS table as sources give it: without the description, which is made of the features."""

IDS = frozenset({"ad_id", "user_id", "item_id"})
NOT_CLICKED = "no_click"
"""The action of an impression that was not clicked, as negative feedback."""
_NAMED = ("name", "product_type", "first_category", "second_category")


class Found(NamedTuple):
    """What an importer found: the tables with columns ``file`` and ``line`` that tell each row's origin.

    Attributes:
        refused: The quarantine table of rows that never became one of a table.
        totals: File -> its number of rows, good and bad.
        negatives: Negative feedback that the source names; `check` adds what impressions tell. None: it names none.
        latest: UTC seconds; a later behavior is refused. None: no such rule.
        oracle: LISTS by the true probability of being the next ad clicked; simulated worlds alone have one.
        hidden: The state behind a simulated world, by name.
    """

    ads: pl.DataFrame
    users: pl.DataFrame
    contents: pl.DataFrame
    behaviors: pl.DataFrame
    impressions: pl.DataFrame
    refused: pl.DataFrame
    totals: Mapping[str, int]
    negatives: pl.DataFrame | None = None
    latest: int | None = None
    oracle: pl.DataFrame | None = None
    hidden: Mapping[str, NDArray[Any]] | None = None


class Checked(NamedTuple):
    """Tables as declared (ads without description), all refused rows, and the number of texts cut, by table.column."""

    ads: pl.DataFrame
    users: pl.DataFrame
    contents: pl.DataFrame
    behaviors: pl.DataFrame
    negatives: pl.DataFrame
    impressions: pl.DataFrame
    refused: pl.DataFrame
    cut: Mapping[str, int]


def with_origin(frame: pl.DataFrame, file: str) -> pl.DataFrame:
    """Rows that no file holds line by line, numbered from 1."""
    return frame.select(pl.lit(file).alias(FILE), pl.int_range(1, pl.len() + 1).alias(LINE), pl.all())


def empty(table: tables.Table) -> pl.DataFrame:
    """A table without rows, with columns ``file`` and ``line``."""
    return pl.DataFrame(schema={FILE: pl.String(), LINE: pl.Int64(), **table.schema})


def check(found: Found, *, distinct: bool) -> Checked:
    """Clean all text, sift every table by its rules, and give each user who did anything a row of `users`.

    Args:
        found: What an importer found.
        distinct: Whether a behavior, negative or impression that equals an earlier one is a fault; a source in which
            two events may look alike says no.
    """
    given = {
        "ads": found.ads,
        "users": found.users,
        "contents": found.contents,
        "behaviors": found.behaviors,
        "negatives": empty(tables.NEGATIVES) if found.negatives is None else found.negatives,
        "impressions": found.impressions,
    }
    ads, bad_ads = _sifted(given["ads"], ADS, _ad_rules())
    users, bad_users = _sifted(given["users"], tables.USERS, _key_rules("user_id"))
    contents, bad_contents = _sifted(given["contents"], tables.CONTENTS, _key_rules("item_id"))
    of_behaviors = _behavior_rules(ads, contents) | _time_rules(found.latest) | _twin_rules(tables.BEHAVIORS, distinct)
    behaviors, bad_behaviors = _sifted(given["behaviors"], tables.BEHAVIORS, of_behaviors)
    named, bad_negatives = _sifted(given["negatives"], tables.NEGATIVES, of_behaviors)
    users = _with_all_users(users, pl.concat([behaviors, named]))
    of_impressions = (
        _impression_rules(ads, users) | _time_rules(found.latest) | _twin_rules(tables.IMPRESSIONS, distinct)
    )
    impressions, bad_impressions = _sifted(given["impressions"], tables.IMPRESSIONS, of_impressions)
    return Checked(
        ads,
        users,
        contents,
        behaviors=behaviors.sort("user_id", "time", maintain_order=True),
        negatives=_all_negatives(named, impressions).sort("user_id", "time", maintain_order=True),
        impressions=impressions,
        refused=pl.concat(
            [found.refused, bad_ads, bad_users, bad_contents, bad_behaviors, bad_negatives, bad_impressions]
        ),
        cut={name: number for table, frame in given.items() for name, number in _cut(table, frame) if number},
    )


def _sifted(
    frame: pl.DataFrame, table: tables.Table, rules: Mapping[str, pl.Expr]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    good, refused = quarantine.sift(frame.with_columns(_cleaned_columns(frame)), rules)
    return good.select(list(table.columns)), refused


def _cleaned_columns(frame: pl.DataFrame) -> list[pl.Expr]:
    """Features in clean text, null where nothing is left; ids stay as they are, since a changed id is another one."""
    columns = []
    for name in _texts(frame):
        if frame.schema[name] == pl.String():
            text = cleaned(pl.col(name))
            columns.append(pl.when(text != "").then(text).alias(name))
        else:
            kept = pl.col(name).list.eval(cleaned(pl.element())).list.eval(pl.element().filter(pl.element() != ""))
            columns.append(kept)
    return columns


def _cut(table: str, frame: pl.DataFrame) -> Iterator[tuple[str, int]]:
    """The number of texts that cleaning cuts in each column of a table."""
    for name in _texts(frame):
        texts = frame[name] if frame.schema[name] == pl.String() else frame[name].explode()
        yield f"{table}.{name}", texts.to_frame().select(num_cut(pl.col(name))).item()


def _texts(frame: pl.DataFrame) -> list[str]:
    """The columns of text and of lists of text, ids left out."""
    return [
        name
        for name, dtype in frame.schema.items()
        if dtype in (pl.String(), pl.List(pl.String())) and name not in IDS | {FILE, LINE}
    ]


def _all_negatives(named: pl.DataFrame, impressions: pl.DataFrame) -> pl.DataFrame:
    """Negative feedback that the source names, and every impression that was not clicked, unless it is named too."""
    shown = impressions.filter(~pl.col("clicked")).select(
        "user_id",
        pl.col("ad_id").alias("item_id"),
        pl.lit("ad").alias("domain"),
        pl.lit(NOT_CLICKED).alias("action"),
        "time",
    )
    return pl.concat([named, shown.join(named, on=named.columns, how="anti", maintain_order="left")])


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

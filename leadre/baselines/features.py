"""Sparse features of a target: the profile, and what the user did before it, the recent counting more."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.data.split import histories

DAY = 86_400


class Tables(NamedTuple):
    """What features are made of; the columns are declared in `leadre.tables`."""

    ads: pl.DataFrame
    users: pl.DataFrame
    contents: pl.DataFrame
    behaviors: pl.DataFrame


class Bags(NamedTuple):
    """T sparse rows: row t holds the features ``feature[offsets[t]:offsets[t + 1]]`` with the weights beside them."""

    feature: NDArray[np.int64]
    weight: NDArray[np.float32]
    offsets: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.offsets) - 1

    def part(self, start: int, stop: int) -> "Bags":
        """The rows ``start`` to ``stop - 1``."""
        first, last = self.offsets[start], self.offsets[stop]
        return Bags(self.feature[first:last], self.weight[first:last], self.offsets[start : stop + 1] - first)


def describe_targets(
    world: Tables,
    targets: pl.DataFrame,
    *,
    window_days: int,
    half_lives_days: Sequence[float],
    content_behaviors: bool,
) -> pl.DataFrame:
    """The named features of each target.

    A profile field weighs 1. For each facet of the user's past items (ad, categories, SPU and attributes of an ad;
    category and SPU of content) and each half-life h, the weight is ``log(1 + sum over behaviors of 2^(-age / h))``.
    Only behaviors strictly before the target count.

    Returns:
        Columns ``target`` (row of ``targets``), ``feature``, ``weight``; sorted by target and feature.
    """
    past = histories(world.behaviors, targets, window_days)
    if not content_behaviors:
        past = past.filter(pl.col("domain") == "ad")
    now = targets.select("time").with_row_index("target").select(pl.col("target").cast(pl.Int64), now="time")
    aged = past.join(now, on="target", how="left", maintain_order="left").with_columns(
        age=(pl.col("now") - pl.col("time")) / DAY
    )
    told = aged.join(facets(world), on=["domain", "item_id"], how="inner", maintain_order="left")
    decayed = [
        told.group_by("target", "facet", maintain_order=True)
        .agg(weight=(2.0 ** (-pl.col("age") / half_life)).sum().log1p())
        .select("target", feature=pl.lit(f"{half_life:g} days ") + pl.col("facet"), weight="weight")
        for half_life in half_lives_days
    ]
    return pl.concat([profiles(world.users, targets), *decayed]).sort("target", "feature")


def vocabulary(described: pl.DataFrame, *, min_count: int) -> pl.Series:
    """The features of at least ``min_count`` targets, sorted; made from train targets alone."""
    counted = described.group_by("feature").len().filter(pl.col("len") >= min_count)
    return counted["feature"].sort()


def to_bags(described: pl.DataFrame, names: pl.Series, *, num_targets: int) -> Bags:
    """Number the features by their place in ``names``; others are dropped, a target without any has an empty row."""
    numbers = pl.DataFrame({"feature": names}).with_row_index("index")
    kept = described.join(numbers, on="feature", how="inner").sort("target", "index")
    counts = np.bincount(kept["target"].to_numpy(), minlength=num_targets)
    return Bags(
        feature=kept["index"].cast(pl.Int64).to_numpy(),
        weight=kept["weight"].cast(pl.Float32).to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
    )


def profiles(users: pl.DataFrame, targets: pl.DataFrame) -> pl.DataFrame:
    """Columns ``target``, ``feature`` and ``weight`` (1): what is known of each target's user, fields by name."""
    rows = targets.select("user_id").with_row_index("target").join(users, on="user_id", how="left")
    long = rows.drop("user_id").unpivot(index="target", variable_name="field").drop_nulls("value")
    name = pl.lit("profile ") + pl.col("field") + " " + pl.col("value")
    return long.select(pl.col("target").cast(pl.Int64), feature=name, weight=pl.lit(1.0))


def facets(world: Tables) -> pl.DataFrame:
    """Columns ``domain``, ``item_id``, ``facet``: what is known of each ad and content; of content not its id."""
    ads = world.ads.rename({"ad_id": "item_id"})
    parts = [_named(ads.with_columns(ad="item_id"), name, "ad") for name in ("ad", *AD_FIELDS)]
    attributes = ads.select("item_id", "attributes").explode("attributes").rename({"attributes": "attribute"})
    parts.append(_named(attributes, "attribute", "ad"))
    parts += [_named(world.contents, name, "content") for name in ("category", "spu")]
    return pl.concat(parts)


AD_FIELDS = ("first_category", "second_category", "spu")


def _named(items: pl.DataFrame, column: str, domain: str) -> pl.DataFrame:
    told = items.drop_nulls(column)
    facet = pl.lit(f"{domain} {column} ") + pl.col(column)
    return told.select(pl.lit(domain).alias("domain"), "item_id", facet.alias("facet"))

"""What ads, contents and users are called, by numbers: ids, categories, SPUs, attributes and profile fields."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from leadre.baselines.features import Tables, facets, profiles
from leadre.baselines.past import Ints, Ragged

NO_NAME = 0
"""The number that fills up where an item has fewer names than another."""


class Names(NamedTuple):
    """The names of everything that a user tower and an ad tower read.

    Attributes:
        ads: ``(N, F)`` of each ad of the catalog, `NO_NAME` behind the last.
        contents: ``(C, G)`` of each content of the world.
        users: ``(U + 1, H)`` of each user's profile, and none, for a user that the world does not have.
        total: How many numbers there are, `NO_NAME` included.
    """

    ads: Ints
    contents: Ints
    users: Ints
    total: int


def name_all(world: Tables, ads: Sequence[str]) -> Names:
    """Number all names from 1 on, in their alphabetical order; two items of one category share its number."""
    contents = world.contents.select(domain=pl.lit("content"), item_id="item_id", facet="content " + pl.col("item_id"))
    items = pl.concat([facets(world), contents])
    told = [
        _of(items.filter(pl.col("domain") == "ad"), pl.Series(ads, dtype=pl.String())),
        _of(items.filter(pl.col("domain") == "content"), world.contents["item_id"]),
        profiles(world.users, world.users).select(row="target", name="feature"),
    ]
    names = pl.concat([part["name"] for part in told]).unique().sort()
    sizes = (len(ads), world.contents.height, world.users.height + 1)
    of_ads, of_contents, of_users = (_padded(part, names, size) for part, size in zip(told, sizes, strict=True))
    return Names(of_ads, of_contents, of_users, total=len(names) + 1)


def places(ids: pl.Series, among: pl.Series) -> Ints:
    """The place of each id ``among`` others; their number where it is none of them."""
    known = pl.DataFrame({"id": among}).with_row_index("place")
    found = pl.DataFrame({"id": ids}).join(known, on="id", how="left", maintain_order="left")["place"]
    return found.cast(pl.Int64).fill_null(len(among)).to_numpy(writable=True)


def _of(items: pl.DataFrame, among: pl.Series) -> pl.DataFrame:
    """Columns ``row`` and ``name`` of the items that are ``among`` those asked for."""
    rows = items.select(row=pl.Series(places(items["item_id"], among)), name="facet")
    return rows.filter(pl.col("row") < len(among))


def _padded(told: pl.DataFrame, names: pl.Series, size: int) -> Ints:
    """``(size, W)`` numbers of the names of each row, by their order, `NO_NAME` behind the last."""
    numbered = told.select("row", number=pl.Series(places(told["name"], names) + 1)).unique().sort("row", "number")
    counts = np.bincount(numbered["row"].to_numpy(), minlength=size)
    ragged = Ragged(numbered["number"].to_numpy(), np.concatenate([[0], np.cumsum(counts)]))
    return np.maximum(ragged.latest(np.arange(size), most=int(counts.max(initial=0))), NO_NAME)

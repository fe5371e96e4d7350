"""What each user may be shown, from tables on disk: ads that run, ads seen, and the allowed sets of requests."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre import tables
from leadre.catalog.trie import Trie
from leadre.decoding import filters
from leadre.decoding.filters import Filter

FILES = {table.name: table for table in (tables.TAKEN_DOWN, tables.SEEN, tables.AD_SETS, tables.USER_SETS)}
"""The tables that a folder of filters may hold, each as ``<name>.parquet``."""

log = logging.getLogger(__name__)


class Rules(NamedTuple):
    """What may be shown of the whole catalog.

    Attributes:
        folder: The folder of filters, whose rows of users are read a shard at a time; None without filters.
        ads: ``ad_id`` and ``row`` of each ad of the catalog.
        sets: ``ad_set`` and ``group``, 1 and up, of each set that a user has; group 0 is every ad that runs.
        counts: As `leadre.decoding.filters.counts` gives them, a row a group, on the device.
    """

    folder: Path | None
    ads: pl.DataFrame
    sets: pl.DataFrame
    counts: tuple[Tensor, ...]


class Requests(NamedTuple):
    """What R users may be shown.

    Attributes:
        groups: ``(R,)`` the allowed set of each.
        seen: ``(E,)`` catalog rows that they have seen, user after user.
        offsets: ``(R + 1,)`` user ``r`` has seen ``seen[offsets[r] : offsets[r + 1]]``.
        counts: How many of them have a row in each table of users that is there.
    """

    groups: NDArray[np.int64]
    seen: NDArray[np.int64]
    offsets: NDArray[np.int64]
    counts: dict[str, int]


def fingerprint(folder: Path) -> str:
    """What tells the tables of a folder of filters from others; nothing else in the folder counts.

    Raises:
        ValueError: If the folder is none of filters, as `read_rules` tells.
    """
    _check_folder(folder)
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if name.parts[0].removesuffix(".parquet") in FILES:
            with path.open("rb") as file:
                hashes[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def not_running(ads: pl.Series, world: Path, as_of: int) -> pl.Series:
    """The ads of the catalog that do not run at a time: the platform has them no more, or not at that time.

    Args:
        ads: The ids of the catalog's ads.
        world: The folder of today's ``ads.parquet``.
        as_of: UTC seconds; an ad runs in ``[start_time, end_time)``, where null is unbounded.

    Raises:
        ValueError: If none of them runs.
    """
    start, end = pl.col("start_time").fill_null(as_of), pl.col("end_time").fill_null(as_of + 1)
    running = tables.read(tables.ADS, world / "ads.parquet").filter(start <= as_of, end > as_of)["ad_id"]
    closed = ads.filter(~ads.is_in(running.implode()))
    if len(closed) == len(ads):
        raise ValueError(
            f"none of the catalog's {len(ads)} ads runs at as_of {as_of}: give the tables of the platform that the "
            "model was trained for, or train anew"
        )
    if len(closed):
        log.info(
            "filters: %s of %s ads of the catalog do not run at %s: nobody is shown them", len(closed), len(ads), as_of
        )
    return closed


def read_rules(folder: Path | None, ads: pl.Series, trie: Trie, closed: pl.Series) -> Rules:
    """Read what a folder of filters says of the catalog; ads that the catalog does not hold are counted in the log.

    Args:
        folder: None, or any of ``taken_down``, ``seen``, ``ad_sets`` and ``user_sets`` ``.parquet``.
        ads: The ids of the catalog's ads, by row.
        trie: The catalog's trie, on the device.
        closed: Ids of ads that nobody is shown, whatever the folder says.

    Raises:
        ValueError: If the folder does not exist, holds no such table or something else, takes down all that
            runs, or names a set without an ad of the catalog or without any ad at all.
        TableError: If a table is not as declared.
    """
    if folder is not None:
        _check_folder(folder)
        _check_nulls(folder)
    rows = pl.DataFrame({"ad_id": ads, "row": np.arange(len(ads), dtype=np.int64)})
    down = _known(_table(tables.TAKEN_DOWN, folder), rows, "taken_down")["row"].to_numpy()
    sets, members = _ad_sets(folder, rows)
    allowed = np.zeros((1 + sets.height, len(ads)), dtype=np.bool_)
    allowed[0] = True
    allowed[members["group"].to_numpy(), members["row"].to_numpy()] = True
    allowed[:, down] = False
    allowed[:, ads.is_in(closed.implode()).to_numpy()] = False
    if not allowed[0].any():
        raise ValueError(
            f"{folder}/taken_down.parquet takes down all {len(ads) - len(closed)} ads that run: nothing is left to show"
        )
    for name in sets["ad_set"].to_numpy()[~allowed[1:].any(axis=1)]:
        log.warning("filters: every ad of the set %r is taken down or does not run: its users get no list", name)
    log.info("filters: %s of %s ads may be shown, %s allowed sets", allowed[0].sum(), len(ads), len(sets))
    return Rules(folder, rows, sets, filters.counts(trie, torch.from_numpy(allowed).to(trie.codes[0].device)))


def requests_of(rules: Rules, users: pl.Series) -> Requests:
    """What some users may be shown: one look at the tables of users, of which only their rows are kept.

    Args:
        rules: What `read_rules` gives.
        users: R user ids, each once.

    Raises:
        ValueError: If one of them has two allowed sets.
        TableError: If a table is not as declared.
    """
    wanted = pl.DataFrame({"user_id": users, "place": np.arange(len(users), dtype=np.int64)})
    groups = np.zeros(len(users), dtype=np.int64)
    own_sets = _rows_of(tables.USER_SETS, rules.folder, wanted).join(rules.sets, on="ad_set", how="left")
    _check_user_sets(own_sets, rules.folder)
    groups[own_sets["place"].to_numpy()] = own_sets["group"].to_numpy()
    seen = _rows_of(tables.SEEN, rules.folder, wanted)
    inside = seen.join(rules.ads, on="ad_id").unique(["place", "row"]).sort("place", "row")
    counts = np.bincount(inside["place"].to_numpy(), minlength=len(users))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    given = {
        f"users_with_{name}": found["place"].n_unique()
        for name, table, found in (("seen", tables.SEEN, seen), ("set", tables.USER_SETS, own_sets))
        if _path(table, rules.folder)
    }
    return Requests(groups, inside["row"].to_numpy(), offsets, given)


def filter_of(rules: Rules, requests: Requests, batch: Sequence[int] | NDArray[np.int64], trie: Trie) -> Filter:
    """The filter of some of the users, by their places in the requests."""
    places = np.asarray(batch, dtype=np.int64)
    starts, counts = requests.offsets[places][:, None], np.diff(requests.offsets)[places][:, None]
    column = np.arange(counts.max(initial=0))[None, :]
    inside = column < counts
    seen = np.full(inside.shape, -1, dtype=np.int64)
    seen[inside] = requests.seen[(starts + column)[inside]]
    device = trie.codes[0].device
    groups = torch.from_numpy(requests.groups[places]).to(device)
    return filters.make(trie, rules.counts, groups, torch.from_numpy(seen).to(device))


def _check_folder(folder: Path) -> None:
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [name for name in found if not name.startswith((".", "_"))]
    names = [f"{name}.parquet" for name in FILES]
    if not found:
        raise ValueError(
            f"decoding.filters is {folder}, which holds none of {', '.join(names)}: give a folder with one of them, "
            "or null to filter nothing"
        )
    if unknown := [name for name in found if name not in names]:
        stem = Path(unknown[0]).stem
        remedy = (
            f"filters are Parquet alone; write it as {stem}.parquet"
            if stem in FILES
            else f"a filter is one of {', '.join(names)}"
        )
        raise ValueError(f"decoding.filters is {folder}, which holds {unknown[0]}: {remedy}")
    if "user_sets.parquet" in found and "ad_sets.parquet" not in found:
        raise ValueError(f"{folder} has user_sets.parquet, but no ad_sets.parquet: it tells which ads a set has")


def _check_nulls(folder: Path) -> None:
    """One pass over the tables of users, of which each shard reads only its own rows."""
    for table in (tables.SEEN, tables.USER_SETS):
        if path := _path(table, folder):
            nulls = tables.scan(table, path).null_count().collect(engine="streaming").row(0, named=True)
            faults = [f"column {name!r} has {count} nulls, may have none" for name, count in nulls.items() if count]
            if faults:
                raise tables.TableError(f"{path} is no {table.name} table: " + "; ".join(faults))


def _path(table: tables.Table, folder: Path | None) -> Path | None:
    """Where a table lies, if it is there."""
    path = folder and folder / f"{table.name}.parquet"
    return path if path and path.exists() else None


def _table(table: tables.Table, folder: Path | None) -> pl.DataFrame:
    path = _path(table, folder)
    return tables.read(table, path) if path else pl.DataFrame(schema=table.schema)


def _known(found: pl.DataFrame, rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of ads that the catalog holds, with ``row``."""
    inside = found.join(rows, on="ad_id")
    if outside := found.height - inside.height:
        log.info("filters: %s of %s rows of %s name an ad that the catalog does not hold", outside, found.height, name)
    return inside


def _ad_sets(folder: Path | None, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Each set that a user has, and its group; and the ``group`` and ``row`` of each member."""
    members = _known(listed := _table(tables.AD_SETS, folder), rows, "ad_sets")
    if empty := listed.join(members, on="ad_set", how="anti")["ad_set"].unique().sort().to_list():
        raise ValueError(
            f"{folder}/ad_sets.parquet has the set {empty[0]!r} (one of {len(empty)}) without an ad of the "
            "catalog: its users could be shown nothing; leave the set out or add an ad that was indexed"
        )
    path = _path(tables.USER_SETS, folder)
    named = tables.scan(tables.USER_SETS, path) if path else pl.LazyFrame(schema=tables.USER_SETS.schema)
    used = named.select(pl.col("ad_set").unique()).collect(engine="streaming").sort("ad_set")
    if unknown := used.join(members, on="ad_set", how="anti")["ad_set"].sort().to_list():
        raise ValueError(
            f"{path} names the set {unknown[0]!r} (one of {len(unknown)}), which ad_sets.parquet does not have: add "
            "its ads there, or leave its users out to show them any ad"
        )
    sets = used.with_columns(group=pl.int_range(1, pl.len() + 1, dtype=pl.Int64))
    return sets, members.join(sets, on="ad_set").select("group", "row")


def _rows_of(table: tables.Table, folder: Path | None, wanted: pl.DataFrame) -> pl.DataFrame:
    """The rows of the wanted users, with ``place``."""
    path = _path(table, folder)
    if path is None or wanted.is_empty():
        return pl.DataFrame(schema={**table.schema, "place": pl.Int64()})
    # In a table that is sorted by users, whole row groups are passed over by their statistics.
    near = pl.col("user_id").is_between(pl.lit(wanted["user_id"].min()), pl.lit(wanted["user_id"].max()))
    return tables.scan(table, path).filter(near).join(wanted.lazy(), on="user_id").collect(engine="streaming")


def _check_user_sets(own_sets: pl.DataFrame, folder: Path | None) -> None:
    if twice := own_sets.filter(pl.col("user_id").is_duplicated())["user_id"].sort().to_list():
        raise ValueError(
            f"{folder}/user_sets.parquet has the user {twice[0]!r} twice: a user has one allowed set; "
            "join the two into one"
        )

"""What a catalog is made from: today's ads, their codes, and yesterday's catalog; each read, and refused if wrong."""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.catalog.config import CatalogConfig

log = logging.getLogger(__name__)

FILES = ("sids.parquet", "retired.parquet", "tokens.json", "catalog.json")
"""The files that a catalog is carried on from."""


class Previous(NamedTuple):
    """The catalog of the day before.

    Attributes:
        given: ``ad_id``, ``sid`` and ``was_active`` of every ad that ever got an S-ID.
        num_extra_codes: How many extra codes it has; None where there was no catalog.
        version: How many catalogs there were.
    """

    given: pl.DataFrame
    num_extra_codes: int | None
    version: int


def read_previous(previous: Path | None, codebook_sizes: list[int]) -> Previous:
    """Read the catalog of the day before; without one, nothing is given yet.

    Raises:
        ValueError: If a file is missing, or the catalog is of codes with other codebook sizes.
    """
    if previous is None:
        schema = {"ad_id": pl.String(), "sid": pl.List(pl.Int32()), "was_active": pl.Boolean()}
        return Previous(pl.DataFrame(schema=schema), None, 0)
    missing = [file for file in FILES if not (previous / file).is_file()]
    if missing:
        raise ValueError(
            f"previous is {previous}, but it has no {', '.join(missing)}: name the folder of a catalog that was "
            "indexed with this version, or index without a previous catalog"
        )
    *sizes, num_extra_codes = json.loads((previous / "tokens.json").read_text(encoding="utf-8"))["levels"]
    if sizes != codebook_sizes:
        raise ValueError(
            f"previous has {sizes} codes a level, but the codes were made with {codebook_sizes}: quantize with the "
            "previous codes, or index without a previous catalog"
        )
    active, retired = (
        tables.read(tables.SIDS, previous / file).select("ad_id", "sid", pl.lit(was_active).alias("was_active"))
        for file, was_active in (("sids.parquet", True), ("retired.parquet", False))
    )
    version: int = json.loads((previous / "catalog.json").read_text(encoding="utf-8"))["version"]
    return Previous(pl.concat([active, retired]), num_extra_codes, version)


def read_ads(config: CatalogConfig, world: Path) -> pl.DataFrame:
    """Read the world's ads: ``ad_id``, and whether the ad is ``active``, that is, may be generated.

    Raises:
        ValueError: If there is no ad, none is active, or the time to judge life spans by is missing or no ISO time.
    """
    ads = pl.read_parquet(world / "ads.parquet", columns=["ad_id", "start_time", "end_time"])
    if ads.is_empty():
        raise ValueError("the world has no ads: a catalog needs at least one")
    if config.include == "all":
        return ads.select("ad_id", pl.lit(value=True).alias("active"))
    now = _now(config.as_of, world)
    begun = pl.col("start_time").is_null() | (pl.col("start_time") <= now)
    going = pl.col("end_time").is_null() | (pl.col("end_time") > now)
    judged = ads.select("ad_id", (begun & going).alias("active"))
    log.info("catalog: %s of %s ads are active at %s", judged["active"].sum(), judged.height, now)
    if not judged["active"].any():
        raise ValueError(
            f"include is 'active', but no ad's life span holds the time {now}: give catalog.as_of, or 'all'"
        )
    return judged


def read_codes(codes: Path) -> tuple[pl.DataFrame, list[int]]:
    """Read a CODES frame and the codebook sizes that its codes keep to.

    Raises:
        ValueError: If an ad stands twice, has another number of codes than there are levels, or a code outside.
    """
    sizes: list[int] = json.loads((codes / "quantizer.json").read_text(encoding="utf-8"))["codebook_sizes"]
    coded = tables.read(tables.CODES, codes / "codes.parquet")
    lengths = coded["codes"].list.len().unique().sort().to_list()
    if lengths not in ([], [len(sizes)]):
        raise ValueError(
            f"codes has ads with {lengths} codes, but quantizer.json tells of {len(sizes)} levels: every ad needs one "
            "code a level; quantize anew"
        )
    if coded["ad_id"].n_unique() != coded.height:
        twice = coded.filter(pl.col("ad_id").is_duplicated())["ad_id"][0]
        raise ValueError(f"codes has the ad {twice!r} more than once: an ad has one S-ID; quantize anew")
    inside = [
        pl.col("codes").list.get(level).is_between(0, size - 1).fill_null(value=False)
        for level, size in enumerate(sizes)
    ]
    wrong = coded.filter(~pl.all_horizontal(inside))
    if wrong.height:
        raise ValueError(
            f"codes has {wrong['codes'][0].to_list()} for the ad {wrong['ad_id'][0]!r}, but the codebook sizes are "
            f"{sizes} and codes count from 0: quantize anew"
        )
    return coded, sizes


def check_same_ads(ads: pl.DataFrame, coded: pl.DataFrame, *, may_hold_more: bool) -> None:
    """Refuse ads without codes; and codes of no ad, unless they may be left from days before.

    Raises:
        ValueError: With the number of such ads, and one of them.
    """
    faults = {"ads without codes": ads.join(coded, on="ad_id", how="anti")}
    if not may_hold_more:
        faults["codes of no ad"] = coded.join(ads, on="ad_id", how="anti")
    for what, frame in faults.items():
        if frame.height:
            raise ValueError(
                f"codes has {frame.height} {what} (one is {frame['ad_id'][0]!r}): "
                "quantize the embeddings of this same world"
            )


def _now(as_of: str | None, world: Path) -> int:
    if as_of is None:
        last: int | None = pl.scan_parquet(world / "behaviors.parquet").select(pl.col("time").max()).collect().item()
        if last is None:
            raise ValueError(
                "include is 'active', but the world has no behaviors to tell the time by: give catalog.as_of, an ISO "
                "time such as 2024-11-20"
            )
        return last
    try:
        moment = datetime.fromisoformat(as_of)
    except ValueError as error:
        raise ValueError(
            f"catalog.as_of is {as_of!r}, but must be an ISO time such as 2024-11-20 or 2024-11-20T12:00:00+08:00"
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())

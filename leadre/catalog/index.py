"""The verb ``index``: from the codes of ads to the catalog that may be generated."""

import json
import logging
from pathlib import Path

import polars as pl
import torch

from leadre import tables
from leadre.catalog import sids, trie
from leadre.catalog.config import CatalogConfig

log = logging.getLogger(__name__)

VERSION = 1


def index(config: CatalogConfig, world: Path, codes: Path, *, out: Path) -> None:
    """Give every ad its S-ID and build the trie of all S-IDs (LEADRE 3.3, A.2).

    Reads ``ads``, ``split`` and, for active ads, ``behaviors`` of the world, and ``codes.parquet``. Writes
    ``sids.parquet`` (row = leaf of the trie), ``trie.safetensors`` and ``tokens.json``.

    Our choice: S-IDs, and the number of codes of a level (its largest code plus one), are those of all ads, so
    that neither an S-ID nor the vocabulary depends on which of them are included.

    Raises:
        ValueError: If an ad has no codes or codes are of no ad; and as for `leadre.catalog.sids.extend`.
    """
    ads = tables.read(tables.ADS, world / "ads.parquet")
    coded = tables.read(tables.CODES, codes / "codes.parquet")
    _check_same_ads(ads, coded)
    everything = sids.extend(coded, max_extra_codes=config.max_extra_codes)
    listed = everything.join(_included(config, ads, coded, world), on="ad_id", how="semi", maintain_order="left")
    _count_lost_targets(listed, world)

    leaves = torch.tensor(listed["sid"].to_list(), dtype=torch.int32)
    names = pl.Series("name", [sids.name(sid) for sid in leaves.tolist()], dtype=pl.String)
    tables.write(tables.SIDS, listed.with_columns(names), out / "sids.parquet")
    trie.save(trie.build(leaves), out / "trie.safetensors")
    levels = _num_codes(everything["sid"])
    tokens = {"levels": levels, "tokens": sids.token_names(levels)}
    (out / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n", encoding="utf-8")
    log.info("catalog: %s ads, codes a level %s (the last is the extra code)", listed.height, levels)


def _check_same_ads(ads: pl.DataFrame, coded: pl.DataFrame) -> None:
    for what, frame in (
        ("ads without codes", ads.join(coded, on="ad_id", how="anti")),
        ("codes of no ad", coded.join(ads, on="ad_id", how="anti")),
    ):
        if frame.height:
            raise ValueError(
                f"codes has {frame.height} {what} (one is {frame['ad_id'][0]!r}): "
                "quantize the embeddings of this same world"
            )


def _included(config: CatalogConfig, ads: pl.DataFrame, coded: pl.DataFrame, world: Path) -> pl.DataFrame:
    if config.include == "all":
        return coded
    now = pl.scan_parquet(world / "behaviors.parquet").select(pl.col("time").max()).collect().item()
    begun = pl.col("start_time").is_null() | (pl.col("start_time") <= now)
    going = pl.col("end_time").is_null() | (pl.col("end_time") > now)
    active = coded.join(ads.filter(begun & going), on="ad_id", how="semi", maintain_order="left")
    log.info("catalog: %s of %s ads are active at %s", active.height, coded.height, now)
    if active.is_empty():
        raise ValueError(f"include is 'active', but no ad's life span holds the last behavior's time {now}: use 'all'")
    return active


def _count_lost_targets(listed: pl.DataFrame, world: Path) -> None:
    split = tables.read(tables.SPLIT, world / "split.parquet")
    lost = split.join(listed, on="ad_id", how="anti").group_by("role").len().sort("role")
    for role, count in lost.iter_rows():
        log.warning("catalog: %s %s targets are ads outside of it and can never be generated", count, role)


def _num_codes(all_sids: pl.Series) -> list[int]:
    highest = all_sids.to_frame("sid").select(
        pl.col("sid").list.get(level).max().alias(str(level)) for level in range(int(all_sids.list.len()[0]))
    )
    return [code + 1 for code in highest.row(0)]

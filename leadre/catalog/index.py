"""The verb ``index``: from the codes of ads to the catalog that may be generated, day after day."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from leadre import tables
from leadre.catalog import trie
from leadre.catalog.config import CatalogConfig
from leadre.catalog.inputs import check_same_ads, read_ads, read_codes, read_previous
from leadre.catalog.sids import extra_codes, in_order, name, names, token_names
from leadre.catalog.spill import spill

log = logging.getLogger(__name__)

VERSION = 2


class _New(NamedTuple):
    """S-IDs ``(N, M + 1)`` for new ads, and what came of the extra codes."""

    sids: NDArray[np.int32]
    num_extra_codes: int
    largest_group: int
    spilled: int


def index(config: CatalogConfig, world: Path, codes: Path, previous: Path | None = None, *, out: Path) -> None:
    """Give every ad an S-ID that lasts, and build the trie of those that may be generated (LEADRE 3.3, A.2).

    An ad keeps its S-ID for ever, and an S-ID its ad: ads that no longer run, or are not included, are retired, and
    one that comes back gets its own S-ID again. The new ads of a group of equal codes get the extra codes after the
    last that was ever given there, in the order of their ad_id (our choice: the paper names no order; this one does
    not depend on that of rows).

    Our choice: there are as many extra codes as the largest group of the first day has ads, and some to spare. Later
    days keep to that number, since a model has tokens for what was there when it was tuned.

    Args:
        config: Who is included, how many extra codes there may be, and what becomes of ads beyond.
        world: Folder with ``ads``, ``behaviors`` and ``split``.
        codes: Folder with ``codes.parquet`` and ``quantizer.json``. With ``previous`` it may hold codes of ads that
            the world has no more.
        previous: Folder of the catalog of the day before.
        out: Gets ``sids.parquet`` (row = leaf of the trie), ``retired.parquet``, ``trie.safetensors``, ``tokens.json``,
            and ``catalog.json``: the number of this version and its counts. ``returned`` were retired the day before,
            ``spilled`` are new ads, ``largest_group`` is that of equal codes before spilling.

    Raises:
        ValueError: If no ad is left to be generated, an ad has no codes or codes are of no ad, the codes are not those
            that ``quantizer.json`` or the previous catalog tell of, or a group has more ads than extra codes.
    """
    coded, codebook_sizes = read_codes(codes)
    before = read_previous(previous, codebook_sizes)
    ads = read_ads(config, world)
    check_same_ads(ads, coded, may_hold_more=previous is not None)
    rows = ads.join(coded, on="ad_id").join(before.given, on="ad_id", how="full", coalesce=True)

    old, new = rows.filter(pl.col("sid").is_not_null()), rows.filter(pl.col("sid").is_null()).sort("ad_id")
    known = tables.matrix(old["sid"], len(codebook_sizes) + 1)
    _check_kept(old, known, before.num_extra_codes)
    made = _give(config, new, known, codebook_sizes, before.num_extra_codes)
    sids = np.concatenate([known, made.sids])
    order = in_order(sids)[0]
    rows, sids = pl.concat([old, new])[order], sids[order]
    active = rows["active"].fill_null(value=False)

    _count_lost_targets(rows.filter(active), world)
    _write(rows, sids, active.to_numpy(), [*codebook_sizes, made.num_extra_codes], out)
    told = {
        "version": before.version + 1,
        "active": int(active.sum()),
        "new": new.height,
        "returned": rows.filter(active & ~rows["was_active"]).height,
        "retired": int((~active).sum()),
        "spilled": made.spilled,
        "largest_group": made.largest_group,
        "extra_codes": made.num_extra_codes,
        "extra_codes_used": int(sids[:, -1].max()) + 1,
    }
    (out / "catalog.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    log.info("catalog: %s", ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in told.items()))


def _check_kept(old: pl.DataFrame, known: NDArray[np.int32], num_extra_codes: int | None) -> None:
    """The ads of the previous catalog have the codes that they had; one of a full group may be spilled from it."""
    here = old["codes"].is_not_null()
    codes, sids = tables.matrix(old["codes"].filter(here), known.shape[1] - 1), known[here.to_numpy()]
    other = codes != sids[:, :-1]
    wrong = other[:, :-1].any(axis=1)
    full = {tuple(sid[:-1]) for sid in known.tolist() if sid[-1] + 1 == num_extra_codes} if other.any() else set()
    for row in np.flatnonzero(other[:, -1] & ~wrong):
        wrong[row] = tuple(codes[row].tolist()) not in full
    changed = np.flatnonzero(wrong)
    if changed.size:
        first = int(changed[0])
        raise ValueError(
            f"{changed.size} ads have other codes than in the previous catalog (one is "
            f"{old['ad_id'].filter(here)[first]!r}: its codes are {name(codes[first].tolist())}, its S-ID is "
            f"{name(sids[first].tolist())}): quantize with the previous codes, or index without a previous catalog"
        )


def _give(
    config: CatalogConfig,
    new: pl.DataFrame,
    known: NDArray[np.int32],
    codebook_sizes: list[int],
    num_extra_codes: int | None,
) -> _New:
    """S-IDs for new ads beside the known ones; ``num_extra_codes`` are fixed, or else what is needed and to spare."""
    known = known[in_order(known)[0]]
    codes = tables.matrix(new["codes"], len(codebook_sizes))
    extra = extra_codes(np.concatenate([known[:, :-1], codes]))
    if (extra[: len(known)] != known[:, -1]).any():
        raise ValueError("previous has extra codes that are not 0, 1, 2, ... in a group: its files are not whole")
    largest = int(extra.max()) + 1
    limit = num_extra_codes or min(largest + config.spare_extra_codes, config.max_extra_codes)
    sids = np.column_stack([codes, extra[len(known) :]])
    spilled = int((sids[:, -1] >= limit).sum())
    if spilled:
        cure = f"raise catalog.max_extra_codes to {largest}"
        if num_extra_codes:
            cure = "index without a previous catalog and tune the model anew"
        if config.overflow == "error":
            worst = int(sids[:, -1].argmax())
            raise ValueError(
                f"there are {limit} extra codes, but {largest} ads share the codes {name(codes[worst].tolist())} "
                f"(one is {new['ad_id'][worst]!r}): {cure}, use catalog.overflow=spill, or quantize with more levels "
                "or codes"
            )
        sids = spill(sids, known, num_codes=[*codebook_sizes, limit], cure=cure)
        log.warning("catalog: %s ads found no extra code and are spilled to a sibling of their last code", spilled)
    return _New(sids, limit, largest, spilled)


def _count_lost_targets(listed: pl.DataFrame, world: Path) -> None:
    split = tables.read(tables.SPLIT, world / "split.parquet")
    lost = split.join(listed, on="ad_id", how="anti").group_by("role").len().sort("role")
    for role, count in lost.iter_rows():
        log.warning("catalog: %s %s targets are ads outside of it and can never be generated", count, role)


def _write(
    rows: pl.DataFrame, sids: NDArray[np.int32], active: NDArray[np.bool_], num_codes: list[int], out: Path
) -> None:
    listed = pl.Series("sid", sids, dtype=pl.Array(pl.Int32(), len(num_codes))).arr.to_list()
    frame = rows.select("ad_id").with_columns(listed, names(sids))
    tables.write(tables.SIDS, frame.filter(active), out / "sids.parquet")
    tables.write(tables.SIDS, frame.filter(~active), out / "retired.parquet")
    trie.save(trie.build(torch.from_numpy(sids[active])), out / "trie.safetensors")
    tokens = {"levels": num_codes, "tokens": token_names(num_codes)}
    (out / "tokens.json").write_text(json.dumps(tokens, indent=1) + "\n", encoding="utf-8")

"""The verb ``appraise``: what the ads of all lists truly earn, on a synthetic world."""

import logging
from pathlib import Path

import polars as pl
from safetensors.numpy import load_file

from leadre import tables
from leadre.adworld.worth import Hidden, unpack, worth

VERSION = 1
PAIRS_AT_ONCE = 1 << 20

log = logging.getLogger(__name__)


def appraise(world: Path, baselines: Path, generations: Path, *, out: Path) -> None:
    """Write ``values.parquet`` (VALUES): the true expected ECPM of each user and ad that stand in any list.

    The moment is that of the user's test target. Lists are LEADRE's, the baselines' and the oracle's. An ad that the
    world does not have, and a user whose state was not kept, have no value and no row.

    Args:
        world: A synthetic world: holds ``hidden.safetensors`` and ``oracle``.
        baselines: One table of lists a baseline.
        generations: ``lists``, a folder of parts.
        out: Where the values go.

    Raises:
        FileNotFoundError: If the world is not a synthetic one.
    """
    hidden = unpack(load_file(world / "hidden.safetensors"))
    found = [generations / "lists", *sorted(baselines.glob("*.parquet")), world / "oracle.parquet"]
    listed = pl.concat(tables.read(tables.LISTS, path).select("user_id", "ad_id") for path in found)
    pairs = listed.unique().sort("user_id", "ad_id")
    values = values_of(hidden, pairs)
    tables.write(tables.VALUES, values, out / "values.parquet")
    log.info("appraised %s of %s users and ads", values.height, pairs.height)


def values_of(hidden: Hidden, pairs: pl.DataFrame) -> pl.DataFrame:
    """VALUES of the pairs (columns ``user_id`` and ``ad_id``) whose user and ad the hidden state has."""
    numbers = [
        pl.DataFrame({name: ids.astype(str)}, schema={name: pl.String()}).with_row_index(name.removesuffix("_id"))
        for name, ids in (("user_id", hidden.user_ids), ("ad_id", hidden.ad_ids))
    ]
    known = pairs.select("user_id", "ad_id")
    for table in numbers:
        known = known.join(table, on=table.columns[1], how="inner", maintain_order="left")
    frames = [pl.DataFrame(schema=tables.VALUES.schema)]
    for start in range(0, known.height, PAIRS_AT_ONCE):
        part = known[start : start + PAIRS_AT_ONCE]
        value = worth(hidden, part["user"].cast(pl.Int64).to_numpy(), part["ad"].cast(pl.Int64).to_numpy())
        frames.append(part.select("user_id", "ad_id").with_columns(pl.Series("value", value, dtype=pl.Float64())))
    return pl.concat(frames)

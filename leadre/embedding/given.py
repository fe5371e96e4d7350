"""Vectors that were made elsewhere: a file in place of an encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.embedding.keyed import Keyed


class Given(NamedTuple):
    """What a file of vectors gives.

    Attributes:
        x: ``(N, D)`` of the ads that were asked for.
        num_unknown: Vectors of ads that there are not.
        num_changed: Vectors that differ from those that their ads have already.
    """

    x: NDArray[np.float32]
    num_unknown: int
    num_changed: int


def given_vectors(path: Path, ad_ids: Sequence[str], *, kept: Keyed) -> Given:
    """Read the vectors of ads from a `leadre.tables.VECTORS` file; they are taken as they are, whatever their length.

    Args:
        path: Parquet file with the columns ``ad_id`` and ``vector`` (floats of either precision; float32 is kept).
        ad_ids: The N ads that need a vector.
        kept: The vectors of all other ads, by ad_id.

    Raises:
        ValueError: If the file is no Parquet, an ad has no vector or two, or vectors differ in width, are empty or
            are not finite; all faults of vectors at once.
    """
    table = _read(path)
    asked = pl.DataFrame({"ad_id": ad_ids}, schema={"ad_id": pl.String()})
    mine = asked.join(table, on="ad_id", how="left", maintain_order="left")
    if faults := _faults(mine):
        raise ValueError(f"embedding.path {path} does not fit the ads: {'; '.join(faults)}")
    flat = mine["vector"].explode().to_numpy()
    x = flat.reshape(len(ad_ids), -1) if len(ad_ids) else np.empty((0, 0), np.float32)
    known = pl.DataFrame({"ad_id": kept.keys}, schema={"ad_id": pl.String()})
    then = known.with_columns(then=pl.Series(kept.x, dtype=tables.VECTORS.schema["vector"]))
    changed = table.join(then, on="ad_id").filter(pl.col("vector").ne_missing(pl.col("then")))
    return Given(x, table.join(pl.concat([asked, known]), on="ad_id", how="anti").height, changed.height)


def _read(path: Path) -> pl.DataFrame:
    """The file with its vectors as lists of float32; pandas writes float64, others write arrays."""
    try:
        vector = pl.read_parquet_schema(path).get("vector")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"embedding.path {path} cannot be read as Parquet ({reason}): write it as Parquet") from error
    table = tables.VECTORS
    if isinstance(vector, pl.List | pl.Array) and vector.inner.is_float():
        table = tables.Table(table.name, {**table.columns, "vector": tables.Column(vector)})
    return tables.read(table, path).cast({"vector": tables.VECTORS.schema["vector"]})


def _faults(mine: pl.DataFrame) -> list[str]:
    without = mine.filter(pl.col("vector").is_null())
    twice = mine.filter(pl.col("ad_id").is_duplicated())
    there = mine.drop_nulls("vector")
    widths = there["vector"].list.len().unique().sort().to_list()
    finite = pl.element().is_finite().fill_null(value=False).all()
    broken = there.filter(~pl.col("vector").list.eval(finite).list.first())
    faults = []
    if without.height:
        faults.append(f"{without.height} ads have no vector, the first is {without['ad_id'][0]!r}")
    if twice.height:
        faults.append(f"{twice['ad_id'].n_unique()} ads stand twice or more, the first is {twice['ad_id'][0]!r}")
    if len(widths) > 1 or widths == [0]:
        faults.append(f"vectors have the widths {widths}, but must have one, of at least 1")
    if broken.height:
        faults.append(f"{broken.height} vectors are not finite, the first is that of {broken['ad_id'][0]!r}")
    return faults

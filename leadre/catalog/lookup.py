"""From an S-ID to its ad, and back: for a person at the command line, and as an index in LETTER's format.

python -m leadre.catalog.lookup store/catalog/KEY '<a_51> <b_10> <c_67> <d_93> <e_0>'
python -m leadre.catalog.lookup store/catalog/KEY '<a_51> <b_10>' --world store/world/KEY
python -m leadre.catalog.lookup store/catalog/KEY ad17
python -m leadre.catalog.lookup store/catalog/KEY --export index.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.catalog.sids import name, parse


class Catalog(NamedTuple):
    """Every ad that ever got an S-ID.

    Attributes:
        rows: A SIDS frame with a column ``state`` beside its own: ``active`` or ``retired``.
        num_codes: The number of codes of each level, of the extra codes too.
    """

    rows: pl.DataFrame
    num_codes: tuple[int, ...]


def read(folder: Path) -> Catalog:
    """Read a catalog's folder.

    Raises:
        ValueError: If it is none.
    """
    files = {"active": folder / "sids.parquet", "retired": folder / "retired.parquet"}
    missing = [path.name for path in (*files.values(), folder / "tokens.json") if not path.is_file()]
    if missing:
        raise ValueError(f"{folder} is no catalog, it has no {', '.join(missing)}: name a folder store/catalog/KEY")
    rows = [tables.read(tables.SIDS, path).with_columns(state=pl.lit(state)) for state, path in files.items()]
    num_codes = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))["levels"]
    return Catalog(pl.concat(rows), tuple(num_codes))


def find(catalog: Catalog, query: str) -> pl.DataFrame:
    """The row of an ad or of a whole S-ID, or the rows of all ads below the beginning of one, sorted by S-ID.

    Raises:
        ValueError: If no ad has, or ever had, this ad_id or an S-ID that begins so; if a token is none of its level.
    """
    rows = catalog.rows.filter(pl.col("ad_id") == query)
    if not rows.is_empty():
        return rows
    if not query.startswith("<"):
        raise ValueError(
            f"no ad {query!r} is or was in this catalog; an S-ID is written {name([0] * len(catalog.num_codes))!r}"
        )
    codes = parse(query, catalog.num_codes)
    if not codes:
        raise ValueError(f"{query!r} names no code; an S-ID is written {name([0] * len(catalog.num_codes))!r}")
    same = [pl.col("sid").list.get(level) == code for level, code in enumerate(codes)]
    rows = catalog.rows.filter(pl.all_horizontal(same)).sort("sid")
    if rows.is_empty():
        raise ValueError(f"no ad has, or ever had, an S-ID that begins with {name(codes)!r}")
    return rows


def export(catalog: Catalog, path: Path) -> None:
    """Write the S-IDs of active ads as LETTER's ``index.json``: ad_id -> list of tokens.

    Raises:
        ValueError: If the file cannot be written there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--export is {path}, but must be a file in a folder that is there: make the folder first")
    active = catalog.rows.filter(pl.col("state") == "active")
    index = dict(active.select("ad_id", pl.col("name").str.split(" ")).iter_rows())
    path.write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Look up what the command line asks for: a line an ad, its fields parted by tabs."""
    parser = argparse.ArgumentParser(prog="python -m leadre.catalog.lookup", description="S-ID -> ad, ad -> S-ID.")
    parser.add_argument("catalog", type=Path, help="folder of a catalog, such as store/catalog/KEY")
    parser.add_argument("query", nargs="?", help="an ad_id, an S-ID, or the beginning of one: '<a_51> <b_10>'")
    parser.add_argument("--world", type=Path, help="folder of the world, to show the names of ads")
    parser.add_argument("--export", type=Path, metavar="index.json", help="write all active ads in LETTER's format")
    given = parser.parse_args(arguments)
    if given.query is None and given.export is None:
        parser.error("ask for an ad_id or an S-ID, or give --export")
    try:
        catalog = read(given.catalog)
        if given.query is not None:
            _show(find(catalog, given.query), given.world)
        if given.export is not None:
            export(catalog, given.export)
    except ValueError as error:
        sys.exit(str(error))


def _show(rows: pl.DataFrame, world: Path | None) -> None:
    shown = rows.select("ad_id", pl.col("name").alias("sid"), "state")
    if world is not None:
        path = world / "ads.parquet"
        if not path.is_file():
            raise ValueError(f"--world is {world}, but it has no {path.name}: name a folder store/world/KEY")
        ads = tables.read(tables.ADS, path).select("ad_id", "name")
        shown = shown.join(ads, on="ad_id", how="left", maintain_order="left")
    for row in shown.iter_rows():
        sys.stdout.write("\t".join(cell or "" for cell in row) + "\n")


if __name__ == "__main__":
    main()

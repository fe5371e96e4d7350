"""What the benchmarks work on: vectors, codes, texts and worlds, made from seeds or read from real data."""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from leadre import tables
from leadre.catalog.sids import extra_codes, in_order
from leadre.command_line import configured
from leadre.config import RunConfig
from leadre.data.ad_text import describe
from leadre.data.gather import gather


def clustered(count: int, dim: int, *, seed: int) -> Tensor:
    """Vectors ``(N, dim)`` around a thousand middles that are the same for all seeds."""
    middles = torch.randn(1000, dim, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randint(len(middles), (count,), generator=generator)
    return middles[rows] + 0.3 * torch.randn(count, dim, generator=generator)


def isotropic(count: int, dim: int, *, seed: int) -> Tensor:
    """Vectors ``(N, dim)`` without any structure: standard normal."""
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed + 1))


def hierarchical(count: int, dim: int, *, seed: int) -> Tensor:
    """Vectors ``(N, dim)`` of a tree, eight branches a node, four levels deep, each half as wide as the one above."""
    middles = torch.Generator().manual_seed(0)  # the same tree for all seeds
    generator = torch.Generator().manual_seed(seed + 1)
    node, x = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dim)
    for depth in range(4):
        node = 8 * node + torch.randint(8, (count,), generator=generator)
        x += 0.5**depth * torch.randn(8 ** (depth + 1), dim, generator=middles)[node]
    return x + 0.5**4 * torch.randn(count, dim, generator=generator)


def shared_codes(count: int, *, levels: int, codebook_size: int) -> NDArray[np.int32]:
    """Codes ``(N, M)`` in no order: 29 % of the rows share theirs, 275 of them one list."""
    rng = np.random.default_rng(0)
    sharing = int(0.29 * count)
    groups = sharing // 4
    lists = rng.integers(codebook_size, size=(groups + count - sharing, levels), dtype=np.int32)
    crowd = np.zeros(273, dtype=np.int64)
    more = rng.integers(1, groups, size=sharing - 2 * groups - len(crowd))
    rows = np.concatenate([np.arange(len(lists)), np.arange(groups), crowd, more])
    codes: NDArray[np.int32] = lists[rng.permutation(rows)]
    return codes


def zipf_sids(count: int, *, seed: int, levels: int = 4, codebook_size: int = 1024) -> NDArray[np.int32]:
    """S-IDs ``(N, levels + 1)`` in no order: codes by Zipf's law, and a tenth of the ads with an extra code above 0."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, codebook_size + 1)
    drawn = rng.choice(codebook_size, size=(2 * count, levels), p=share / share.sum()).astype(np.int32)
    order, opens = in_order(drawn)
    sharing = count // 10
    lists = rng.permutation(drawn[order[opens]])[: count - sharing]
    codes = rng.permutation(np.concatenate([lists, lists[rng.integers(len(lists), size=sharing)]]))
    sids: NDArray[np.int32] = np.column_stack([codes, extra_codes(codes)])
    return sids


def texts(count: int) -> pl.DataFrame:
    """Ads of 100 product lines, each with a few words of its own line's."""
    rng = np.random.default_rng(0)
    lines = rng.integers(100, size=count)
    words = 20 * lines[:, None] + rng.integers(20, size=(count, 6))
    told = [
        f"line{line} " + " ".join(f"word{word}" for word in few)
        for line, few in zip(lines, words.tolist(), strict=True)
    ]
    return pl.DataFrame({"ad_id": [f"ad{number:07d}" for number in range(count)], "description": told})


def write_world(folder: Path, ads: pl.DataFrame) -> None:
    """A world of ads (``ad_id``, ``description``) that nobody has seen yet."""
    folder.mkdir(parents=True)
    empty = pl.DataFrame(schema=tables.ADS.schema)
    filled = pl.concat([empty, ads], how="diagonal").with_columns(pl.col("attributes").fill_null([]))
    tables.write(tables.ADS, filled, folder / "ads.parquet")
    for table in (tables.BEHAVIORS, tables.SPLIT):
        tables.write(table, pl.DataFrame(schema=table.schema), folder / f"{table.name}.parquet")


def write_embeddings(folder: Path, x: Tensor) -> None:
    """Embeddings ``(N, D)`` of ads that all have texts of their own, as the stage `embeddings` leaves them."""
    folder.mkdir(parents=True)
    names = [f"{number:032x}" for number in range(len(x))]
    tables.write(tables.ROWS, pl.DataFrame({"ad_id": names, "text_key": names}), folder / "rows.parquet")
    save_file({"x": x}, folder / "vectors.safetensors")


def write_gathered(folder: Path, *overrides: str) -> None:
    """The world of an importer."""
    folder.mkdir(parents=True)
    gather(settings(*overrides).data, out=folder)


def write_completejourney(folder: Path, root: Path) -> None:
    """All products that Complete Journey describes; many have the same text.

    The importer keeps those that were sold on promotion, and tells their manufacturers too. Here all are described, and
    by less, so that texts are as near as the source has them.
    """
    products = pl.read_csv(root / "products.csv.gz", infer_schema=False)
    told = [
        describe(
            name=None,
            product_type=row["product_type"],
            first_category=row["department"],
            second_category=row["product_category"],
            attributes=[row[name] for name in ("brand", "package_size") if row[name]],
            language="en",
        )
        for row in products.iter_rows(named=True)
    ]
    write_world(folder, pl.DataFrame({"ad_id": products["product_id"], "description": told}))


def settings(*overrides: str) -> RunConfig:
    """The settings that ``train.py`` would have with these overrides, on one thread of a CPU."""
    from leadre.job import quiet_libraries  # imports every stage

    quiet_libraries()
    machine = ("compute.accelerator=cpu", "compute.threads=1", "compute.progress=false")
    return configured([*machine, *overrides])

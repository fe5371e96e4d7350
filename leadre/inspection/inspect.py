"""The verb ``inspect``: what an index is worth, in numbers, and laid side by side for a person to judge."""

import json
import logging
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from leadre import tables
from leadre.inspection import information
from leadre.inspection.config import InspectionConfig
from leadre.inspection.energy import energy_left, reconstruction_error
from leadre.inspection.likeness import likeness
from leadre.inspection.side_by_side import side_by_side
from leadre.quantizer import diagnostics
from leadre.quantizer.load import has_network, load, read_shape

VERSION = 1
NUM_GROUPS, NUM_NAMES = 5, 3
"""The largest groups that are listed, and the ads named of each."""
log = logging.getLogger(__name__)


class Index(NamedTuple):
    """What is inspected: the ads of today's world, N of them, in its order.

    Attributes:
        ads: ``ad_id``, ``name`` (the id where there is none), ``description``, ``category`` (may be null), ``sid``
            (the S-ID's name; null for an ad that is not in the catalog), ``same_text`` (ads with this description).
        x: ``(N, D)`` embeddings.
        codes: ``(N, M)`` int64, as quantized.
        named: ``(N, M)`` int64, the codes that the S-ID begins with, which differ for a spilled ad; as quantized for an
            ad that is not in the catalog.
        text: ``(N,)`` int64, numbers of the distinct texts (of the distinct vectors, where these were made elsewhere).
        first: ``(U,)`` int64, the first row of each distinct text.
    """

    ads: pl.DataFrame
    x: Tensor
    codes: Tensor
    named: Tensor
    text: Tensor
    first: Tensor


def inspect(config: InspectionConfig, world: Path, embeddings: Path, codes: Path, catalog: Path, *, out: Path) -> None:
    """Measure an index (LEADRE 5.2.4, and its second future work).

    Args:
        config: What to measure on.
        world: Folder with ``ads.parquet``.
        embeddings: Folder with ``vectors.safetensors`` and ``rows.parquet``.
        codes: Folder with ``codes.parquet`` and ``quantizer.json``.
        catalog: Folder with ``sids.parquet``, ``retired.parquet`` and ``catalog.json``.
        out: Gets ``inspection.json`` (the numbers) and ``neighbors.json`` (sample ads with the ads that are nearest
            to them by cosine, and by the S-ID prefix they share). Use of codes and bits are over the ads, categories
            and likeness over the distinct texts.

    Raises:
        ValueError: If there is no ad, or the folders are not of the same ads.
    """
    active, retired = (tables.read(tables.SIDS, catalog / f"{name}.parquet") for name in ("sids", "retired"))
    sids = pl.concat([active, retired])
    index = _read(config, world, embeddings, codes, sids)
    shape = read_shape(codes)
    sizes = shape["codebook_sizes"]
    groups = diagnostics.prefix_groups(index.codes)
    network = load(codes) if has_network(codes) else None
    report = {
        "kind": shape["kind"],
        "ads": len(index.codes),
        "distinct_texts": len(index.first),
        "active": active.height,
        "retired": retired.height,
        "before": _before(index, groups[-1]),
        "catalog": json.loads((catalog / "catalog.json").read_text()),
        **_levels(index, groups, sizes, energy_left(network, index.x) if network else [None] * len(sizes)),
        "reconstruction_error": reconstruction_error(network, index.x, index.codes) if network else None,
        "category": _category(config, index),
        "cosine": _cosine(config, index),
    }
    (out / "inspection.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    samples = side_by_side(
        index.ads,
        index.x.numpy(),
        index.named.numpy(),
        rows=index.first.numpy(),
        samples=config.num_samples,
        neighbors=config.num_neighbors,
        generator=np.random.default_rng(config.seed),
    )
    told = json.dumps(samples, indent=1, ensure_ascii=False)
    (out / "neighbors.json").write_text(told + "\n", encoding="utf-8")
    log.info(
        "%s ads, %s distinct texts; before the extra code %.2f %% of the texts collide; bits a level %s of %.1f",
        *(report["ads"], report["distinct_texts"], 100 * report["before"]["texts"]["rate"]),
        *([round(level["bits"], 1) for level in report["levels"]], report["bits"]["most"]),
    )


def _read(config: InspectionConfig, world: Path, embeddings: Path, codes: Path, sids: pl.DataFrame) -> Index:
    ads = tables.read(tables.ADS, world / "ads.parquet")
    if ads.is_empty():
        raise ValueError(f"{world / 'ads.parquet'} has no ads: there is nothing to inspect")
    rows = tables.read(tables.ROWS, embeddings / "rows.parquet")
    if not rows["ad_id"].equals(ads["ad_id"]):
        raise ValueError(f"{embeddings} and {world} have not the same ads in the same order: embed this same world")
    coded = rows.join(tables.read(tables.CODES, codes / "codes.parquet"), on="ad_id", how="left", maintain_order="left")
    if missing := coded["codes"].null_count():
        raise ValueError(
            f"{codes} lacks the codes of {missing} ads (one is {coded.filter(pl.col('codes').is_null())['ad_id'][0]!r}"
            "): quantize the embeddings of this same world"
        )
    text = rows["text_key"].rank("dense").cast(pl.Int64).to_numpy() - 1
    named = coded.join(sids.drop("name"), on="ad_id", how="left", maintain_order="left").select(
        pl.coalesce(pl.col("sid").list.head(pl.col("codes").list.len()), "codes")
    )
    return Index(
        ads=ads.select(
            "ad_id",
            pl.coalesce("name", "ad_id").alias("name"),
            "description",
            pl.col(f"{config.category}_category").alias("category"),
            pl.Series("same_text", np.bincount(text)[text]),
        ).join(sids.select("ad_id", sid="name"), on="ad_id", how="left", maintain_order="left"),
        x=load_file(embeddings / "vectors.safetensors")["x"],
        codes=_matrix(coded["codes"]),
        named=_matrix(named.to_series()),
        text=torch.from_numpy(text),
        first=torch.from_numpy(np.sort(np.unique(text, return_index=True)[1])),
    )


def _matrix(codes: pl.Series) -> Tensor:
    """Code lists of one length to ``(N, M)`` int64."""
    return torch.from_numpy(tables.matrix(codes, int(codes.list.len()[0]))).long()


def _before(index: Index, groups: Tensor) -> dict[str, Any]:
    """Collisions before the extra code, of ads and of distinct texts, and the largest groups by name."""
    sizes = torch.bincount(groups)
    largest = sizes.argsort(descending=True, stable=True)[:NUM_GROUPS]
    return {
        "ads": diagnostics.group_collisions(groups)._asdict(),
        "texts": diagnostics.group_collisions(groups[index.first])._asdict(),
        "sizes": [one._asdict() for one in diagnostics.size_classes(sizes)],
        "largest": [_group(index, torch.nonzero(groups == group).flatten()) for group in largest if sizes[group] > 1],
    }


def _group(index: Index, rows: Tensor) -> dict[str, Any]:
    return {
        "ads": len(rows),
        "texts": int(torch.bincount(index.text[rows]).count_nonzero()),
        "codes": index.codes[rows[0]].tolist(),
        "names": index.ads["name"].gather(rows.numpy()).unique(maintain_order=True).head(NUM_NAMES).to_list(),
    }


def _levels(
    index: Index, groups: list[Tensor], codebook_sizes: list[int], energies: list[float | None]
) -> dict[str, Any]:
    """Use of the codes and bits, level by level and in all, over the ads.

    A level that adds few bits may be poor, or may have come too late: ``bits_left`` is what there was left to tell.
    """
    bits = diagnostics.group_bits(groups)
    whole, most = sum(bits), information.most_bits(index.codes, index.text)
    before = list(accumulate(bits, initial=0.0))
    levels = []
    for place, size in enumerate(codebook_sizes):
        counts = torch.bincount(index.codes[:, place], minlength=size)
        used = int((counts > 0).sum())
        levels.append(
            {
                "codes": size,
                "used": used,
                "usage": used / size,
                "dead": size - used,
                "perplexity": float(diagnostics.perplexity(counts)),
                "counts": counts.sort(descending=True).values.tolist(),
                "bits": bits[place],
                "bits_left": most - before[place],
                "share": bits[place] / whole if whole else None,
                "energy_left": energies[place],
            }
        )
    return {"levels": levels, "bits": {"whole": whole, "most": most, "evenness": information.evenness(bits)}}


def _category(config: InspectionConfig, index: Index) -> dict[str, Any]:
    """What the codes tell of the category, over the distinct texts that have one: each by its first ad.

    Over ads, codes without any meaning would seem to tell it: copies of a text share their category, and their codes.
    """
    column = index.ads["category"].gather(index.first.numpy())
    told: dict[str, Any] = {"column": f"{config.category}_category", "texts": len(column) - column.null_count()}
    if not told["texts"]:
        return told
    codes = index.codes[index.first[torch.from_numpy(column.is_not_null().to_numpy().copy())]]
    category = torch.from_numpy(column.drop_nulls().rank("dense").cast(pl.Int64).to_numpy() - 1)
    shuffled = information.shuffled_category_bits(
        codes, category, shuffles=config.num_shuffles, generator=torch.Generator().manual_seed(config.seed)
    )
    return {
        **told,
        "categories": int(category.max()) + 1,
        "bits": float(diagnostics.entropy(torch.bincount(category))) / float(np.log(2)),
        "bits_by_level": information.category_bits(codes, category),
        "bits_by_level_shuffled": shuffled,
        "purity": [length._asdict() for length in information.purities(codes, category)],
    }


def _cosine(config: InspectionConfig, index: Index) -> dict[str, Any]:
    """The cosine by the shared prefix of the S-IDs, over distinct texts: copies are as near as can be anyway."""
    generator = torch.Generator().manual_seed(config.seed)
    *by_length, any_pair = likeness(
        index.x, index.named, rows=index.first, num_pairs=config.num_pairs, generator=generator
    )
    return {"by_shared_prefix": [length._asdict() for length in by_length], "any_pair": any_pair._asdict()}

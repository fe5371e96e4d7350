"""The stage `codes`: embeddings of ads to M codes an ad (LEADRE 3.2, A.1), on the first day and on every later one."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file
from torch import Tensor

from leadre import tables
from leadre.quantizer import diagnostics, report
from leadre.quantizer.config import ImportedConfig, LearnedConfig, QuantizerConfig, RandomConfig
from leadre.quantizer.controls import random_codes, shuffled
from leadre.quantizer.drift import drift
from leadre.quantizer.imported import imported_codes
from leadre.quantizer.learn import learned, shape_of
from leadre.quantizer.load import copy, load, read_shape, save
from leadre.quantizer.network import Network
from leadre.quantizer.spread import spread_last_level
from leadre.training.config import ComputeConfig, LoggerConfig

VERSION = 2
log = logging.getLogger(__name__)


class Units(NamedTuple):
    """What is to be coded: one row a text, or, where codes are given ad by ad, one row an ad.

    Attributes:
        frame: ``ad_id`` and ``text_key``, the first ad of each.
        x: ``(U, D)`` embeddings.
        known: ``(T, M)`` codes of other texts, which they keep; None on the first day.
    """

    frame: pl.DataFrame
    x: Tensor
    known: Tensor | None


class Coded(NamedTuple):
    """Codes ``(U, M)`` of the units, the nearest ones ``(U, M)``, and the mean squared error of what they rebuild.

    The last two are None for a kind without a network, the error also without units.
    """

    codes: Tensor
    nearest: Tensor | None = None
    error: float | None = None


def quantize(
    config: QuantizerConfig,
    embeddings: Path,
    previous: Path | None = None,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> None:
    """Code every ad; with ``previous``, the ads that it does not hold, by the quantizer that it holds.

    Our choice: a text is coded once, and trained on once, however many ads have it; it is told by its ``text_key``, not
    by its vector, since two texts may have one vector and still need two code lists. An ad keeps the codes of
    the text that it was first coded with.

    Args:
        config: Which quantizer, and its numbers.
        embeddings: Folder with ``vectors.safetensors`` and ``rows.parquet``.
        previous: Folder of an earlier result. Its rows stand first, unchanged, ads of today or not. Nothing is
            trained: new texts alone are coded, and where ``spread_last_level`` is set, none takes codes that are taken.
        out: Gets ``codes.parquet``; ``rows.parquet`` (the text of each of its ads when it was coded);
            ``quantizer.json`` and, of a trained kind, ``quantizer.safetensors``; ``diagnostics.json``, on today's
            ads.
        compute: Devices and threads of the training.
        logger: Where the training's metrics go.

    Raises:
        ValueError: If there is no ad, an embedding is not finite, ads and embeddings do not fit each other or the
            previous quantizer, or imported codes do not fit the ads.
    """
    rows, x = read_embeddings(embeddings)
    known = _known(previous)
    new = rows.with_row_index("row").join(known, on="ad_id", how="anti", maintain_order="left")
    _check_finite(x, new)
    # Imported codes are given ad by ad: two ads of one text may have different ones.
    key = "ad_id" if isinstance(config, ImportedConfig) else "text_key"
    first = new.unique(key, keep="first", maintain_order=True).join(known, on=key, how="anti", maintain_order="left")
    units = Units(first, x[_rows(first)], _codes(known, read_shape(previous)) if previous else None)
    match config:
        case RandomConfig():
            coded = Coded(_random(config, units, previous, out))
        case ImportedConfig():
            coded = Coded(_imported(config, units, known, previous, out))
        case _:
            network = _network(config, x, units, previous, out=out, compute=compute, logger=logger)
            coded = _by_network(config, network, units)
    listed = pl.concat([known, _with_codes(new, key, known, first, coded.codes)])
    tables.write(tables.CODES, listed.select(tables.CODES.schema.names()), out / "codes.parquet")
    tables.write(tables.ROWS, listed.select(tables.ROWS.schema.names()), out / "rows.parquet")
    today = listed.join(rows, on="ad_id", how="semi", maintain_order="left")
    told = report.of_codes(config.kind, today, read_shape(out)["codebook_sizes"]) | {"num_ever": len(listed)}
    if previous is None:
        told |= _first_errors(units, coded)
    else:
        told |= _new_errors(units, coded, len(new), previous)
        if coded.nearest is not None:
            texts = rows.with_row_index("row").unique("text_key", keep="first", maintain_order=True)
            told["new"]["drift"] = drift(x, _rows(texts.join(known, on="text_key", how="semi")), _rows(first))
    (out / "diagnostics.json").write_text(json.dumps(told))
    report.tell(told, rows, known)


def read_embeddings(folder: Path) -> tuple[pl.DataFrame, Tensor]:
    """Read the ads (``ad_id``, ``text_key``) and their embeddings ``(N, D)``.

    Raises:
        ValueError: If there is no ad, an ad stands twice, or ads and embeddings do not fit.
    """
    tensors = load_file(folder / "vectors.safetensors")
    rows = tables.read(tables.ROWS, folder / "rows.parquet")
    x = tensors.get("x")
    if x is None or x.ndim != 2 or x.dtype != torch.float32 or not x.shape[1]:
        held = {name: f"{list(value.shape)} {value.dtype}" for name, value in tensors.items()}
        raise ValueError(f"{folder} holds {held}, expected x of (N, D) float32, D >= 1: make the embeddings anew")
    if len(x) != len(rows):
        raise ValueError(f"{folder} has {len(x)} vectors but {len(rows)} rows: make the embeddings anew")
    if rows.is_empty():
        raise ValueError(f"{folder} has no ad: the quantizer needs at least one")
    twice = rows.filter(pl.col("ad_id").is_duplicated())["ad_id"]
    if len(twice):
        raise ValueError(f"{folder} has the ad {twice[0]!r} more than once: make the embeddings anew")
    return rows, x


def _check_finite(x: Tensor, new: pl.DataFrame) -> None:
    blocks = torch.split(_rows(new), diagnostics.BLOCK)
    squares = torch.cat([x[rows].square().sum(1) for rows in blocks]) if len(new) else x[:0, 0]
    broken = torch.nonzero(~squares.isfinite()).flatten().tolist()
    if broken:
        raise ValueError(
            f"embeddings of {len(broken)} ads are not finite, the first is ad {new['ad_id'][broken[0]]!r}, or as large "
            "as 1e19, so that their squares are not: a mean over them would spoil every code; make the embeddings "
            "anew, in fp32 if they were made in half precision"
        )


def _rows(frame: pl.DataFrame) -> Tensor:
    """The column ``row`` as an index."""
    return frame["row"].to_torch().long()


def _known(previous: Path | None) -> pl.DataFrame:
    """Ads coded before: ``ad_id``, ``text_key`` and ``codes``, in their order."""
    if previous is None:
        return pl.DataFrame(schema={**tables.ROWS.schema, **tables.CODES.schema})
    read_shape(previous)  # first, since codes of an earlier version lack it
    coded = tables.read(tables.CODES, previous / "codes.parquet")
    texts = tables.read(tables.ROWS, previous / "rows.parquet")
    if not coded["ad_id"].equals(texts["ad_id"]):
        raise ValueError(f"{previous}: codes.parquet and rows.parquet do not hold the same ads: quantize anew")
    return texts.with_columns(coded["codes"])


def _codes(known: pl.DataFrame, shape: dict[str, Any]) -> Tensor:
    """The column ``codes`` as ``(T, M)`` int64."""
    return torch.from_numpy(tables.matrix(known["codes"], len(shape["codebook_sizes"]))).long()


def _with_codes(new: pl.DataFrame, key: str, known: pl.DataFrame, first: pl.DataFrame, codes: Tensor) -> pl.DataFrame:
    """The new ads with the codes of their text, coded before or now."""
    listed = pl.Series("codes", codes.numpy().astype(np.int32)).cast(tables.CODES.schema["codes"])
    before = known.unique(key, keep="first").select(key, "codes")
    of_key = pl.concat([before, first.select(key).with_columns(listed)])
    return new.drop("row").join(of_key, on=key, how="left", maintain_order="left")


def _random(config: RandomConfig, units: Units, previous: Path | None, out: Path) -> Tensor:
    sizes = [config.codebook_size] * config.levels
    if previous:
        _check_same(previous, {"kind": config.kind, "codebook_sizes": sizes})
    save(out, {"kind": config.kind, "input_dim": units.x.shape[1], "codebook_sizes": sizes}, None)
    return random_codes(
        units.frame["text_key"], levels=config.levels, codebook_size=config.codebook_size, seed=config.seed
    )


def _imported(config: ImportedConfig, units: Units, known: pl.DataFrame, previous: Path | None, out: Path) -> Tensor:
    path, ad_ids = Path(config.path), units.frame["ad_id"].to_list()
    found = imported_codes(path, ad_ids, known=known["ad_id"].to_list(), key_shift=config.key_shift)
    levels = len(next(iter(found.values())))
    codes = torch.tensor([found[ad] for ad in ad_ids], dtype=torch.int64).reshape(len(ad_ids), levels)
    if previous is None:
        sizes = (codes.amax(0) + 1).tolist()
        save(out, {"kind": config.kind, "input_dim": units.x.shape[1], "codebook_sizes": sizes}, None)
        return codes
    _check_same(previous, {"kind": config.kind})
    copy(previous, out)
    sizes = read_shape(previous)["codebook_sizes"]
    if levels != len(sizes):
        raise ValueError(
            f"{path} has {levels} codes an ad, but {previous} has {len(sizes)}: give new ads as many, or import "
            "without previous_catalog"
        )
    if (codes >= torch.tensor(sizes)).any():
        raise ValueError(
            f"{path} has new ads with codes up to {codes.amax(0).tolist()}, but {previous} has {sizes} codes a level, "
            "and a code beyond has no token: give the new ads codes within, or import without previous_catalog"
        )
    moved = [ad for ad, code in known.select("ad_id", "codes").iter_rows() if found.get(ad, code) != code]
    if moved:
        log.warning(
            "%s ads have other codes in %s than when they were coded and keep theirs (one is %r)",
            *(len(moved), path, moved[0]),
        )
    return codes


def _network(
    config: LearnedConfig,
    x: Tensor,
    units: Units,
    previous: Path | None,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
) -> Network:
    if previous is None:
        network = learned(config, units.x, out=out, compute=compute, logger=logger)
        save(out, shape_of(config, network, x.shape[1]), network)
        return network
    _check_same(previous, {"kind": config.kind, "input_dim": x.shape[1]})
    copy(previous, out)
    return load(previous)


def _by_network(config: LearnedConfig, network: Network, units: Units) -> Coded:
    found, left = [], []
    for block in torch.split(units.x, diagnostics.BLOCK):
        quantized = network.quantize(block)
        found.append(quantized.codes)
        if config.spread_last_level:
            left.append(quantized.residuals[-1].clone())  # of a view, all levels would stay
    nearest = torch.cat(found)
    codes = nearest
    if config.spread_last_level:
        codes = spread_last_level(nearest, torch.cat(left), network.codebooks[-1].detach(), units.known)
    if config.shuffled:
        codes = shuffled(codes, seed=config.seed)
    return Coded(codes, nearest, _mean_error(network, units.x, codes) if len(codes) else None)


def _mean_error(network: Network, x: Tensor, codes: Tensor) -> float:
    pairs = zip(torch.split(x, diagnostics.BLOCK), torch.split(codes, diagnostics.BLOCK), strict=True)
    return sum(diagnostics.squared_error(block, network.decode(given)) for block, given in pairs) / len(x)


def _check_same(previous: Path, expected: dict[str, Any]) -> None:
    stored = read_shape(previous)
    for name, value in expected.items():
        if stored[name] != value:
            raise ValueError(
                f"{previous / 'quantizer.json'}: {name} is {stored[name]!r}, but today's is {value!r}: codes hold for "
                "the quantizer and the embeddings they were made with; use those, or leave out previous_catalog"
            )


def _first_errors(units: Units, coded: Coded) -> dict[str, Any]:
    """How well the codes rebuild the texts that the network was trained on; None for a kind without a network."""
    variance = diagnostics.moments(units.x).variance
    told: dict[str, Any] = {"collision_rate_nearest": None, "reconstruction_error": None}
    if coded.nearest is not None and coded.error is not None:
        told["collision_rate_nearest"] = diagnostics.collisions(coded.nearest).rate
        told["reconstruction_error"] = coded.error / variance if variance else 0.0
    return {**told, "variance": variance, "new": None}


def _new_errors(units: Units, coded: Coded, num_ads: int, previous: Path) -> dict[str, Any]:
    """The first day's errors, and in the same unit how well the new texts are rebuilt by what never saw them.

    Few new ads have no variance of their own to measure by, so the first day's is taken.
    """
    first = json.loads((previous / "diagnostics.json").read_text())
    kept = {name: first.get(name) for name in ("reconstruction_error", "variance")}
    error = coded.error / kept["variance"] if coded.error is not None and kept["variance"] else None
    told = {"num_ads": num_ads, "num_texts": len(units.x), "reconstruction_error": error, "drift": None}
    return {"collision_rate_nearest": None, **kept, "new": told}

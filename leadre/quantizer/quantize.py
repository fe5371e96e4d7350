"""The stage `codes`: embeddings of ads to M codes an ad (LEADRE 3.2, A.1)."""

import json
import logging
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from leadre import tables
from leadre.quantizer import diagnostics
from leadre.quantizer.config import QuantizerConfig, ResidualKMeansConfig, RQVAEConfig
from leadre.quantizer.kmeans import residual_kmeans
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.rqvae import RQVAE
from leadre.quantizer.rqvae_module import RQVAEModule
from leadre.quantizer.spread import spread_last_level
from leadre.training.batches import Batches
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.fit import fit

VERSION = 1
BLOCK = 4096
"""Rows coded at once, to bound memory."""
log = logging.getLogger(__name__)


def quantize(
    config: QuantizerConfig, embeddings: Path, *, out: Path, compute: ComputeConfig, logger: LoggerConfig
) -> None:
    """Train the quantizer on the embeddings and code every ad.

    Our choice: it is trained on the distinct embeddings, so that a text that a thousand ads share does not take
    a thousand times its part of the codebooks; ads with equal embeddings get equal codes.

    Args:
        config: Which quantizer, and its numbers.
        embeddings: Folder with ``vectors.safetensors`` and ``rows.parquet``.
        out: Gets ``codes.parquet``, ``quantizer.safetensors``, ``quantizer.json``, ``diagnostics.json``.
        compute: Devices and threads of the training.
        logger: Where the training's metrics go.

    Raises:
        ValueError: If there is no ad, an embedding is not finite, or ads and embeddings differ in number.
    """
    ad_ids, x = read_embeddings(embeddings)
    first_rows, row_of = distinct_rows(x.numpy())
    distinct = x[torch.from_numpy(first_rows)]
    match config:
        case RQVAEConfig():
            network: RQVAE | ResidualKMeans = trained_rqvae(config, distinct, out=out, compute=compute, logger=logger)
        case ResidualKMeansConfig():
            network = ResidualKMeans(_codebooks(distinct, config))
    nearest, codes = _codes(network, distinct, spread=config.spread_last_level)
    report = _report(config, distinct, codes, torch.from_numpy(row_of), network)
    report["collision_rate_nearest"] = diagnostics.collisions(nearest).rate
    all_codes = codes[torch.from_numpy(row_of)].numpy().astype(np.int32)
    frame = pl.DataFrame({"ad_id": ad_ids, "codes": list(all_codes)}, schema=tables.CODES.schema)
    tables.write(tables.CODES, frame, out / "codes.parquet")
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, out / "quantizer.safetensors")
    (out / "quantizer.json").write_text(json.dumps(_shape(config, x.shape[1]), indent=1))
    (out / "diagnostics.json").write_text(json.dumps(report))
    log.info(
        "%s ads, %s distinct embeddings; before the extra code %.2f %% collide, of the distinct ones %.2f %%",
        *(len(x), len(distinct)),
        *(100 * report["collision_rate"], 100 * report["collision_rate_distinct"]),
    )


def read_embeddings(folder: Path) -> tuple[list[str], Tensor]:
    """Read ad ids and their embeddings ``(N, D)``, and refuse what cannot be quantized.

    Raises:
        ValueError: If there is no ad, an embedding is not finite, or ads and embeddings differ in number.
    """
    x = load_file(folder / "vectors.safetensors")["x"]
    ad_ids = pl.read_parquet(folder / "rows.parquet")["ad_id"].to_list()
    if len(x) != len(ad_ids):
        raise ValueError(f"{folder} has {len(x)} vectors but {len(ad_ids)} rows: make the embeddings anew")
    if not ad_ids:
        raise ValueError(f"{folder} has no ad: the quantizer needs at least one")
    broken = torch.nonzero(~x.isfinite().all(1)).flatten().tolist()
    if broken:
        raise ValueError(
            f"embeddings of {len(broken)} ads are not finite, the first is ad {ad_ids[broken[0]]!r}: a mean over them "
            "would spoil every code; make the embeddings anew, in fp32 if they were made in half precision"
        )
    return ad_ids, x


def distinct_rows(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the rows that are bit by bit different.

    Args:
        x: ``(N, D)``.

    Returns:
        The first row of each distinct one, in order, ``(U,)``; and for each row its place among these, ``(N,)``.

    Example:
        >>> first, place = distinct_rows(np.float32([[1, 2], [0, 0], [1, 2]]))
        >>> first.tolist(), place.tolist()
        ([0, 1], [0, 1, 0])
    """
    seen: dict[bytes, int] = {}
    digests = (blake2b(row.tobytes(), digest_size=16).digest() for row in x)
    place = np.array([seen.setdefault(digest, len(seen)) for digest in digests], dtype=np.int64)
    return np.unique(place, return_index=True)[1].astype(np.int64), place


def trained_rqvae(config: RQVAEConfig, x: Tensor, *, out: Path, compute: ComputeConfig, logger: LoggerConfig) -> RQVAE:
    """Build the RQ-VAE, start its codebooks by k-means, train it; a training found in ``out`` is gone on with.

    Args:
        config: The RQ-VAE's numbers.
        x: ``(N, D)`` embeddings.
        out: The folder of the result under way.
        compute: Devices and threads.
        logger: Where metrics go.

    Returns:
        The trained network, on the CPU.
    """
    network = started_rqvae(config, x)
    module = RQVAEModule(
        network,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
        restart_every_steps=config.restart_every_steps,
        seed=config.seed,
    )
    plan = list(_plan(len(x), batch_size=config.batch_size, steps=config.steps, seed=config.seed))
    fit(
        module,
        Batches(plan, lambda rows: x[torch.from_numpy(rows)]),
        out=out,
        compute=compute,
        logger=logger,
        name="codes",
        valid=list(torch.split(x, BLOCK)) if config.validations else None,
        valid_every_steps=max(1, config.steps // config.validations) if config.validations else None,
    )
    return network.cpu().eval()


def started_rqvae(config: RQVAEConfig, x: Tensor) -> RQVAE:
    """Build an RQ-VAE for embeddings ``(N, D)``: first weights from the seed, codebooks from k-means on a sample."""
    network = RQVAE(
        input_dim=x.shape[1],
        hidden_dims=config.hidden_dims,
        code_dim=config.code_dim,
        levels=config.levels,
        codebook_size=config.codebook_size,
        beta_quant=config.beta_quant,
        generator=torch.Generator().manual_seed(config.seed),
    )
    network.mean.copy_(x.mean(0))
    spread = (x - network.mean).square().mean().sqrt()
    if spread > 0:  # equal embeddings have no scale of their own
        network.scale.copy_(spread)
    network.codebooks.data.copy_(_codebooks(network.latents(x), config))
    return network


def _codebooks(z: Tensor, config: QuantizerConfig) -> Tensor:
    generator = torch.Generator().manual_seed(config.seed)
    sample = z[torch.randperm(len(z), generator=generator)[: config.kmeans_sample]]
    return residual_kmeans(
        sample,
        levels=config.levels,
        codebook_size=config.codebook_size,
        iterations=config.kmeans_iterations,
        generator=generator,
    )


def _plan(num_rows: int, *, batch_size: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Full batches without repeats inside an epoch; all rows at once where they are fewer than a batch."""
    size = min(batch_size, num_rows)
    each = num_rows // size
    for step in range(steps):
        if step % each == 0:
            order = np.random.default_rng([seed, step // each]).permutation(num_rows)
        start = step % each * size
        yield order[start : start + size]


def _codes(network: RQVAE | ResidualKMeans, x: Tensor, *, spread: bool) -> tuple[Tensor, Tensor]:
    """The nearest codes, and these again, spread over the last level if asked for."""
    quantized = [network.quantize(block) for block in torch.split(x, BLOCK)]
    codes = torch.cat([block.codes for block in quantized])
    if not spread:
        return codes, codes
    residuals = torch.cat([block.residuals[-1] for block in quantized])
    return codes, spread_last_level(codes, residuals, network.codebooks[-1].detach())


def _shape(config: QuantizerConfig, input_dim: int) -> dict[str, Any]:
    """What is needed to build the network that ``quantizer.safetensors`` fits."""
    shape: dict[str, Any] = {"kind": config.kind, "input_dim": input_dim}
    shape |= {"levels": config.levels, "codebook_size": config.codebook_size}
    if isinstance(config, RQVAEConfig):
        shape |= {"hidden_dims": config.hidden_dims, "code_dim": config.code_dim}
    return shape


def _report(
    config: QuantizerConfig, x: Tensor, codes: Tensor, row_of: Tensor, network: RQVAE | ResidualKMeans
) -> dict[str, Any]:
    """Diagnostics over all ads, and the collision rate of the distinct embeddings ``x`` beside them."""
    all_codes = codes[row_of]
    collisions, distinct = diagnostics.collisions(all_codes), diagnostics.collisions(codes)
    counts = diagnostics.code_counts(all_codes, config.codebook_size)
    rebuilt = torch.cat([network.decode(block) for block in torch.split(codes, BLOCK)])
    return {
        "kind": config.kind,
        "levels": config.levels,
        "codebook_size": config.codebook_size,
        "num_ads": len(all_codes),
        "num_distinct": len(codes),
        "collision_rate": collisions.rate,
        "collision_rate_distinct": distinct.rate,
        "colliding_share": collisions.colliding_share,
        "largest_group": collisions.largest_group,
        "usage": diagnostics.usage(counts).tolist(),
        "perplexity": diagnostics.perplexity(counts).tolist(),
        "dead_codes": (counts == 0).sum(-1).tolist(),
        "counts": counts.tolist(),
        "reconstruction_error": diagnostics.relative_error(x, rebuilt),
        "bits": diagnostics.bits(all_codes),
    }

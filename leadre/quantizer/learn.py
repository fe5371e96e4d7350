"""From embeddings to a trained network: codebooks started by k-means, then, for the RQ-VAE, gradient steps."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.quantizer import diagnostics
from leadre.quantizer.config import GradedKMeansConfig, LearnedConfig, ResidualKMeansConfig, RQVAEConfig
from leadre.quantizer.graded_kmeans import GradedKMeans, equal_bits, graded_kmeans
from leadre.quantizer.kmeans import residual_kmeans
from leadre.quantizer.network import Network
from leadre.quantizer.residual import Quantized, quantize_residuals
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.rqvae import RQVAE
from leadre.quantizer.rqvae_module import RQVAEModule
from leadre.quantizer.sinkhorn import balanced_residuals
from leadre.training.batches import Batches
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.fit import fit

VALID_ROWS = 4096
"""Rows of a batch of the validation."""
LEAST_SCALE, MOST_SCALE = 1e-15, 1e15
"""Beyond, squares of float32 lose digits or overflow, and float64 tells the scale."""


def learned(config: LearnedConfig, x: Tensor, *, out: Path, compute: ComputeConfig, logger: LoggerConfig) -> Network:
    """Train the configured network on embeddings ``(N, D)``; a training found in ``out`` is gone on with."""
    match config:
        case RQVAEConfig():
            return trained_rqvae(config, x, out=out, compute=compute, logger=logger)
        case ResidualKMeansConfig():
            generator = torch.Generator().manual_seed(config.seed)
            return ResidualKMeans(_codebooks(x[_drawn(x, config, generator)], config, generator))
        case GradedKMeansConfig():
            bits = equal_bits(len(x), config.levels) if config.bits is None else config.bits
            codebooks = graded_kmeans(
                x,
                bits=bits,
                codebook_size=config.codebook_size,
                sample=config.kmeans_sample,
                iterations=config.kmeans_iterations,
                generator=torch.Generator().manual_seed(config.seed),
            )
            return GradedKMeans(codebooks)


def shape_of(config: LearnedConfig, network: Network, input_dim: int) -> dict[str, Any]:
    """What `leadre.quantizer.load.load` needs to build the network again."""
    shape = {"kind": config.kind, "input_dim": input_dim, "codebook_sizes": network.codebook_sizes}
    if isinstance(config, RQVAEConfig):
        return shape | {"hidden_dims": config.hidden_dims, "code_dim": config.code_dim}
    return shape


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
        beta_quant=config.beta_quant,
        rotation=config.rotation,
        ema_decay=config.ema_decay if config.codebook == "ema" else None,
        quantize=_quantize_in_training(config),
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
        Batches(plan, partial(_batch, x)),
        out=out,
        compute=compute,
        logger=logger,
        name="codes",
        valid=list(torch.split(x, VALID_ROWS)) if config.validations else None,
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
        generator=torch.Generator().manual_seed(config.seed),
    )
    moments = diagnostics.moments(x)
    network.mean.copy_(moments.mean)
    if moments.variance:  # equal embeddings have no scale of their own
        network.mean.copy_(x.mean(0))
        scale = float((x - network.mean).square_().mean().sqrt())
        fits = LEAST_SCALE < scale < MOST_SCALE
        network.scale.fill_(scale if fits else (moments.variance / x.shape[1]) ** 0.5)
    generator = torch.Generator().manual_seed(config.seed)
    rows = _drawn(x, config, generator)
    latents = torch.cat([network.latents(x[some]) for some in torch.split(rows, diagnostics.BLOCK)])
    network.codebooks.data.copy_(_codebooks(latents, config, generator))
    return network


def _batch(x: Tensor, rows: NDArray[np.int64], whole: NDArray[np.int64]) -> Tensor:
    """The embeddings of a rank's part of a batch."""
    if not len(rows):
        raise ValueError(
            f"a batch has {len(whole)} rows, fewer than there are ranks: raise quantizer.batch_size or lower "
            "compute.devices"
        )
    return x[torch.from_numpy(rows)]


def _quantize_in_training(config: RQVAEConfig) -> Callable[[Tensor, Tensor], Quantized]:
    if config.sinkhorn_epsilon is None:
        return quantize_residuals
    return partial(
        balanced_residuals,
        epsilon=config.sinkhorn_epsilon,
        iterations=config.sinkhorn_iterations,
        levels=config.sinkhorn_levels,
    )


def _drawn(x: Tensor, config: RQVAEConfig | ResidualKMeansConfig, generator: torch.Generator) -> Tensor:
    """The rows that k-means looks at."""
    return torch.randperm(len(x), generator=generator)[: config.kmeans_sample]


def _codebooks(z: Tensor, config: RQVAEConfig | ResidualKMeansConfig, generator: torch.Generator) -> Tensor:
    return residual_kmeans(
        z,
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

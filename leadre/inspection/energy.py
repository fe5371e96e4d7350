"""How much of the vectors each level leaves over for the next, and how well the codes rebuild the embeddings."""

import torch
from torch import Tensor

from leadre.quantizer.diagnostics import BLOCK, relative_error
from leadre.quantizer.network import Network


@torch.no_grad()
def energy_left(network: Network, x: Tensor) -> list[float | None]:
    """The share that each level leaves over of what it had to code, with the nearest codes.

    That is ||r_(l+1)||^2 / ||r_l||^2, summed over the ads. What the first level had to code is measured from its mean,
    as an error is: the product over the levels is the relative error of the nearest codes, in the space that the
    network codes in (of an RQ-VAE that of its encoder).

    Args:
        network: M levels.
        x: ``(N, D)`` embeddings.

    Returns:
        M shares; None where there was nothing to code.
    """
    energies = torch.zeros(len(network.codebooks) + 1, dtype=torch.float64)
    moved = torch.zeros(network.codebooks[0].shape[1], dtype=torch.float64)
    start: Tensor | None = None
    for block in torch.split(x, BLOCK):
        quantized = network.quantize(block)
        last = quantized.residuals[-1] - quantized.codewords[-1]
        residuals = torch.stack([*quantized.residuals, last]).double()
        start = residuals[0, 0].clone() if start is None else start
        residuals[0] -= start  # exact where all vectors are equal, unlike the mean
        energies += residuals.square().sum((1, 2))
        moved += residuals[0].sum(0)
    energies[0] -= moved.square().sum() / len(x)
    had, kept = energies[:-1].tolist(), energies[1:].tolist()
    return [after / before if before > 0 else None for before, after in zip(had, kept, strict=True)]


@torch.no_grad()
def reconstruction_error(network: Network, x: Tensor, codes: Tensor) -> float:
    """The relative error of embeddings ``(N, D)`` rebuilt from the codes ``(N, M)`` they have, spread ones too."""
    return relative_error(x, torch.cat([network.decode(block) for block in torch.split(codes, BLOCK)]))

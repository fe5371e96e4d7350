"""Codebooks that follow their vectors by moving averages instead of gradients.

Source: van den Oord et al. 2017, appendix A.1, with the smoothing of SoundStream (Zeghidour et al. 2021).
"""

import torch
from torch import Tensor

SMOOTHING = 1e-5


def code_sums(codes: Tensor, residuals: Tensor, codebook_size: int) -> Tensor:
    """Add up, for each code, the residuals that took it.

    Args:
        codes: ``(B, M)`` int64.
        residuals: ``(M, B, d)``.
        codebook_size: Number of codes K a level.

    Returns:
        ``(M, K, d)``.
    """
    levels = len(residuals)
    flat = codes.T + codebook_size * torch.arange(levels, device=codes.device)[:, None]
    sums = residuals.new_zeros(levels * codebook_size, residuals.shape[-1])
    return sums.index_add_(0, flat.flatten(), residuals.flatten(0, 1)).view(levels, codebook_size, -1)


def averaged(sizes: Tensor, sums: Tensor) -> Tensor:
    """The codes that moving averages stand for.

    Args:
        sizes: ``(M, K)`` moving average of how many vectors take a code.
        sums: ``(M, K, d)`` moving average of their sum.

    Returns:
        ``(M, K, d)``; sizes are smoothed (Laplace), so that a code which nothing takes stays finite.
    """
    total = sizes.sum(-1, keepdim=True)
    smoothed = (sizes + SMOOTHING) / (total + sizes.shape[-1] * SMOOTHING) * total
    return sums / smoothed[..., None]

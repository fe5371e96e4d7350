"""Balanced assignment: in a batch, every code gets about as many vectors as any other.

Source: Sinkhorn-Knopp as in SwAV (Caron et al. 2020, 3.1) and LC-Rec (Zheng et al. 2024, 3.1), which balances the last
level to part items that would share their codes. Only training assigns so; an ad's own codes are the nearest.
"""

from typing import Literal

import torch
from torch import Tensor

from leadre.quantizer.residual import Quantized, nearest, quantize_residuals

FLOOR = 1e-300


def balanced_plan(distances: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Share each of B vectors out to K codes, to near ones sooner, so that every code gets B / K in all.

    Args:
        distances: ``(B, K)`` squared distances; brought to -1..1 first (LC-Rec), so that epsilon has no unit.
        epsilon: The smaller, the harder each vector goes to one code.
        iterations: Rounds of scaling columns, then rows, after the rows have been scaled once.

    Returns:
        ``(B, K)`` float64: rows sum to 1, and columns nearly to B / K.
    """
    wide = distances.double()
    half_range = ((wide.max() - wide.min()) / 2).clamp(min=FLOOR)
    # Rows are scaled first, so only ratios inside a row count: each begins at its nearest code and cannot vanish.
    kernel = (-(wide - wide.amin(-1, keepdim=True)) / half_range / epsilon).exp()
    rows = 1 / kernel.sum(-1)
    for _ in range(iterations):
        columns = len(wide) / wide.shape[1] / (kernel.T @ rows).clamp(min=FLOOR)
        rows = 1 / (kernel @ columns).clamp(min=FLOOR)
    return rows[:, None] * kernel * columns


def balanced_residuals(
    z: Tensor, codebooks: Tensor, *, epsilon: float, iterations: int, levels: Literal["last", "all"]
) -> Quantized:
    """Code vectors as `leadre.quantizer.residual.quantize_residuals` does, but with balanced codes.

    Args:
        z: ``(B, d)`` vectors, a training batch.
        codebooks: ``(M, K, d)``.
        epsilon: Of the plan.
        iterations: Of the plan.
        levels: Which levels are balanced; the others take the nearest codes.

    Returns:
        Codes, residuals and codewords of all levels; gradients as there.
    """

    def balanced(residual: Tensor, codebook: Tensor) -> Tensor:
        distances = torch.cdist(residual, codebook).square()
        return balanced_plan(distances, epsilon=epsilon, iterations=iterations).argmax(-1)

    before = balanced if levels == "all" else nearest
    return quantize_residuals(z, codebooks, [before] * (len(codebooks) - 1) + [balanced])

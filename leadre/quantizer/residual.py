"""Residual quantization: each level codes what the levels before it have left over (LEADRE A.1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 512
"""Vectors compared at once on the CPU: a block's scores stay in the cache."""


class Quantized(NamedTuple):
    """What residual quantization makes of B vectors of width d, with M levels.

    Attributes:
        codes: ``(B, M)`` int64, the nearest code of each level.
        residuals: ``(M, B, d)``, what each level had to code: ``residuals[0]`` is the vector itself.
        codewords: ``(M, B, d)``, the chosen codes' vectors; their sum over the levels is the quantized vector.
    """

    codes: Tensor
    residuals: Tensor
    codewords: Tensor


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Find the nearest code of each vector by squared distance.

    Args:
        x: ``(B, d)`` vectors.
        codebook: ``(K, d)`` codes.

    Returns:
        ``(B,)`` int64 codes; the lowest among equals.
    """
    # |x - e|^2 = |x|^2 - 2 (x e - |e|^2 / 2): the first term is the same for every code.
    half_norms = codebook.square().sum(-1, keepdim=True) / 2
    blocks = torch.split(x, BLOCK) if x.device.type == "cpu" else (x,)
    return torch.cat([_highest(torch.addmm(half_norms, codebook, block.T, beta=-1)) for block in blocks])


def _highest(scores: Tensor) -> Tensor:
    """Find the row of the highest score of each column, the first of equals: ``(K, B)`` gives ``(B,)`` int64."""
    if scores.device.type != "cpu" or not scores.numel():
        return scores.argmax(0)
    # argmax takes the CPU one score at a time. Max pooling finds the same row for many columns at a time, 2.3 times
    # as fast with its matrix product: the scores are an image of 1 x K pixels with B channels, channels last.
    image = scores[None, None].permute(0, 3, 1, 2)
    return functional.max_pool2d(image, (1, len(scores)), return_indices=True)[1].flatten()


def quantize_residuals(
    z: Tensor, codebooks: Tensor | Sequence[Tensor], assigns: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
) -> Quantized:
    """Code vectors level by level.

    Our choice: the residual of a later level carries its gradient to ``z`` alone and not to the codes
    of the levels before it, so that each codebook is moved by its own level.

    Args:
        z: ``(B, d)`` vectors.
        codebooks: ``(M, K, d)``, or a list where levels have codebooks ``(K_l, d)`` of different sizes.
        assigns: What gives vectors ``(B, d)`` their codes ``(B,)`` of a codebook, one a level; empty for `nearest`.

    Returns:
        Codes, residuals and codewords of all levels.
    """
    residual, codes, residuals, codewords = z, [], [], []
    for codebook, assign in zip(codebooks, assigns or [nearest] * len(codebooks), strict=True):
        code = assign(residual.detach(), codebook.detach())
        codeword = codebook[code]  # (B, d)
        codes.append(code)
        residuals.append(residual)
        codewords.append(codeword)
        residual = residual - codeword.detach()
    return Quantized(torch.stack(codes, dim=1), torch.stack(residuals), torch.stack(codewords))


def sum_of_codes(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Add up the codes' vectors: ``(B, M)`` codes and ``(M, K, d)`` codebooks give ``(B, d)``."""
    levels = torch.arange(len(codebooks), device=codes.device)
    return codebooks[levels, codes].sum(1)

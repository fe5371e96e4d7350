"""Residual k-means whose levels share the information: a level has as many codes as its budget of bits allows."""

import logging
import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from leadre.quantizer import diagnostics
from leadre.quantizer.kmeans import kmeans
from leadre.quantizer.residual import Quantized, nearest, quantize_residuals

TOLERANCE = 0.05
"""Bits that levels may exceed their budgets by: one code more or less changes a small codebook by as much."""
log = logging.getLogger(__name__)


class GradedKMeans(nn.Module):
    """Embeddings to M codes and back, through codebooks of different sizes.

    Args:
        codebooks: One ``(K_l, D)`` a level, as `graded_kmeans` finds them.
    """

    def __init__(self, codebooks: Sequence[Tensor]) -> None:
        super().__init__()
        for level, codebook in enumerate(codebooks, start=1):
            self.register_buffer(f"codebook_{level}", codebook)

    @property
    def codebooks(self) -> list[Tensor]:
        """One ``(K_l, D)`` codebook a level."""
        return list(self.buffers())

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes of each level."""
        return [len(codebook) for codebook in self.codebooks]

    def quantize(self, x: Tensor) -> Quantized:
        """Embeddings ``(N, D)`` to codes, residuals and codewords."""
        return quantize_residuals(x, self.codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(N, M)`` to the embeddings they stand for ``(N, D)``."""
        return torch.stack([codebook[level] for codebook, level in zip(self.codebooks, codes.T, strict=True)]).sum(0)


def equal_bits(num_ads: int, levels: int) -> list[float]:
    """Budgets of the levels 1 to M-1: log2 N / (M - 1/2) bits each, so that half as much is left for the last level.

    Our choice: the last level has to tell apart what stands closest together. With a whole part for it, half as many
    ads again share their nearest codes, and the error rises by half.

    Example:
        >>> equal_bits(16384, 4)
        [4.0, 4.0, 4.0]
    """
    return [math.log2(num_ads) / (levels - 0.5)] * (levels - 1)


def graded_kmeans(
    x: Tensor, *, bits: Sequence[float], codebook_size: int, sample: int, iterations: int, generator: torch.Generator
) -> list[Tensor]:
    """Find codebooks whose levels hold as many bits of the ads as they are told to.

    N ads hold log2 N bits, of which level l tells H(c_1..c_l) - H(c_1..c_(l-1)). Codebooks of one size give most
    of them to the first level and leave the last ones idle (LEADRE 6, the second future work). Here each level has
    the most codes with which the levels so far stay within the sum of their budgets, since more codes mean less
    error; the last level tells what is left, with all the codes it may have. So the first codebooks are small and
    the later ones grow: what the first cost in error, the last win back. All prefixes share a level's codes, so
    that a code keeps one meaning.

    Args:
        x: ``(N, D)`` distinct embeddings, N >= 1, on the CPU.
        bits: Budgets of the levels 1 to M-1, as `equal_bits` gives them; empty for a single level.
        codebook_size: Number of codes of the last level, and the most of any other.
        sample: How many of the embeddings the clusters are found on; the bits are counted over all.
        iterations: Lloyd's steps of a k-means.
        generator: Draws the sample and the starts.

    Returns:
        M codebooks ``(K_l, D)``. What a level leaves of its budget goes to the next one; a warning tells where all
        the codes it may have are too few.

    Raises:
        ValueError: If the budgets exceed log2 N together.
    """
    _check(bits, num_ads=len(x))
    rows = torch.randperm(len(x), generator=generator)[:sample]
    prefix, residual = torch.zeros(len(x), dtype=torch.int64), x
    codebooks: list[Tensor] = []
    for budget in [*accumulate(bits), math.inf]:
        size, draws = codebook_size, generator.get_state()
        while True:
            generator.set_state(draws)  # so that the tries differ by their size alone
            codebook = kmeans(residual[rows], size, iterations=iterations, generator=generator)
            code = nearest(residual, codebook)
            longer = torch.unique(prefix * size + code, return_inverse=True)[1]  # numbers below N cannot overflow
            excess = _entropy(longer) - budget
            if excess <= TOLERANCE or size == 1:
                break
            # Without a code, a level loses at most its share of log2 K bits: this comes near from above.
            size = max(1, min(size - 1, round(size * 2**-excess)))
        if size == codebook_size and -math.inf < excess < -TOLERANCE:
            level = len(codebooks) + 1
            log.warning("level %s: %s codes tell %.2f bits too few; the next level has them, too", level, size, -excess)
        codebooks.append(codebook)
        prefix, residual = longer, residual - codebook[code]
    return codebooks


def _check(bits: Sequence[float], *, num_ads: int) -> None:
    if sum(bits) > math.log2(num_ads) + 1e-6:
        told = ", ".join(f"{share:.2f}" for share in bits)
        raise ValueError(
            f"bits [{told}] add up to {sum(bits):.2f}, but {num_ads} distinct ads hold only log2 N = "
            f"{math.log2(num_ads):.2f}: lower them, or use null, which shares evenly"
        )


def _entropy(groups: Tensor) -> float:
    """Entropy in bits of the sizes of groups numbered 0, 1, ...: each ad's group ``(N,)``."""
    return float(diagnostics.entropy(torch.bincount(groups))) / math.log(2)

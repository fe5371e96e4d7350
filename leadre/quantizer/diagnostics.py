"""How well codes tell ads apart, and how evenly the codebooks are used: pure functions of codes."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 4096
"""Rows looked at once, to bound memory."""
ROUNDING = 1e-6
"""Differences below this share of the largest number are rounding."""


class Collisions(NamedTuple):
    """How many of N ads share all their codes with another ad.

    Attributes:
        rate: 1 - distinct code lists / N.
        colliding_share: Share of the ads that have the codes of another ad.
        largest_group: The most ads with the same codes; the extra code must tell so many apart.
        pair_rate: Share of the pairs of ads that have the same codes, sum n (n - 1) / N (N - 1) over the groups of
            n ads; 0 for one ad.
    """

    rate: float
    colliding_share: float
    largest_group: int
    pair_rate: float


class SizeClass(NamedTuple):
    """The groups of ``smallest`` to ``largest`` ads: how many there are, and how many ads are in them."""

    smallest: int
    largest: int
    groups: int
    ads: int


class Moments(NamedTuple):
    """Mean ``(D,)`` float64 of embeddings, and the mean of their squared distances to it: 0 where all are equal."""

    mean: Tensor
    variance: float


def prefix_groups(codes: Tensor) -> list[Tensor]:
    """Number the distinct prefixes of code lists.

    Args:
        codes: ``(N, M)`` int64, codes >= 0.

    Returns:
        One ``(N,)`` int64 a level: ads with the same codes up to that level have the same number, and the numbers
        are in the lexicographic order of the prefixes.

    Example:
        >>> [groups.tolist() for groups in prefix_groups(torch.tensor([[5, 0], [2, 9], [5, 1]]))]
        [[1, 0, 1], [1, 0, 2]]
    """
    width = int(codes.max()) + 1
    groups, prefix = [], torch.zeros_like(codes[:, 0])
    for level in codes.T:
        # Numbers of prefixes stay below N, so that this cannot overflow however many levels there are.
        prefix = torch.unique(prefix * width + level, return_inverse=True)[1]
        groups.append(prefix)
    return groups


def collisions(codes: Tensor) -> Collisions:
    """Count the ads that share all their codes, from codes ``(N, M)``, N >= 1.

    Example:
        >>> collisions(torch.tensor([[1, 1], [1, 1], [1, 2], [0, 0]]))
        Collisions(rate=0.25, colliding_share=0.5, largest_group=2, pair_rate=0.16666666666666666)
    """
    return group_collisions(prefix_groups(codes)[-1])


def group_collisions(groups: Tensor) -> Collisions:
    """Count the ads that share their group, from the numbers ``(N,)`` of the groups of all or some ads, N >= 1."""
    sizes = torch.bincount(groups)
    sizes = sizes[sizes > 0]
    return Collisions(
        rate=1 - len(sizes) / len(groups),
        colliding_share=int(sizes[sizes > 1].sum()) / len(groups),
        largest_group=int(sizes.max()),
        pair_rate=int((sizes * (sizes - 1)).sum()) / max(1, len(groups) * (len(groups) - 1)),
    )


def size_classes(sizes: Tensor) -> list[SizeClass]:
    """Sort groups by their sizes into 1, 2, 3-4, 5-8, 9-16, ... up to the largest.

    Args:
        sizes: ``(G,)`` int64, how many ads each group has, >= 1.

    Example:
        >>> [tuple(one) for one in size_classes(torch.tensor([1, 1, 5, 4]))]
        [(1, 1, 2, 2), (2, 2, 0, 0), (3, 4, 1, 4), (5, 8, 1, 5)]
    """
    bounds = [0, *(2**power for power in range(int(sizes.max() - 1).bit_length() + 1))]
    told = []
    for below, most in pairwise(bounds):
        inside = sizes[(sizes > below) & (sizes <= most)]
        told.append(SizeClass(below + 1, most, len(inside), int(inside.sum())))
    return told


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """Count how many ads have each code: codes ``(N, M)`` give ``(M, K)`` int64."""
    # And no bincount, for which the CPU would wait for the device to tell it the largest code.
    counts = torch.zeros(codes.shape[1], codebook_size, dtype=torch.int64, device=codes.device)
    return counts.scatter_add_(1, codes.T, torch.ones_like(codes.T))


def usage(counts: Tensor) -> Tensor:
    """Share of each level's codes that some ad has: counts ``(M, K)`` give ``(M,)`` in 0..1."""
    return (counts > 0).double().mean(-1)


def perplexity(counts: Tensor) -> Tensor:
    """Effective number of codes a level: exp of the entropy of their shares; ``(M, K)`` gives ``(M,)`` in 1..K.

    Example:
        >>> perplexity(torch.tensor([[3, 3, 0], [4, 0, 0]])).tolist()
        [2.0, 1.0]
    """
    return entropy(counts).exp()


def entropy(counts: Tensor) -> Tensor:
    """Entropy in nats of the shares along the last axis: ``(..., K)`` counts give ``(...,)``."""
    shares = counts.double() / counts.sum(-1, keepdim=True)
    terms: Tensor = torch.special.xlogy(shares, shares)
    return 0.0 - terms.sum(-1)  # and not -0.0 for a single outcome


def bits(codes: Tensor) -> list[float]:
    """Information that each level adds: H(c_1..c_l) - H(c_1..c_(l-1)), in bits.

    The sum is the entropy of the whole code list, at most log2 N: with few ads the later levels have little left
    to add, however good they are.

    Args:
        codes: ``(N, M)`` int64, N >= 1.

    Returns:
        M numbers, each >= 0 but for rounding.
    """
    return group_bits(prefix_groups(codes))


def group_bits(groups: list[Tensor]) -> list[float]:
    """`bits`, from the groups that `prefix_groups` makes of the codes."""
    whole = [float(entropy(torch.bincount(prefixes))) / math.log(2) for prefixes in groups]
    return [after - before for before, after in zip([0.0, *whole], whole, strict=False)]


def moments(x: Tensor) -> Moments:
    """Mean and variance of embeddings ``(N, D)`` in float64, which sums up equal numbers without a rest."""
    blocks = torch.split(x, BLOCK)
    mean = torch.stack([block.sum(0, dtype=torch.float64) for block in blocks]).sum(0) / len(x)
    variance = sum(float((block - mean).square().sum()) for block in blocks) / len(x)
    largest = max(abs(float(extreme)) for extreme in x.aminmax())
    rounding = x.shape[1] * (ROUNDING * largest) ** 2
    return Moments(mean, variance if variance > rounding else 0.0)


def relative_error(x: Tensor, rebuilt: Tensor) -> float:
    """Squared error of a reconstruction over that of the mean vector: 0 is perfect, 1 is no better than the mean.

    Args:
        x: ``(N, D)``.
        rebuilt: ``(N, D)``.

    Returns:
        The ratio; 0 where all rows of ``x`` are equal, because the mean is perfect then.
    """
    variance = moments(x).variance
    return squared_error(x, rebuilt) / len(x) / variance if variance else 0.0


def squared_error(x: Tensor, rebuilt: Tensor) -> float:
    """Sum of the squared distances between the rows of two ``(N, D)``."""
    pairs = zip(torch.split(x, BLOCK), torch.split(rebuilt, BLOCK), strict=True)
    return sum(float((block - other).double().square().sum()) for block, other in pairs)

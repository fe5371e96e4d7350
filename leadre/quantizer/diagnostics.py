"""How well codes tell ads apart, and how evenly the codebooks are used: pure functions of codes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Collisions(NamedTuple):
    """How many of N ads share all their codes with another ad.

    Attributes:
        rate: 1 - distinct code lists / N.
        colliding_share: Share of the ads that have the codes of another ad.
        largest_group: The most ads with the same codes; the extra code must tell so many apart.
    """

    rate: float
    colliding_share: float
    largest_group: int


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
        Collisions(rate=0.25, colliding_share=0.5, largest_group=2)
    """
    sizes = torch.bincount(prefix_groups(codes)[-1])
    return Collisions(
        rate=1 - len(sizes) / len(codes),
        colliding_share=int(sizes[sizes > 1].sum()) / len(codes),
        largest_group=int(sizes.max()),
    )


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """Count how many ads have each code: codes ``(N, M)`` give ``(M, K)`` int64."""
    return torch.stack([torch.bincount(level, minlength=codebook_size) for level in codes.T])


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
    return -terms.sum(-1)


def bits(codes: Tensor) -> list[float]:
    """Information that each level adds: H(c_1..c_l) - H(c_1..c_(l-1)), in bits.

    The sum is the entropy of the whole code list, at most log2 N: with few ads the later levels have little left
    to add, however good they are.

    Args:
        codes: ``(N, M)`` int64, N >= 1.

    Returns:
        M numbers, each >= 0 but for rounding.
    """
    whole = [float(entropy(torch.bincount(groups))) / math.log(2) for groups in prefix_groups(codes)]
    return [after - before for before, after in zip([0.0, *whole], whole, strict=False)]


def relative_error(x: Tensor, rebuilt: Tensor) -> float:
    """Squared error of a reconstruction over that of the mean vector: 0 is perfect, 1 is no better than the mean.

    Args:
        x: ``(N, D)``.
        rebuilt: ``(N, D)``.

    Returns:
        The ratio; 0 where all rows of ``x`` are equal, because the mean is perfect then.
    """
    spread = float((x - x.mean(0)).double().square().sum())
    return float((x - rebuilt).double().square().sum()) / spread if spread else 0.0

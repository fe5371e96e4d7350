"""Are ads that share codes alike? Pairs of ads drawn by the prefix they share, and their cosine."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from leadre.quantizer.diagnostics import prefix_groups


class Likeness(NamedTuple):
    """The cosine of the pairs of ads that share a prefix of one length, and no longer one.

    Attributes:
        shared: How many codes they share; None for pairs drawn from all.
        pairs: How many pairs were drawn.
        mean: Their mean cosine; None, as below, where there is no such pair.
        low: A tenth of the pairs is below.
        high: A tenth of the pairs is above.
    """

    shared: int | None
    pairs: int
    mean: float | None
    low: float | None
    high: float | None


def likeness(x: Tensor, codes: Tensor, *, rows: Tensor, num_pairs: int, generator: torch.Generator) -> list[Likeness]:
    """Measure the cosine by length of the shared prefix.

    For each length, pairs are drawn among all that share so many codes or more; among those of exactly one length
    each is as likely as another, so that the draws can be put together.

    Args:
        x: ``(N, D)`` embeddings.
        codes: ``(N, M)`` int64.
        rows: ``(U,)`` int64, the ads that pairs are made of.
        num_pairs: Pairs drawn a length.
        generator: Draws them.

    Returns:
        One entry a length 0, 1, ..., M; the last entry is that of pairs drawn from all.
    """
    partitions = [torch.zeros_like(rows), *prefix_groups(codes[rows])]
    drawn = [rows[draw_pairs(groups, num_pairs, generator=generator)] for groups in partitions]
    pairs = torch.cat(drawn)
    cosines = torch.cat([cosine_similarity(x[block[:, 0]], x[block[:, 1]]).double() for block in drawn])
    shared = shared_codes(codes[pairs[:, 0]], codes[pairs[:, 1]])
    by_length = [_likeness(cosines[shared == length], length) for length in range(codes.shape[1] + 1)]
    return [*by_length, _likeness(cosines[: len(drawn[0])], None)]


def draw_pairs(groups: Tensor, num_pairs: int, *, generator: torch.Generator) -> Tensor:
    """Draw pairs of two different ads of one group, each such pair as likely as another, with replacement.

    Args:
        groups: ``(N,)`` int64, each ad's group.
        num_pairs: P.
        generator: Draws them.

    Returns:
        ``(P, 2)`` int64 rows; ``(0, 2)`` where every ad is alone.
    """
    order, sizes = groups.argsort(stable=True), torch.bincount(groups)
    pairs = sizes * (sizes - 1)  # ordered ones, so that a number tells a pair
    ends = pairs.cumsum(0)
    if not int(ends[-1]):
        return torch.empty(0, 2, dtype=torch.int64)
    number = torch.randint(int(ends[-1]), (num_pairs,), generator=generator)
    group = torch.searchsorted(ends, number, right=True)
    number = number - (ends - pairs)[group]
    others = sizes[group] - 1
    first, second = number // others, number % others
    second = second + (second >= first)  # past the first: an ad makes no pair with itself
    start = (sizes.cumsum(0) - sizes)[group]
    return order[torch.stack([start + first, start + second], dim=1)]


def shared_codes(codes: Tensor, others: Tensor) -> Tensor:
    """Count the codes that code lists share from the first on: ``(..., M)`` twice gives ``(...,)``.

    Example:
        >>> shared_codes(torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([[1, 0, 3], [1, 2, 3]])).tolist()
        [1, 3]
    """
    return (codes == others).cumprod(-1).sum(-1)


def _likeness(cosines: Tensor, shared: int | None) -> Likeness:
    if not len(cosines):
        return Likeness(shared, 0, None, None, None)
    ordered = cosines.sort().values  # torch.quantile refuses more than 16 million
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.1, 0.9))
    return Likeness(shared, len(cosines), float(cosines.mean()), low, high)

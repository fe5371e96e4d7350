"""Bits: how much there is to tell of the ads, and how much of their category the levels tell. Functions of codes."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from leadre.quantizer.diagnostics import entropy, prefix_groups


class Purity(NamedTuple):
    """Pairs with the same codes up to a level, of all pairs that have a category.

    Attributes:
        pairs: How many.
        same_category: Share of them that share their category, too; None where there is no pair.
    """

    pairs: int
    same_category: float | None


def most_bits(codes: Tensor, text: Tensor) -> float:
    """The most that codes can tell: which text an ad has, each text as likely as there are ads with it.

    Where ads of one text have different codes, as those given ad by ad may, which of these it has counts, too.

    Args:
        codes: ``(N, M)`` int64, N >= 1.
        text: ``(N,)`` int64 numbers of the texts.

    Example:
        >>> most_bits(torch.tensor([[0], [0], [1], [1]]), torch.tensor([5, 5, 5, 7]))
        1.5
    """
    return _bits(_both(prefix_groups(codes)[-1], text))


def evenness(added: list[float]) -> float | None:
    """How evenly levels share the information: the entropy of their shares over its most, log M.

    Returns:
        1 where all levels add as much, 0 where one level tells everything; None for one level, or nothing told.

    Example:
        >>> evenness([2.0, 2.0]), evenness([3.0, 0.0])
        (1.0, 0.0)
    """
    bits = torch.tensor(added, dtype=torch.float64).clamp(min=0)  # a level that adds nothing is -1e-16 at times
    return float(entropy(bits)) / math.log(len(added)) if len(added) > 1 and bits.sum() > 0 else None


def category_bits(codes: Tensor, category: Tensor) -> list[float]:
    """What each level adds to the knowledge of the category: I(category; c_l | c_<l), in bits.

    The plug-in estimate: it lies too high, the more so the fewer rows a code list has. In the end every text has codes
    of its own, and these tell its category, whatever they mean. Look at `shuffled_category_bits` beside it.

    Args:
        codes: ``(N, M)`` int64, N >= 1; one row a text, for copies of a text share their codes, whatever these mean.
        category: ``(N,)`` int64 numbers from 0 on.

    Example:
        >>> category_bits(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 0, 1, 1]))
        [1.0, 0.0]
    """
    return [_told(category, before, groups) for before, groups in _levels(codes)]


def shuffled_category_bits(
    codes: Tensor, category: Tensor, *, shuffles: int, generator: torch.Generator
) -> list[float]:
    """What `category_bits` finds on the mean where there is nothing to find.

    For each level the categories are dealt out anew among the ads that the levels before cannot tell apart, so that
    it is held against a level of as many codes that knows no more than those before it.
    """
    means = []
    for before, groups in _levels(codes):
        dealt = [_dealt(category, before, generator) for _ in range(shuffles)]
        means.append(sum(_told(anew, before, groups) for anew in dealt) / shuffles)
    return means


def purities(codes: Tensor, category: Tensor) -> list[Purity]:
    """Do ads that share codes share their category? Over all pairs, none drawn.

    Args:
        codes: ``(N, M)`` int64; one row a text, as for `category_bits`.
        category: ``(N,)`` int64 numbers from 0 on.

    Returns:
        M + 1 entries: of the pairs with the same first 0 (these are all: chance), 1, ..., M codes.

    Example:
        >>> found = purities(torch.tensor([[0, 0], [0, 1], [1, 0]]), torch.tensor([3, 3, 3]))
        >>> [tuple(length) for length in found]
        [(3, 1.0), (1, 1.0), (0, None)]
    """
    told = []
    for groups in [torch.zeros_like(category), *prefix_groups(codes)]:
        pairs = _pairs(groups)
        told.append(Purity(pairs, _pairs(_both(groups, category)) / pairs if pairs else None))
    return told


def _levels(codes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The groups that the levels before tell apart, and those with the level, level by level."""
    return pairwise([torch.zeros_like(codes[:, 0]), *prefix_groups(codes)])


def _told(category: Tensor, before: Tensor, groups: Tensor) -> float:
    """H(category | before) - H(category | groups), where ``groups`` parts ``before``."""
    less, more = (_bits(_both(known, category)) - _bits(known) for known in (before, groups))
    return less - more


def _dealt(category: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """The categories in a random order within each group."""
    mixed = torch.randperm(len(groups), generator=generator)
    anew = torch.empty_like(category)
    anew[groups.argsort(stable=True)] = category[mixed[groups[mixed].argsort(stable=True)]]
    return anew


def _both(groups: Tensor, others: Tensor) -> Tensor:
    """Number the pairs of two groupings, from 0 on."""
    numbers: Tensor = torch.unique(groups * (int(others.max()) + 1) + others, return_inverse=True)[1]
    return numbers


def _bits(groups: Tensor) -> float:
    return float(entropy(torch.bincount(groups))) / math.log(2)


def _pairs(groups: Tensor) -> int:
    sizes = torch.bincount(groups)
    return int((sizes * (sizes - 1)).sum()) // 2

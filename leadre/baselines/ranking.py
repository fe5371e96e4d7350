"""The best ads of some users: what every learned baseline answers, and the exact answer from the scores of all ads."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Ranked(NamedTuple):
    """The best ads of B users, best first.

    Attributes:
        ads: ``(B, W)`` columns; -1 where there is no further ad.
        scores: ``(B, W)``; minus infinity there.
    """

    ads: Tensor
    scores: Tensor


class Rank(Protocol):
    """How a network's lists are made."""

    def __call__(self, network: Any, inputs: Any, left_out: Tensor, *, size: int) -> Ranked:  # noqa: ANN401
        """The at most ``size`` best ads of the users that ``inputs`` tell of.

        Args:
            network: In evaluation mode.
            inputs: What this network reads of B users.
            left_out: ``(2, X)``: a user, from 0 in this batch, and the column of an ad that he is not to get.
            size: How many ads are asked for.
        """
        ...


def exact(network: Any, inputs: Any, left_out: Tensor, *, size: int) -> Ranked:  # noqa: ANN401
    """Rank all ads by the network's ``scores(inputs)``, ``(B, N)``; ties by column (see `Rank`)."""
    scores: Tensor = network.scores(inputs)
    scores[left_out[0], left_out[1]] = -torch.inf
    ads = best(scores, min(size, scores.shape[1]))
    found = scores.gather(1, ads)
    return Ranked(ads.masked_fill(found.isneginf(), -1), found)


def best(scores: Tensor, size: int) -> Tensor:
    """The columns ``(B, size)`` of the highest scores of each row, ties by column.

    It is the beginning of a stable sort, in a twentieth of its time: only scores that may be in it are sorted.

    Example:
        >>> best(torch.tensor([[1.0, 2.0, 2.0, 0.0, 1.0]]), 3).tolist()
        [[1, 2, 0]]
    """
    lowest = scores.topk(size).values[:, -1:]
    row, column = (scores >= lowest).nonzero().unbind(1)
    order = scores[row, column].argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    first = torch.searchsorted(row, torch.arange(len(scores), device=row.device))
    return column[order][first[:, None] + torch.arange(size, device=row.device)]

"""HR@K and NDCG@K while a model is trained, over batches and over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Retrieval(Metric):
    """HR@K and NDCG@K of generated lists with one true ad a user; equal to `leadre.metrics.ranking` on all users.

    It keeps sums and counts, not lists, so that batches and processes of unequal size weigh by their users.

    Args:
        ks: The cuts, each 1 or more.

    Raises:
        ValueError: If ``ks`` is empty or holds a number below 1.

    Example:
        >>> metric = Retrieval(ks=(1, 4))
        >>> metric.update(torch.tensor([[5, 7, 9]]), torch.tensor([9]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'hr@1': 0.0, 'ndcg@1': 0.0, 'hr@4': 1.0, 'ndcg@4': 0.5}
    """

    hits: Tensor
    gains: Tensor
    users: Tensor

    full_state_update = False
    higher_is_better = True

    def __init__(self, ks: Sequence[int]) -> None:
        super().__init__()
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {tuple(ks)}, must hold cuts of 1 or more: (1, 4, 8) are the paper's")
        self.ks = tuple(ks)
        self.add_state("hits", torch.zeros(len(ks), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("gains", torch.zeros(len(ks)), dist_reduce_fx="sum")
        self.add_state("users", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rows: Tensor, targets: Tensor) -> None:
        """Add a batch of users.

        Args:
            rows: ``(B, W)`` catalog rows, best first, -1 where there is no ad.
            targets: ``(B,)`` the true ad's catalog row.

        Raises:
            ValueError: If the shapes do not fit, or a target is below 0: leave users without a target out.
        """
        if rows.ndim != 2 or targets.shape != rows.shape[:1]:
            raise ValueError(f"rows is {tuple(rows.shape)} and targets {tuple(targets.shape)}: must be (B, W) and (B,)")
        if bool((targets < 0).any()):
            raise ValueError("targets holds a number below 0: leave users without a target in the catalog out")
        ranks = target_ranks(rows, targets)
        for place, k in enumerate(self.ks):
            inside = (ranks > 0) & (ranks <= k)
            self.hits[place] += inside.sum()
            self.gains[place] += (1 / torch.log2(ranks[inside] + 1.0)).sum()
        self.users += len(rows)

    def compute(self) -> dict[str, Tensor]:
        """``hr@k`` and ``ndcg@k`` of each cut over all users so far; NaN before the first one."""
        values = {}
        for place, k in enumerate(self.ks):
            values[f"hr@{k}"] = self.hits[place] / self.users
            values[f"ndcg@{k}"] = self.gains[place] / self.users
        return values


def target_ranks(rows: Tensor, targets: Tensor) -> Tensor:
    """The place of each target in its list, from 1 on, after duplicates are dropped.

    Args:
        rows: ``(B, W)`` catalog rows, best first.
        targets: ``(B,)`` catalog rows.

    Returns:
        ``(B,)`` int64, 0 where the target is missing.

    Example:
        >>> target_ranks(torch.tensor([[5, 5, 9], [5, 6, 7]]), torch.tensor([9, 9])).tolist()
        [2, 0]
    """
    same = (rows[:, :, None] == rows[:, None, :]).tril(-1)  # (B, W, W): the same ad stands further in front
    duplicate = same.any(dim=2) & (rows >= 0)
    places = (~duplicate).cumsum(dim=1)
    found = (rows == targets[:, None]) & ~duplicate
    return (found * places).sum(dim=1)

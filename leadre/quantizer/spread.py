"""Ads that would share all their codes, told apart at the last level where it has codes to spare."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leadre.quantizer.diagnostics import prefix_groups


def spread_last_level(codes: Tensor, residuals: Tensor, codebook: Tensor, taken: Tensor | None = None) -> Tensor:
    """Give ads with the same codes different last codes, as near to their residuals as can be.

    Our choice, off in the paper's setting: among the ads with the same first M-1 codes, where one has the last code of
    another too, the last codes are assigned anew, each at most once, with the least sum of squared distances. The extra
    code is then needed only where such a group has more ads than the level has free codes: those that fit best are
    told apart, the rest keep their nearest code. LC-Rec (Zheng et al. 2024) does the like by Sinkhorn's iterations.

    Args:
        codes: ``(N, M)`` int64 codes of ads with distinct texts.
        residuals: ``(N, d)``, what the last level has to code.
        codebook: ``(K, d)``, the last level's codes.
        taken: ``(T, M)`` codes of other ads, which keep them.

    Returns:
        ``(N, M)`` codes; the first M-1 columns are unchanged.
    """
    spread = codes.clone()
    if taken is None:
        taken = codes[:0]
    if not len(codes):
        return spread
    groups = prefix_groups(torch.cat([codes, taken]))
    parents = groups[-2] if len(groups) > 1 else torch.zeros_like(groups[-1])
    ads, others = torch.split(parents, [len(codes), len(taken)])
    shared = torch.bincount(groups[-1])[groups[-1][: len(codes)]] > 1
    crowded = torch.unique(ads[shared])
    for rows, known in zip(_members(ads, crowded), _members(others, crowded), strict=True):
        free = torch.ones(len(codebook), dtype=torch.bool)
        free[taken[known, -1]] = False
        choice = torch.nonzero(free).flatten()
        distances = torch.cdist(residuals[rows].double(), codebook[choice].double()).square()
        moved, assigned = linear_sum_assignment(distances.numpy())
        spread[rows[torch.from_numpy(moved)], -1] = choice[torch.from_numpy(assigned)]
    return spread


def _members(parents: Tensor, wanted: Tensor) -> list[Tensor]:
    """The rows of each wanted parent (ascending), in order."""
    ordered, rows = parents.sort(stable=True)
    starts, ends = torch.searchsorted(ordered, wanted), torch.searchsorted(ordered, wanted, right=True)
    return [rows[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

"""Ads that share all their codes, told apart at the last level where it has codes to spare."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from leadre.quantizer.diagnostics import prefix_groups


def spread_last_level(codes: Tensor, residuals: Tensor, codebook: Tensor) -> Tensor:
    """Give ads with the same codes different last codes, as near to their residuals as can be.

    Our choice, off in the paper's setting: among the ads with the same first M-1 codes, where two share the last one
    too, the last codes are assigned anew, each at most once, with the least sum of squared distances. The extra
    code is then needed only where such a group has more ads than the level has codes: the K that fit best are told
    apart, the rest keep their nearest code. LC-Rec (Zheng et al. 2024) does the like by Sinkhorn's iterations.

    Args:
        codes: ``(N, M)`` int64 codes of ads with distinct embeddings.
        residuals: ``(N, d)``, what the last level has to code.
        codebook: ``(K, d)``, the last level's codes.

    Returns:
        ``(N, M)`` codes; the first M-1 columns are unchanged.
    """
    spread = codes.clone()
    groups = prefix_groups(codes)
    parent = groups[-2] if len(groups) > 1 else torch.zeros_like(groups[-1])
    shared = torch.bincount(groups[-1])[groups[-1]] > 1
    order = parent.argsort(stable=True)
    crowded = torch.zeros(int(parent.max()) + 1, dtype=torch.bool).index_fill_(0, parent[shared], True)
    for group, rows in enumerate(torch.split(order, torch.bincount(parent).tolist())):
        if crowded[group]:
            distances = torch.cdist(residuals[rows].double(), codebook.double()).square()
            ads, assigned = linear_sum_assignment(distances.numpy())
            spread[rows[torch.from_numpy(ads)], -1] = torch.from_numpy(assigned)
    return spread

"""Are new texts unlike those that are known? Told by embeddings alone, whatever the quantizer makes of them."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from leadre.quantizer.diagnostics import BLOCK

LEAST = 20
"""With fewer texts on a side, a mean tells nothing."""
QUERIES = 256
POOL = 10_000
"""Texts drawn at most: those whose nearest neighbor is looked for, and those it is looked for among."""
TINY = 1e-6
"""Distances below are rounding."""


def drift(x: Tensor, known: Tensor, new: Tensor) -> float | None:
    """How many times farther new texts are from their nearest known one than known texts are from one another.

    Our choice: a quantizer rebuilds what it was trained on better than anything else, so its error on new texts is
    higher on any day. Here both sides are measured by the same rule, which no training has seen: texts held out at
    random give about 1, texts of another kind far more.

    Args:
        x: ``(N, D)`` embeddings.
        known: ``(T,)`` rows of known texts, one a text; those that are not finite are passed over.
        new: ``(U,)`` rows of new texts, likewise. Of each side at most ``QUERIES`` are drawn, always the same ones,
            and ``POOL`` known ones to search.

    Returns:
        Mean of 1 - cosine to the nearest known text, of new texts over that of known ones, each of which does not
        find itself; None with fewer than ``LEAST`` on a side, or where the known ones are all alike.
    """
    generator = torch.Generator().manual_seed(0)
    pool = x[known[torch.randperm(len(known), generator=generator)[:POOL]]]
    pool = pool[pool.isfinite().all(1)]
    asked = x[new[torch.randperm(len(new), generator=generator)[:QUERIES]]]
    if min(len(pool), len(asked)) < LEAST:
        return None
    usual = _distance(pool[:QUERIES], pool, among_themselves=True)
    return _distance(asked, pool) / usual if usual > TINY else None


def _distance(queries: Tensor, pool: Tensor, *, among_themselves: bool = False) -> float:
    """Mean of 1 - cosine to the nearest of the pool, of which the queries are the first rows or not."""
    unit, best = normalize(queries), torch.full((len(queries),), -1.0)
    for start in range(0, len(pool), BLOCK):
        cosines = unit @ normalize(pool[start : start + BLOCK]).T
        if among_themselves and start == 0:
            cosines.fill_diagonal_(-1)
        best = torch.maximum(best, cosines.amax(1))
    return float((1 - best.double()).clamp(min=0).mean())

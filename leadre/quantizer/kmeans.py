"""k-means in plain torch: greedy k-means++ start, then Lloyd's steps; alone, and level by level on residuals."""

import torch
from torch import Tensor

from leadre.quantizer.residual import nearest

START_SAMPLE = 32
"""Vectors a cluster that the start looks at: more hardly lower the error."""
START_DRAWS = 16
"""Vectors drawn for each center of the start, of which the best is kept."""
LEAST_GAIN = 1e-3
"""Lloyd's steps end where one lowers the error by a smaller share than this."""


def kmeans(x: Tensor, clusters: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Find cluster centers.

    A center that no vector is nearest to moves to the vector that is farthest from its own center. With no more
    distinct vectors than clusters, the centers are these vectors, over and over.

    Args:
        x: ``(N, d)`` vectors, N >= 1, on the CPU (where sums have one order, so that the result repeats bit by bit).
        clusters: Number of centers K.
        iterations: Number of Lloyd's steps at most; 0 leaves the k-means++ start.
        generator: Draws the start.

    Returns:
        ``(K, d)`` centers.
    """
    few = _distinct_if_few(x, clusters)
    if few is not None:
        return few[torch.arange(clusters) % len(few)]
    sample = torch.randperm(len(x), generator=generator)[: START_SAMPLE * clusters]
    centers, last_error = _greedy_start(x[sample], clusters, generator), float("inf")
    for _ in range(iterations):
        owner = nearest(x, centers)
        distances = (x - centers[owner]).square().sum(-1)
        error = float(distances.sum())
        if error > (1 - LEAST_GAIN) * last_error:
            break
        centers, last_error = _moved(x, owner, distances, centers), error
    return centers


def residual_kmeans(
    x: Tensor, *, levels: int, codebook_size: int, iterations: int, generator: torch.Generator
) -> Tensor:
    """Cluster vectors, then what the nearest centers leave over, and so on.

    Args:
        x: ``(N, d)`` vectors, N >= 1.
        levels: Number of levels M.
        codebook_size: Number of codes K a level.
        iterations: Lloyd's steps a level, at most.
        generator: Draws the starts.

    Returns:
        ``(M, K, d)`` codebooks.
    """
    codebooks, residual = [], x
    for _ in range(levels):
        centers = kmeans(residual, codebook_size, iterations=iterations, generator=generator)
        residual = residual - centers[nearest(residual, centers)]
        codebooks.append(centers)
    return torch.stack(codebooks)


def _distinct_if_few(x: Tensor, most: int) -> Tensor | None:
    """The distinct vectors ``(U, d)`` where there are no more than ``most``, else None."""
    for vectors in (x[: 2 * most], x):  # a few show it mostly, and all take long to sort
        distinct = vectors.unique(dim=0)  # type: ignore[no-untyped-call]
        if len(distinct) > most:
            return None
    return torch.as_tensor(distinct)


def _greedy_start(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Choose centers among the vectors one by one, each the best of some drawn by their squared distance to the rest.

    Source: Arthur and Vassilvitskii 2007, k-means++, and its greedy variant in their section 8.
    """
    # Squared distances stand without |x|^2, which no comparison needs; centered, they lose few digits so.
    columns = (x - x.mean(0)).T.contiguous()
    norms = columns.square().sum(0)
    chosen = torch.randint(len(x), (1,), generator=generator)
    nearest_center = _less_norm(columns, norms, chosen)[0]
    drawn = [int(chosen)]
    for points in torch.rand(clusters - 1, START_DRAWS, generator=generator, dtype=torch.float64):
        ends = (nearest_center + norms).clamp(min=0).cumsum(0, dtype=torch.float64)
        chosen = torch.searchsorted(ends, points * ends[-1], right=True).clamp(max=len(x) - 1)
        candidates = torch.minimum(_less_norm(columns, norms, chosen), nearest_center)
        best = int(candidates.sum(-1).argmin())
        nearest_center = candidates[best]
        drawn.append(int(chosen[best]))
    return x[drawn]


def _less_norm(columns: Tensor, norms: Tensor, rows: Tensor) -> Tensor:
    """Squared distances of all vectors to some, less the vectors' own norms: ``(d, N)``, ``(R,)`` give ``(R, N)``."""
    return torch.addmm(norms[rows, None], columns[:, rows].T, columns, alpha=-2)


def _moved(x: Tensor, owner: Tensor, distances: Tensor, centers: Tensor) -> Tensor:
    """One of Lloyd's steps: each center to the mean of its vectors, those without any to the vectors worst served."""
    sizes = torch.bincount(owner, minlength=len(centers))
    sums = torch.zeros_like(centers).index_add_(0, owner, x)
    moved = sums / sizes.clamp(min=1)[:, None]
    empty = torch.nonzero(sizes == 0).flatten()
    if len(empty):
        moved[empty] = x[distances.argsort(descending=True, stable=True)[: len(empty)]]
    return moved

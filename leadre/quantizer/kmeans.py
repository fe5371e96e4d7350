"""k-means in plain torch: k-means++ start, then Lloyd's steps; alone, and level by level on residuals."""

import torch
from torch import Tensor

from leadre.quantizer.residual import nearest


def kmeans(x: Tensor, clusters: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Find cluster centers.

    A center that no vector is nearest to moves to the vector that is farthest from its own center. With fewer
    distinct vectors than clusters, each has a center of its own and the rest of the centers repeat vectors.

    Args:
        x: ``(N, d)`` vectors, N >= 1, on the CPU (where sums have one order, so that the result repeats bit by bit).
        clusters: Number of centers K.
        iterations: Number of Lloyd's steps; 0 leaves the k-means++ start.
        generator: Draws the start.

    Returns:
        ``(K, d)`` centers.
    """
    centers = _plus_plus(x, clusters, generator)
    for _ in range(iterations):
        owner = nearest(x, centers)
        sizes = torch.bincount(owner, minlength=clusters)
        sums = torch.zeros_like(centers).index_add_(0, owner, x)
        moved = torch.where(sizes[:, None] > 0, sums / sizes.clamp(min=1)[:, None], centers)
        empty = torch.nonzero(sizes == 0).flatten()[: len(x)]
        farthest = (x - moved[owner]).square().sum(-1).argsort(descending=True, stable=True)
        moved[empty] = x[farthest[: len(empty)]]
        if torch.equal(moved, centers):
            break
        centers = moved
    return centers


def residual_kmeans(
    x: Tensor, *, levels: int, codebook_size: int, iterations: int, generator: torch.Generator
) -> Tensor:
    """Cluster vectors, then what the nearest centers leave over, and so on.

    Args:
        x: ``(N, d)`` vectors, N >= 1.
        levels: Number of levels M.
        codebook_size: Number of codes K a level.
        iterations: Lloyd's steps a level.
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


def _plus_plus(x: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw centers among the vectors, each with a chance of its squared distance to those drawn before.

    Source: Arthur and Vassilvitskii 2007, k-means++.
    """
    drawn = [int(torch.randint(len(x), (), generator=generator))]
    distances = (x - x[drawn[0]]).square().sum(-1).double()
    for point in torch.rand(clusters - 1, generator=generator, dtype=torch.float64):
        ends = distances.cumsum(0)
        chosen = int(torch.searchsorted(ends, point * ends[-1], right=True))
        drawn.append(min(chosen, len(x) - 1))  # past the end where every vector is a center already
        distances = torch.minimum(distances, (x - x[drawn[-1]]).square().sum(-1).double())
    return x[drawn].clone()

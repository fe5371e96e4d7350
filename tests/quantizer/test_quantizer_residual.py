"""Residual quantization and its k-means, against loops over levels in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from leadre.quantizer.kmeans import kmeans, residual_kmeans
from leadre.quantizer.residual import nearest, quantize_residuals, sum_of_codes
from leadre.quantizer.residual_kmeans import ResidualKMeans


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _by_numpy(z, codebooks):
    """The formulas of LEADRE A.1, ad by ad and level by level."""
    codes, residuals, sums = [], [], []
    for vector in z.astype(np.float64):
        residual, chosen, left, total = vector, [], [], np.zeros_like(vector)
        for codebook in codebooks.astype(np.float64):
            code = int(np.argmin(((residual - codebook) ** 2).sum(-1)))
            left.append(residual)
            chosen.append(code)
            residual = residual - codebook[code]
            total = total + codebook[code]
        codes.append(chosen)
        residuals.append(left)
        sums.append(total)
    return np.array(codes), np.array(residuals).swapaxes(0, 1), np.array(sums)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 7), st.integers(1, 5))
def test_quantization_equals_a_loop_over_ads_and_levels(seed, levels, codebook_size, dim):
    z = torch.randn(9, dim, generator=_seeded(seed))
    codebooks = torch.randn(levels, codebook_size, dim, generator=_seeded(seed + 1))
    quantized = quantize_residuals(z, codebooks)
    codes, residuals, sums = _by_numpy(z.numpy(), codebooks.numpy())
    assert quantized.codes.tolist() == codes.tolist()
    np.testing.assert_allclose(quantized.residuals.numpy(), residuals, atol=1e-5)
    np.testing.assert_allclose(quantized.codewords.sum(0).numpy(), sums, atol=1e-5)
    torch.testing.assert_close(sum_of_codes(quantized.codes, codebooks), quantized.codewords.sum(0))


def test_two_levels_by_hand():
    """5 is nearest to 4, and leaves 1; 1 is nearest to 1.5, and the sum is 5.5. 0 is nearest to 1, and leaves -1."""
    codebooks = torch.tensor([[[1.0], [4.0]], [[1.5], [-2.0]]])
    quantized = quantize_residuals(torch.tensor([[5.0], [0.0]]), codebooks)
    assert quantized.codes.tolist() == [[1, 0], [0, 1]]
    assert quantized.residuals[:, :, 0].tolist() == [[5.0, 0.0], [1.0, -1.0]]
    assert quantized.codewords.sum(0)[:, 0].tolist() == [5.5, -1.0]


def test_the_lowest_of_equal_codes_is_taken():
    assert nearest(torch.tensor([[2.0]]), torch.tensor([[3.0], [2.0], [2.0]])).tolist() == [1]


def test_kmeans_finds_clusters_that_are_apart():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (middles[:, None] + 0.1 * torch.randn(3, 20, 2, generator=_seeded())).reshape(-1, 2)
    centers = kmeans(x, 3, iterations=10, generator=_seeded())
    owner = nearest(x, centers).reshape(3, 20)
    assert (owner == owner[:, :1]).all()
    assert len(set(owner[:, 0].tolist())) == 3
    np.testing.assert_allclose(np.sort(centers.numpy(), 0), np.sort(x.reshape(3, 20, 2).mean(1).numpy(), 0), atol=1e-5)


def test_kmeans_is_as_good_as_that_of_scikit_learn():
    x = torch.randn(600, 4, generator=_seeded())
    centers = kmeans(x, 16, iterations=50, generator=_seeded())
    ours = float((x - centers[nearest(x, centers)]).square().sum())
    theirs = KMeans(16, n_init=1, random_state=0).fit(x.numpy()).inertia_
    assert ours < 1.1 * theirs


def test_each_step_of_kmeans_is_no_worse_than_the_start():
    x = torch.randn(200, 3, generator=_seeded())
    errors = []
    for iterations in (0, 1, 2, 5, 20):
        centers = kmeans(x, 12, iterations=iterations, generator=_seeded())
        errors.append(float((x - centers[nearest(x, centers)]).square().sum()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("iterations", [0, 5])
@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0]] * 5, [[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]])
def test_fewer_distinct_vectors_than_clusters_get_a_center_each(rows, iterations):
    x = torch.tensor(rows)
    centers = kmeans(x, 4, iterations=iterations, generator=_seeded())
    assert centers.shape == (4, 2)
    torch.testing.assert_close(centers[nearest(x, centers)], x)


def test_a_center_without_vectors_moves_to_the_vector_worst_served():
    """k-means++ draws 0 or 1 twice when they repeat: three clusters, three places, and 9 alone is far."""
    x = torch.tensor([[0.0]] * 50 + [[1.0]] * 50 + [[9.0]])
    for seed in range(10):
        centers = kmeans(x, 3, iterations=10, generator=_seeded(seed))
        assert sorted(centers.flatten().tolist()) == [0.0, 1.0, 9.0]


def test_each_level_of_residual_kmeans_lowers_the_error_and_the_seed_repeats_it():
    x = torch.randn(300, 6, generator=_seeded())
    shape = {"levels": 3, "codebook_size": 16, "iterations": 10}
    codebooks = residual_kmeans(x, **shape, generator=_seeded(7))
    assert torch.equal(codebooks, residual_kmeans(x, **shape, generator=_seeded(7)))
    assert not torch.equal(codebooks, residual_kmeans(x, **shape, generator=_seeded(8)))
    left = quantize_residuals(x, codebooks).residuals.square().sum((1, 2))
    rebuilt = ResidualKMeans(codebooks).decode(ResidualKMeans(codebooks).quantize(x).codes)
    errors = [*left.tolist(), float((x - rebuilt).square().sum())]
    assert all(after < 0.8 * before for before, after in pairwise(errors))

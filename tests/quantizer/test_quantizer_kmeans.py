"""k-means, against scikit-learn, by hand and by what must hold."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from leadre.quantizer.kmeans import _moved, kmeans, residual_kmeans
from leadre.quantizer.residual import nearest, quantize_residuals
from leadre.quantizer.residual_kmeans import ResidualKMeans


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _error(x, centers):
    return float((x - centers[nearest(x, centers)]).double().square().sum())


def test_kmeans_finds_clusters_that_are_apart():
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (middles[:, None] + 0.1 * torch.randn(3, 20, 2, generator=_seeded())).reshape(-1, 2)
    centers = kmeans(x, 3, iterations=10, generator=_seeded())
    owner = nearest(x, centers).reshape(3, 20)
    assert (owner == owner[:, :1]).all()
    assert len(set(owner[:, 0].tolist())) == 3
    np.testing.assert_allclose(np.sort(centers.numpy(), 0), np.sort(x.reshape(3, 20, 2).mean(1).numpy(), 0), atol=1e-5)


@pytest.mark.parametrize("clustered", [False, True])
def test_kmeans_is_as_good_as_that_of_scikit_learn(clustered):
    x = torch.randn(4000, 4, generator=_seeded())
    if clustered:
        middles = torch.randn(80, 4, generator=_seeded(1))
        x = middles[torch.randint(80, (4000,), generator=_seeded(2))] + 0.05 * x
    ours = [_error(x, kmeans(x, 64, iterations=50, generator=_seeded(seed))) for seed in range(5)]
    theirs = [KMeans(64, n_init=1, random_state=seed).fit(x.numpy()).inertia_ for seed in range(5)]
    assert sum(ours) < 1.03 * sum(theirs)


def test_the_start_alone_is_within_a_third_of_the_end():
    """Greedy draws: a draw of one vector a center leaves half as much again, a random start more."""
    x = torch.randn(3000, 4, generator=_seeded())
    start, end = (_error(x, kmeans(x, 64, iterations=steps, generator=_seeded())) for steps in (0, 50))
    assert end < start < 1.33 * end


def test_each_step_of_kmeans_is_no_worse_than_the_start():
    x = torch.randn(200, 3, generator=_seeded())
    errors = [_error(x, kmeans(x, 12, iterations=steps, generator=_seeded())) for steps in (0, 1, 2, 5, 20)]
    assert errors == sorted(errors, reverse=True)


def test_one_step_moves_each_center_to_the_mean_of_its_vectors():
    x = torch.randn(300, 3, generator=_seeded())
    start = kmeans(x, 9, iterations=0, generator=_seeded())
    owner = nearest(x, start)
    means = torch.stack([x[owner == center].mean(0) for center in range(9)])
    torch.testing.assert_close(kmeans(x, 9, iterations=1, generator=_seeded()), means)


@pytest.mark.parametrize("iterations", [0, 5])
@pytest.mark.parametrize("rows", [[[1.0, 2.0]], [[1.0, 2.0]] * 5, [[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]])
def test_fewer_distinct_vectors_than_clusters_get_a_center_each(rows, iterations):
    x = torch.tensor(rows)
    centers = kmeans(x, 4, iterations=iterations, generator=_seeded())
    assert centers.shape == (4, 2)
    torch.testing.assert_close(centers[nearest(x, centers)], x)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
def test_no_more_distinct_vectors_than_clusters_leave_no_error(seed, distinct, clusters, iterations):
    vectors = 100 + torch.randn(distinct, 3, generator=_seeded(seed))  # far from 0: the worst for rounding
    x = vectors[torch.arange(distinct * 7) % distinct]
    centers = kmeans(x, clusters, iterations=iterations, generator=_seeded(seed))
    assert centers.shape == (clusters, 3)
    assert centers.isfinite().all()
    missed = ~(x[:, None] == centers).all(-1).any(-1)
    assert distinct > clusters or not missed.any()


def test_many_equal_vectors_do_not_hide_the_few_others():
    """Among 3 x 64 vectors the first 2 x 64 are one: all the same the centers are the three that there are."""
    x = torch.tensor([[5.0]] * 190 + [[6.0], [8.0]])
    assert kmeans(x, 64, iterations=5, generator=_seeded()).unique().tolist() == [5.0, 6.0, 8.0]


def test_constant_vectors_have_one_center():
    assert kmeans(torch.full((50, 2), 3.0), 4, iterations=5, generator=_seeded()).tolist() == [[3.0, 3.0]] * 4


def test_a_center_without_vectors_moves_to_the_vector_worst_served():
    """One center of three owns nothing: it moves to 9, which is farthest from its own, and not to 7."""
    x, centers = torch.tensor([[0.0], [1.0], [7.0], [9.0]]), torch.tensor([[0.0], [1.0], [-50.0]])
    owner = nearest(x, centers)
    distances = (x - centers[owner]).square().sum(-1)
    assert _moved(x, owner, distances, centers).flatten().tolist() == [0.0, pytest.approx(17 / 3), 9.0]


def test_the_result_repeats_bit_by_bit_however_often_it_runs():
    x = torch.randn(3000, 5, generator=_seeded())
    runs = [kmeans(x, 40, iterations=10, generator=_seeded(3)) for _ in range(3)]
    assert all(torch.equal(runs[0], again) for again in runs)


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

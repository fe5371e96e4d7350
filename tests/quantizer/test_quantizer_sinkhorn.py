"""Balanced assignment: against a plain loop, by its sums, and that only training assigns so."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.quantizer.residual import quantize_residuals
from leadre.quantizer.sinkhorn import balanced_plan, balanced_residuals


def _distances(seed, rows, codes):
    return torch.rand(rows, codes, generator=torch.Generator().manual_seed(seed))


def _by_loop(distances, epsilon, iterations):
    """Scale rows, then columns and rows in turn, one by one."""
    d = distances.numpy().astype(np.float64)
    middle, half = (d.max() + d.min()) / 2, (d.max() - d.min()) / 2
    plan = np.exp(-(d - middle) / half / epsilon)
    rows, codes = d.shape
    plan = np.stack([row / row.sum() for row in plan])
    for _ in range(iterations):
        for code in range(codes):
            plan[:, code] *= rows / codes / plan[:, code].sum()
        for row in range(rows):
            plan[row] /= plan[row].sum()
    return plan


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 6), st.integers(1, 8))
def test_the_plan_equals_a_plain_loop(seed, rows, codes, iterations):
    distances = _distances(seed, rows, codes + 1)
    plan = balanced_plan(distances, epsilon=0.1, iterations=iterations)
    np.testing.assert_allclose(plan.numpy(), _by_loop(distances, 0.1, iterations), rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("epsilon", [0.05, 1.0])
def test_every_vector_is_shared_out_whole_and_every_code_gets_as_much(epsilon):
    plan = balanced_plan(_distances(0, 40, 8), epsilon=epsilon, iterations=500)
    np.testing.assert_allclose(plan.sum(1).numpy(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(0).numpy(), 5.0, rtol=1e-3)


def test_the_hardest_epsilon_stays_finite_where_one_code_is_far_from_all():
    distances = torch.cat([_distances(1, 30, 3), torch.full((30, 1), 1e6)], 1)
    plan = balanced_plan(distances, epsilon=0.003, iterations=50)
    assert plan.isfinite().all()
    np.testing.assert_allclose(plan.sum(1).numpy(), 1.0)


def test_equal_distances_share_alike():
    np.testing.assert_allclose(balanced_plan(torch.ones(3, 2), epsilon=0.003, iterations=3).numpy(), 0.5)


def test_ads_at_one_place_take_different_codes_where_the_nearest_would_be_one():
    z = torch.zeros(4, 2) + 0.01 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    codebooks = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(1))
    assert len(set(quantize_residuals(z, codebooks).codes[:, 0].tolist())) == 1
    balanced = balanced_residuals(z, codebooks, epsilon=0.003, iterations=100, levels="last")
    assert sorted(balanced.codes[:, 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(("levels", "changed"), [("last", [False, False, True]), ("all", [True, True, True])])
def test_only_the_chosen_levels_are_balanced_and_residuals_follow_the_codes(levels, changed):
    z = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    codebooks = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(1))
    plain = quantize_residuals(z, codebooks)
    balanced = balanced_residuals(z, codebooks, epsilon=0.01, iterations=100, levels=levels)
    assert (balanced.codes != plain.codes).any(0).tolist() == changed
    largest = [int(torch.bincount(level).max()) for level in balanced.codes.T]
    assert all(most <= 12 for most, is_changed in zip(largest, changed, strict=True) if is_changed)
    left = z
    for level, codebook in enumerate(codebooks):
        torch.testing.assert_close(balanced.residuals[level], left)
        torch.testing.assert_close(balanced.codewords[level], codebook[balanced.codes[:, level]])
        left = left - codebook[balanced.codes[:, level]]


def test_gradients_go_as_without_balance():
    codebooks = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    balanced = balanced_residuals(z, codebooks, epsilon=0.1, iterations=5, levels="all")
    balanced.residuals[1].sum().backward(retain_graph=True)
    assert z.grad.tolist() == torch.ones(8, 3).tolist()
    assert codebooks.grad is None
    balanced.codewords.sum().backward()
    counts = torch.stack([torch.bincount(level, minlength=4) for level in balanced.codes.T])
    assert codebooks.grad.tolist() == counts[..., None].expand(2, 4, 3).float().tolist()

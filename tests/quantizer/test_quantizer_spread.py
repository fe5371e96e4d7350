"""Spreading new ads over last codes that others have left free, against every assignment there is."""

from itertools import permutations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.quantizer.spread import spread_last_level


def test_new_ads_take_the_nearest_last_codes_that_are_free():
    """Codes at 0, 1, 5, 6. Ad 1 at 0.1: 0 and 1 are taken under its prefix, so 5 (2). Ad 2 has another prefix."""
    codebook = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    codes, taken = torch.tensor([[7, 0], [3, 0]]), torch.tensor([[7, 0], [7, 1], [3, 1]])
    spread = spread_last_level(codes, torch.tensor([[0.1], [0.1]]), codebook, taken)
    assert spread.tolist() == [[7, 2], [3, 0]]


def test_where_no_code_is_free_the_nearest_stays():
    codebook = torch.tensor([[0.0], [1.0]])
    taken = torch.tensor([[7, 0], [7, 1]])
    assert spread_last_level(torch.tensor([[7, 1]]), torch.tensor([[0.9]]), codebook, taken).tolist() == [[7, 1]]


def test_no_ads_are_spread_to_nothing():
    assert spread_last_level(torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(4, 2)).shape == (0, 3)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(0, 2))
def test_the_assignment_is_the_best_of_all(seed, num_new, num_taken):
    """One prefix, all new ads at the code that one of them is nearest to; tried against all assignments."""
    rng = np.random.default_rng(seed)
    codebook, residuals = torch.from_numpy(rng.normal(size=(5, 2))), torch.from_numpy(rng.normal(size=(num_new, 2)))
    last = torch.cdist(residuals[:1], codebook).argmin().repeat(num_new)
    codes = torch.stack([torch.zeros_like(last), last], 1)
    others = torch.from_numpy(rng.permutation(5)[:num_taken])
    taken = torch.stack([torch.zeros_like(others), others], 1)
    spread = spread_last_level(codes, residuals, codebook, taken)[:, 1].tolist()
    if num_new == 1 and last[0] not in others:
        assert spread == last.tolist()
        return
    distances = torch.cdist(residuals, codebook).square().numpy()
    free = [code for code in range(5) if code not in others.tolist()]
    costs = {way: distances[range(num_new), way].sum() for way in permutations(free, num_new)}
    assert costs[tuple(spread)] <= min(costs.values()) + 1e-12


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_none_takes_a_taken_code_while_its_prefix_has_a_free_one(seed):
    rng = np.random.default_rng(seed)
    known = np.unique(rng.integers(0, 3, size=(20, 3)), axis=0)
    codes = rng.integers(0, 3, size=(15, 3))
    codebook, residuals = torch.from_numpy(rng.normal(size=(3, 2))), torch.from_numpy(rng.normal(size=(15, 2)))
    spread = spread_last_level(torch.from_numpy(codes), residuals, codebook, torch.from_numpy(known)).numpy()
    assert spread[:, :2].tolist() == codes[:, :2].tolist()
    for prefix in np.unique(codes[:, :2], axis=0):
        before = {int(last) for *first, last in known.tolist() if first == prefix.tolist()}
        now = [int(last) for *first, last in spread.tolist() if first == prefix.tolist()]
        assert len(before | set(now)) == min(3, len(before) + len(now))

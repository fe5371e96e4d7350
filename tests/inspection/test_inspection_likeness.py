"""Pairs by shared prefix, against the exact mean over all pairs."""

from collections import Counter
from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from leadre.inspection.likeness import draw_pairs, likeness, shared_codes


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_pairs_are_of_two_different_ads_of_one_group(groups):
    numbers = torch.tensor(groups)
    pairs = draw_pairs(numbers, 50, generator=torch.Generator().manual_seed(0))
    assert len(pairs) == (50 if max(Counter(groups).values()) > 1 else 0)
    assert numbers[pairs[:, 0]].tolist() == numbers[pairs[:, 1]].tolist()
    assert bool((pairs[:, 0] != pairs[:, 1]).all())


def test_each_pair_is_as_likely_as_another():
    """Groups of 3, 1 and 2 ads have 6, 0 and 2 ordered pairs: each is an eighth of the draws."""
    groups = torch.tensor([2, 0, 2, 0, 1, 0])
    draws = draw_pairs(groups, 80000, generator=torch.Generator().manual_seed(0))
    counts = Counter(map(tuple, draws.tolist()))
    assert set(counts) == {(0, 2), (2, 0), (1, 3), (3, 1), (1, 5), (5, 1), (3, 5), (5, 3)}
    assert all(abs(count - 10000) < 500 for count in counts.values())


def test_the_means_are_near_those_over_all_pairs():
    generator = torch.Generator().manual_seed(3)
    x, codes = torch.randn(60, 3, generator=generator), torch.randint(0, 3, (60, 3), generator=generator)
    x = x + torch.nn.functional.one_hot(codes[:, 0], 3) * 2
    exact: dict[int, list[float]] = {length: [] for length in range(4)}
    for one, other in combinations(range(60), 2):
        length = int(shared_codes(codes[one], codes[other]))
        exact[length].append(float(cosine_similarity(x[one], x[other], dim=0)))
    *found, any_pair = likeness(x, codes, rows=torch.arange(60), num_pairs=20000, generator=generator)
    for length, measured in enumerate(found):
        values = torch.tensor(exact[length])
        assert measured.shared == length
        assert measured.mean == pytest.approx(float(values.mean()), abs=0.02)
        assert measured.low == pytest.approx(float(values.quantile(0.1)), abs=0.06)
        assert measured.high == pytest.approx(float(values.quantile(0.9)), abs=0.06)
    assert any_pair.mean == pytest.approx(float(torch.tensor(list(chain(*exact.values()))).mean()), abs=0.02)
    assert any_pair.pairs == 20000


def test_lengths_without_a_pair_have_no_mean():
    x, codes, rows = torch.eye(3), torch.tensor([[0, 1], [0, 1], [1, 1]]), torch.tensor([0, 2])
    found = likeness(x, codes, rows=rows, num_pairs=5, generator=torch.Generator())
    assert [tuple(length) for length in found[:3]] == [(0, 5, 0, 0, 0), (1, 0, *[None] * 3), (2, 0, *[None] * 3)]
    assert tuple(found[3]) == (None, 5, 0, 0, 0)


def test_one_ad_has_no_pair():
    codes = torch.zeros(1, 1, dtype=torch.int64)
    found = likeness(torch.ones(1, 2), codes, rows=torch.arange(1), num_pairs=5, generator=torch.Generator())
    assert [length.pairs for length in found] == [0, 0, 0]

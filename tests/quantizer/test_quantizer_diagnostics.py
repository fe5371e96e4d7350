"""Diagnostics of codes, against plain Python and numpy."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadre.quantizer import diagnostics
from leadre.quantizer.spread import spread_last_level

codes_of_ads = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 3))
)


def _entropy_bits(counts):
    shares = np.array(list(counts)) / sum(counts)
    return float(-(shares * np.log2(shares)).sum())


@settings(deadline=None, max_examples=60)
@given(codes_of_ads)
def test_all_figures_equal_those_of_strings_counted_in_python(codes):
    groups = Counter(map(tuple, codes.tolist()))
    found = diagnostics.collisions(torch.from_numpy(codes))
    assert found.rate == pytest.approx(1 - len(groups) / len(codes))
    assert found.colliding_share == pytest.approx(sum(n for n in groups.values() if n > 1) / len(codes))
    assert found.largest_group == max(groups.values())
    pairs = [(one == other).all() for one, other in combinations(codes, 2)]
    assert found.pair_rate == pytest.approx(np.mean(pairs) if pairs else 0.0)
    counts = diagnostics.code_counts(torch.from_numpy(codes), 4)
    assert counts.tolist() == [[int((level == code).sum()) for code in range(4)] for level in codes.T]
    entropies = [_entropy_bits(Counter(level.tolist()).values()) for level in codes.T]
    assert diagnostics.perplexity(counts).tolist() == pytest.approx([2**bits for bits in entropies])
    assert diagnostics.usage(counts).tolist() == pytest.approx([len(set(level)) / 4 for level in codes.T])
    whole = [
        _entropy_bits(Counter(map(tuple, codes[:, : level + 1].tolist())).values()) for level in range(codes.shape[1])
    ]
    assert diagnostics.bits(torch.from_numpy(codes)) == pytest.approx(np.diff([0.0, *whole]).tolist(), abs=1e-9)


def test_codes_of_many_levels_do_not_overflow():
    codes = torch.randint(0, 1024, (50, 25), generator=torch.Generator().manual_seed(0))
    codes[1] = codes[0]
    assert diagnostics.collisions(codes) == (1 - 49 / 50, 2 / 50, 2, pytest.approx(2 / (50 * 49)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_every_group_is_in_the_one_class_that_its_size_belongs_to(sizes):
    found = diagnostics.size_classes(torch.tensor(sizes))
    assert found[0][:2] == (1, 1)
    assert [one.smallest for one in found[1:]] == [one.largest + 1 for one in found[:-1]]
    assert all(one.largest == max(1, 2 * (one.smallest - 1)) for one in found)
    for one in found:
        inside = [size for size in sizes if one.smallest <= size <= one.largest]
        assert (one.groups, one.ads) == (len(inside), sum(inside))
    assert found[-1].groups
    assert sum(one.ads for one in found) == sum(sizes)


def test_the_relative_error_of_the_mean_is_one_and_of_equal_embeddings_zero():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    assert diagnostics.relative_error(x, x.mean(0).expand_as(x)) == pytest.approx(1.0, rel=1e-5)
    assert diagnostics.relative_error(x, x) == 0.0
    assert diagnostics.relative_error(torch.ones(4, 3), torch.zeros(4, 3)) == 0.0


def test_two_ads_with_the_same_codes_get_the_nearest_free_one_by_hand():
    """Codes 0, 1, 5 at the last level; residuals 0.1, 0.4 and 5 under one prefix, 0.2 under another.

    0.1 and 0.4 both have code 0. Least squares in all: 0.1 -> 0, 0.4 -> 1, 5 -> 5; the other prefix keeps code 0.
    """
    codes = torch.tensor([[7, 0], [7, 0], [7, 2], [3, 0]])
    residuals = torch.tensor([[0.4], [0.1], [5.0], [0.2]])
    spread = spread_last_level(codes, residuals, torch.tensor([[0.0], [1.0], [5.0]]))
    assert spread.tolist() == [[7, 1], [7, 0], [7, 2], [3, 0]]
    assert codes.tolist() == [[7, 0], [7, 0], [7, 2], [3, 0]]


@settings(deadline=None, max_examples=60)
@given(codes_of_ads, st.integers(0, 1000))
def test_spreading_keeps_prefixes_and_leaves_only_the_collisions_that_do_not_fit(codes, seed):
    generator = torch.Generator().manual_seed(seed)
    residuals, codebook = torch.randn(len(codes), 2, generator=generator), torch.randn(4, 2, generator=generator)
    spread = spread_last_level(torch.from_numpy(codes), residuals, codebook)
    assert spread[:, :-1].tolist() == codes[:, :-1].tolist()
    parents = Counter(map(tuple, codes[:, :-1].tolist()))
    assert len(set(map(tuple, spread.tolist()))) == sum(min(size, 4) for size in parents.values())
    untouched = [row for row in range(len(codes)) if not _crowded(codes, row)]
    assert spread[untouched].tolist() == codes[untouched].tolist()


def _crowded(codes, row):
    same = codes[(codes[:, :-1] == codes[row, :-1]).all(1)]
    return len(np.unique(same, axis=0)) < len(same)

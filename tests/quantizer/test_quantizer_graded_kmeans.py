"""Residual k-means within budgets of bits: by hand, against loops in numpy, and the budgets by property."""

import logging
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.quantizer import diagnostics
from leadre.quantizer.graded_kmeans import TOLERANCE, GradedKMeans, equal_bits, graded_kmeans
from leadre.quantizer.kmeans import residual_kmeans
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.spread import spread_last_level


def _seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def _fitted(x, bits, codebook_size, *, seed=0, sample=65536):
    books = graded_kmeans(
        x, bits=bits, codebook_size=codebook_size, sample=sample, iterations=10, generator=_seeded(seed)
    )
    return GradedKMeans(books)


def _clustered(ads, dim=6, clusters=12, seed=0):
    centers = 3 * torch.randn(clusters, dim, generator=_seeded(seed))
    owner = torch.randint(clusters, (ads,), generator=_seeded(seed + 1))
    return centers[owner] + torch.randn(ads, dim, generator=_seeded(seed + 2))


def _entropy_by_counting(prefixes):
    counts = Counter(map(tuple, prefixes)).values()
    return -sum(n / len(prefixes) * math.log2(n / len(prefixes)) for n in counts)


def test_four_ads_by_hand():
    """Two bits for two levels: the first tells the pairs apart, the second who of a pair it is; no error is left."""
    x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    network = _fitted(x, [1.0], 4)
    codes = network.quantize(x).codes
    assert network.codebook_sizes == [2, 4]
    assert sorted(network.codebooks[0].flatten().tolist()) == [1.0, 11.0]
    assert diagnostics.bits(codes) == pytest.approx([1.0, 1.0])
    torch.testing.assert_close(network.decode(codes), x)


def test_codebooks_of_one_size_leave_the_last_level_idle_and_graded_ones_share_evenly():
    x, total = _clustered(1500), math.log2(1500)
    one_size = ResidualKMeans(residual_kmeans(x, levels=3, codebook_size=64, iterations=10, generator=_seeded()))
    first, _, last = diagnostics.bits(one_size.quantize(x).codes)
    assert first > 0.5 * total
    assert last < 0.2 * total
    graded = diagnostics.bits(_fitted(x, [total / 3, total / 3], 64).quantize(x).codes)
    assert graded == pytest.approx([total / 3] * 3, abs=0.1 * total)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(20, 300), st.lists(st.floats(0.5, 2.5), min_size=0, max_size=3))
def test_no_level_exceeds_what_the_budgets_so_far_allow(seed, ads, bits):
    x = _clustered(ads, seed=seed)
    total = math.log2(ads)
    bits = [share * min(1.0, total / max(sum(bits), 1e-9)) for share in bits]
    network = _fitted(x, bits, 32, seed=seed)
    codes = network.quantize(x).codes.tolist()
    for level, budget in enumerate(np.cumsum(bits), start=1):
        assert _entropy_by_counting([row[:level] for row in codes]) <= budget + TOLERANCE + 1e-6
    assert network.codebook_sizes[-1] == 32
    assert all(1 <= size <= 32 for size in network.codebook_sizes)


@pytest.mark.parametrize("levels", [2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_budgets_are_met_from_both_sides_and_all_ads_told_apart(levels, seed):
    x, budgets = _clustered(2000, dim=12, seed=seed), equal_bits(2000, levels)
    network = _fitted(x, budgets, 256, seed=seed)
    quantized = network.quantize(x)
    codes = spread_last_level(quantized.codes, quantized.residuals[-1], network.codebooks[-1])
    assert diagnostics.bits(codes) == pytest.approx([*budgets, budgets[0] / 2], abs=0.35)
    assert diagnostics.collisions(codes).rate == 0.0
    assert len(codes[:, 0].unique()) == network.codebook_sizes[0]


def test_the_found_size_is_near_the_largest_that_the_budget_allows():
    """Against a search over all sizes: the first level's entropy grows with its size, so that the answer is known."""
    x = _clustered(400)
    found = _fitted(x, [3.0], 64, sample=400).codebook_sizes[0]
    allowed = []
    for size in range(1, 65):
        codebook = graded_kmeans(x, bits=[], codebook_size=size, sample=400, iterations=10, generator=_seeded())[0]
        codes = GradedKMeans([codebook]).quantize(x).codes.tolist()
        allowed.append(_entropy_by_counting(codes) <= 3.0 + TOLERANCE)
    assert allowed[found - 1]
    assert found >= 0.75 * max(size for size, within in enumerate(allowed, start=1) if within)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_quantization_and_decoding_equal_a_loop_over_ads_and_levels(seed, sizes):
    x = torch.randn(9, 3, generator=_seeded(seed))
    codebooks = [torch.randn(size, 3, generator=_seeded(seed + size)) for size in sizes]
    network = GradedKMeans(codebooks)
    quantized = network.quantize(x)
    for ad, vector in enumerate(x.numpy().astype(np.float64)):
        residual = vector
        for level, codebook in enumerate(codebooks):
            np.testing.assert_allclose(quantized.residuals[level, ad], residual, atol=1e-5)
            code = int(((residual - codebook.numpy()) ** 2).sum(-1).argmin())
            assert int(quantized.codes[ad, level]) == code
            residual = residual - codebook[code].numpy()
        np.testing.assert_allclose(network.decode(quantized.codes)[ad], vector - residual, atol=1e-5)
    assert network.codebook_sizes == sizes


def test_the_seed_decides_and_a_saved_network_codes_new_ads_alike():
    x, new = _clustered(300), _clustered(20, seed=9)
    first, again, other = (_fitted(x, equal_bits(300, 3), 32, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.codebooks, again.codebooks, strict=True))
    assert not torch.equal(first.codebooks[-1], other.codebooks[-1])
    loaded = GradedKMeans([torch.zeros(size, 6) for size in first.codebook_sizes])
    loaded.load_state_dict(first.state_dict())
    assert torch.equal(loaded.quantize(new).codes, first.quantize(new).codes)


def test_larger_codebooks_lower_the_error_at_the_same_bits():
    x, errors = _clustered(1000), []
    for size in (32, 64, 256):
        network = _fitted(x, equal_bits(1000, 3), size)
        errors.append(diagnostics.relative_error(x, network.decode(network.quantize(x).codes)))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("ads", [1, 2, 5])
def test_fewer_ads_than_codes_are_told_apart_exactly(ads):
    x = torch.randn(ads, 4, generator=_seeded())
    network = _fitted(x, equal_bits(ads, 3), 16)
    codes = network.quantize(x).codes
    assert diagnostics.collisions(codes).rate == 0.0
    torch.testing.assert_close(network.decode(codes), x)


def test_a_level_whose_codes_are_too_few_says_so(caplog):
    x = torch.cat([torch.zeros(90, 1), torch.arange(1.0, 11)[:, None]])  # the mean and the rest: one code is crowded
    with caplog.at_level(logging.WARNING):
        _fitted(x, [1.9], 4)
    assert "level 1: 4 codes tell" in caplog.text
    assert "bits too few; the next level has them, too" in caplog.text


def test_budgets_beyond_what_the_ads_hold_are_refused():
    x = torch.randn(16, 2, generator=_seeded())
    with pytest.raises(ValueError, match=r"bits \[3.00, 2.00\] add up to 5.00, but 16 distinct ads hold only .* 4.00"):
        _fitted(x, [3.0, 2.0], 16)

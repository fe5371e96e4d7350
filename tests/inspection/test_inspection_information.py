"""Bits and purity, against plain Python, scikit-learn and by hand."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mutual_info_score

from leadre.inspection.information import (
    _dealt,
    _levels,
    category_bits,
    evenness,
    most_bits,
    purities,
    shuffled_category_bits,
)
from leadre.quantizer.diagnostics import bits

ads = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        arrays(np.int64, shape, elements=st.integers(0, 3)),
        arrays(np.int64, shape[0], elements=st.integers(0, 2)),
    )
)


def _bits(things):
    counts = np.array(list(Counter(things).values())) / len(things)
    return float(-(counts * np.log2(counts)).sum())


def _prefixes(codes, length):
    return [tuple(ad[:length]) for ad in codes.tolist()]


@settings(deadline=None, max_examples=60)
@given(ads)
def test_the_most_is_what_texts_tell_and_with_codes_ad_by_ad_never_less_than_these_tell(drawn):
    codes, text = drawn
    most = most_bits(torch.from_numpy(codes), torch.from_numpy(text))
    prefixes = _prefixes(codes, codes.shape[1])
    assert most == pytest.approx(_bits(list(zip(prefixes, text.tolist(), strict=True))), abs=1e-9)
    assert most >= sum(bits(torch.from_numpy(codes))) - 1e-9
    by_text = torch.from_numpy(codes[text % len(codes)])
    assert most_bits(by_text, torch.from_numpy(text)) == pytest.approx(_bits(text.tolist()), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(ads)
def test_the_category_bits_add_up_to_scikit_learns_mutual_information(drawn):
    codes, category = drawn
    found = np.cumsum(category_bits(torch.from_numpy(codes), torch.from_numpy(category)))
    for length, told in enumerate(found, start=1):
        prefixes = [hash(prefix) for prefix in _prefixes(codes, length)]
        assert told == pytest.approx(mutual_info_score(prefixes, category) / math.log(2), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(ads)
def test_purity_is_that_of_all_pairs_one_by_one(drawn):
    codes, category = drawn
    for length, found in enumerate(purities(torch.from_numpy(codes), torch.from_numpy(category))):
        pairs = [
            category[one] == category[other]
            for one, other in combinations(range(len(codes)), 2)
            if codes[one, :length].tolist() == codes[other, :length].tolist()
        ]
        assert found.pairs == len(pairs)
        assert found.same_category == (pytest.approx(np.mean(pairs)) if pairs else None)


def test_a_level_that_is_the_category_tells_all_of_it_by_hand():
    """Four categories of two ads; the first level is the category, the second tells the ads of one apart."""
    category = torch.arange(4).repeat_interleave(2)
    codes = torch.stack([category, torch.tensor([0, 1] * 4)], dim=1)
    assert bits(codes) == pytest.approx([2.0, 1.0])
    assert category_bits(codes, category) == pytest.approx([2.0, 0.0])
    assert [tuple(length) for length in purities(codes, category)] == [(28, 4 / 28), (4, 1.0), (0, None)]


def test_codes_of_their_own_seem_to_tell_any_category_and_the_shuffle_shows_it():
    codes = torch.arange(64)[:, None]
    category = torch.arange(64) % 4
    generator = torch.Generator().manual_seed(0)
    assert category_bits(codes, category) == pytest.approx([2.0])
    assert shuffled_category_bits(codes, category, shuffles=3, generator=generator) == pytest.approx([2.0])


def test_codes_that_have_nothing_to_do_with_the_category_tell_what_the_shuffle_tells():
    generator = torch.Generator().manual_seed(0)
    codes, category = torch.randint(0, 8, (4000, 1), generator=generator), torch.arange(4000) % 10
    found = category_bits(codes, category)[0]
    by_chance = shuffled_category_bits(codes, category, shuffles=20, generator=generator)[0]
    # Miller and Madow: the plug-in estimate of 0 bits lies (8 - 1) (10 - 1) / (2 N ln 2) too high.
    assert by_chance == pytest.approx(63 / (8000 * math.log(2)), rel=0.25)
    assert found == pytest.approx(by_chance, rel=0.5)


def test_levels_without_meaning_tell_what_chance_tells_at_every_place():
    generator = torch.Generator().manual_seed(0)
    codes, category = torch.randint(0, 6, (1500, 3), generator=generator), torch.arange(1500) % 10
    found = category_bits(codes, category)
    by_chance = shuffled_category_bits(codes, category, shuffles=20, generator=generator)
    assert found == pytest.approx(by_chance, rel=0.2, abs=0.02)


def test_a_perfect_first_level_is_above_chance_and_the_empty_one_after_it_not_below():
    generator = torch.Generator().manual_seed(0)
    category = torch.arange(800) % 8
    codes = torch.stack([category, torch.randint(0, 50, (800,), generator=generator)], dim=1)
    first, second = shuffled_category_bits(codes, category, shuffles=5, generator=generator)
    assert category_bits(codes, category) == pytest.approx([3.0, 0.0])
    assert first < 0.2
    assert second == pytest.approx(0.0)


@settings(deadline=None, max_examples=40)
@given(ads, st.integers(0, 99))
def test_categories_are_dealt_within_their_groups(drawn, seed):
    codes, category = (torch.from_numpy(part) for part in drawn)
    for before, _ in _levels(codes):
        anew = _dealt(category, before, torch.Generator().manual_seed(seed))
        for group in before.unique():
            assert anew[before == group].sort().values.tolist() == category[before == group].sort().values.tolist()


def test_evenness_is_one_for_equal_levels_and_none_where_nothing_is_told():
    assert evenness([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert evenness([2.0, 1.0, 1.0]) == pytest.approx(1.5 * math.log(2) / math.log(3))
    assert evenness([5.0, -1e-16]) == 0.0
    assert evenness([5.0]) is None
    assert evenness([0.0, 0.0]) is None

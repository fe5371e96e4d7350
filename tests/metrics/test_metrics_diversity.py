from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadre.metrics.diversity import (
    abundance,
    category_counts,
    concentration,
    diversity,
    global_concentration,
    most_frequent,
    spread,
)

lists_of_ads = arrays(np.int64, st.tuples(st.integers(1, 4), st.integers(0, 8)), elements=st.integers(-1, 9))
CATEGORIES = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])


@pytest.mark.parametrize(
    ("letters", "expected"), [("aaaaaaab", 1.51), ("aaaabbbb", 2), ("aaaaabcd", 2.53), ("aabbccdd", 4)]
)
def test_diversity_of_known_lists(letters, expected):
    categories = np.array([ord(letter) - ord("a") for letter in letters])
    assert diversity(np.arange(8)[None], categories, k=8)[0] == pytest.approx(expected, abs=0.005)


@given(lists_of_ads, st.integers(1, 9))
def test_the_arrays_agree_with_counting_a_user_at_a_time(lists, k):
    for user, row in enumerate(lists.tolist()):
        kept = [ad for place, ad in enumerate(row) if ad == -1 or ad not in row[:place]][:k]
        counts = Counter(CATEGORIES[ad] for ad in kept if ad != -1)
        most, ads = max(counts.values(), default=1), sum(counts.values()) or 1
        assert concentration(lists, CATEGORIES, k=k)[user] == pytest.approx(most / ads)
        assert abundance(lists, CATEGORIES, k=k)[user] == len(counts)


@given(lists_of_ads, st.integers(1, 9))
def test_diversity_lies_between_one_and_the_number_of_categories(lists, k):
    values = diversity(lists, CATEGORIES, k=k)
    found = abundance(lists, CATEGORIES, k=k)
    some = found > 0
    assert (values[some] >= 1).all()
    assert (values <= found + 1e-12).all()
    assert (values[~some] == 0).all()


@given(lists_of_ads, st.integers(1, 9))
def test_one_look_gives_all_three_and_counts_of_users_add_up(lists, k):
    found = spread(lists, CATEGORIES, k=k)
    np.testing.assert_array_equal(found.diversity, np.sqrt(found.abundance / found.concentration))
    each = [category_counts(lists[user : user + 1], CATEGORIES, k=k) for user in range(len(lists))]
    whole = category_counts(lists, CATEGORIES, k=k)
    np.testing.assert_array_equal(np.sum(each, axis=0), whole)
    np.testing.assert_array_equal(most_frequent(whole), global_concentration(lists, CATEGORIES, k=k))


def test_a_single_ad_has_diversity_one():
    assert diversity(np.array([[3, 4, 5]]), CATEGORIES, k=1).tolist() == [1.0]


def test_an_empty_list_has_the_worst_of_everything():
    for empty in (np.array([[-1, -1]]), np.empty((1, 0), dtype=np.int64)):
        assert concentration(empty, CATEGORIES, k=8).tolist() == [1.0]
        assert abundance(empty, CATEGORIES, k=8).tolist() == [0.0]
        assert diversity(empty, CATEGORIES, k=8).tolist() == [0.0]
        assert np.isnan(global_concentration(empty, CATEGORIES, k=8))


def test_concentration_by_user_and_over_all_lists_are_two_readings():
    lists, categories = np.array([[0, 1], [2, 3]]), np.array([0, 0, 1, 1])
    assert concentration(lists, categories, k=2).mean() == 1.0
    assert global_concentration(lists, categories, k=2) == 0.5


def test_an_ad_without_a_category_row_is_an_error():
    with pytest.raises(ValueError, match="lists holds the row 10, but categories has 10 rows"):
        diversity(np.array([[10]]), CATEGORIES, k=8)
    with pytest.raises(ValueError, match="k is 0"):
        abundance(np.array([[1]]), CATEGORIES, k=0)

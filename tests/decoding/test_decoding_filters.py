"""Filters: against a loop over ads, by hand, and at their edges."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.catalog import trie as tries
from leadre.decoding import filters

SIDS = [(0, 0, 0), (0, 0, 1), (0, 2, 0), (1, 1, 0)]
TRIE = tries.build(torch.tensor(SIDS))
ALL = torch.ones(1, 4, dtype=torch.bool)
NONE_SEEN = torch.zeros(1, 0, dtype=torch.int64)


def test_counts_are_the_allowed_ads_below_each_node():
    allowed = torch.tensor([[True, True, True, True], [True, False, False, True]])
    levels = filters.counts(TRIE, allowed)
    assert [level.tolist() for level in levels] == [
        [[3, 1], [1, 1]],
        [[2, 1, 1], [1, 0, 1]],
        [[1, 1, 1, 1], [1, 0, 0, 1]],
    ]


def test_a_node_closes_when_every_allowed_ad_below_it_was_seen():
    given_counts = filters.counts(TRIE, ALL)
    groups = torch.zeros(2, dtype=torch.int64)
    filter = filters.make(TRIE, given_counts, groups, torch.tensor([[1, 0], [0, -1]]))
    rows = torch.tensor([[0], [1]])
    assert filters.alive(filter, 1, rows, torch.arange(3).expand(2, 3)).tolist() == [
        [False, True, True],
        [True, True, True],
    ]
    assert filters.alive(filter, 2, rows, torch.arange(4).expand(2, 4)).tolist() == [
        [False, False, True, True],
        [False, True, True, True],
    ]
    assert filters.alive(filter, 0, rows, torch.arange(2).expand(2, 2)).all()


def test_an_ad_that_was_seen_twice_counts_once():
    filter = filters.make(TRIE, filters.counts(TRIE, ALL), torch.tensor([0]), torch.tensor([[0, 0]]))
    assert filters.alive(filter, 1, torch.tensor([0]), torch.tensor([0])).item()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), ads=st.integers(1, 40))
def test_a_node_is_alive_if_and_only_if_some_ad_below_it_may_be_shown(data, seed, ads):
    random = torch.Generator().manual_seed(seed)
    every = list(itertools.product(range(4), range(4), range(3)))
    sids = sorted(every[row] for row in torch.randperm(len(every), generator=random)[:ads].tolist())
    trie = tries.build(torch.tensor(sids))
    groups, rows, seen_each = (data.draw(st.integers(1, 3)) for _ in range(3))
    allowed = torch.rand(groups, ads, generator=random) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    of = torch.randint(0, groups, (rows,), generator=random)
    seen = torch.randint(-1, ads, (rows, seen_each * 4), generator=random)
    filter = filters.make(trie, filters.counts(trie, allowed), of, seen)
    for level in range(3):
        prefixes = sorted({sid[: level + 1] for sid in sids})
        for row in range(rows):
            shown = [n for n in range(ads) if allowed[of[row], n] and n not in seen[row].tolist()]
            wanted = [any(sids[n][: level + 1] == prefix for n in shown) for prefix in prefixes]
            nodes = torch.arange(len(prefixes))
            assert filters.alive(filter, level, torch.full_like(nodes, row), nodes).tolist() == wanted


def test_the_shape_of_a_filter_does_not_depend_on_what_was_seen():
    given_counts = filters.counts(TRIE, ALL)
    for seen in ([[0, 1], [2, 3]], [[-1, -1], [0, 0]]):
        filter = filters.make(TRIE, given_counts, torch.tensor([0, 0]), torch.tensor(seen))
        assert [keys.shape for keys in filter.spent] == [(4,)] * 3


def test_the_ads_below_a_prefix_are_those_whose_sids_begin_so():
    assert filters.below(TRIE, ()).tolist() == [True] * 4
    assert filters.below(TRIE, (0,)).tolist() == [True, True, True, False]
    assert filters.below(TRIE, (0, 2)).tolist() == [False, False, True, False]
    assert filters.below(TRIE, (0, 0, 1)).tolist() == [False, True, False, False]


def test_an_unknown_prefix_is_refused_with_the_codes_that_there_are():
    with pytest.raises(ValueError, match=r"no S-ID of the catalog has 1 after \[0\]: choose from 0, 2$"):
        filters.below(TRIE, (0, 1))
    with pytest.raises(ValueError, match="S-IDs have 3 codes: give as many at most"):
        filters.below(TRIE, (0, 0, 0, 0))


def test_wrong_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"allowed is torch.int64 .* the trie has 4 ads"):
        filters.counts(TRIE, torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"allowed is torch.bool of the shape \(1, 3\)"):
        filters.counts(TRIE, ALL[:, :3])
    given_counts = filters.counts(TRIE, ALL)
    with pytest.raises(ValueError, match="groups names the allowed sets 0 to 1, but there are 1"):
        filters.make(TRIE, given_counts, torch.tensor([0, 1]), NONE_SEEN.expand(2, 0))
    with pytest.raises(ValueError, match="seen holds 0 to 4, but the catalog has 4 rows"):
        filters.make(TRIE, given_counts, torch.tensor([0]), torch.tensor([[0, 4]]))
    with pytest.raises(ValueError, match=r"seen has the shape \(1, 0\) for 2 rows"):
        filters.make(TRIE, given_counts, torch.tensor([0, 0]), NONE_SEEN)


def test_a_filter_of_other_users_or_of_another_trie_is_refused():
    filter = filters.make(TRIE, filters.counts(TRIE, ALL), torch.tensor([0]), NONE_SEEN)
    filters.check(filter, TRIE, users=1)
    with pytest.raises(ValueError, match="filter has 1 rows for 3 users: make it with one row a user"):
        filters.check(filter, TRIE, users=3)
    with pytest.raises(ValueError, match=r"filter counts \[2, 3, 4\] nodes a level, but trie has \[2, 2, 2\]"):
        filters.check(filter, tries.build(torch.tensor([(0, 0, 0), (1, 0, 0)])), users=1)

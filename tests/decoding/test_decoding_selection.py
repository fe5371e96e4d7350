"""One step of beam search: by hand, and against sorting all candidates."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.catalog import trie as tries
from leadre.catalog.trie import Children
from leadre.decoding import filters
from leadre.decoding.selection import candidates, select

TRIE = tries.build(torch.tensor([(0, 0), (0, 3), (2, 1), (2, 2), (2, 3)]))


def test_candidates_are_the_children_of_each_beam_and_dead_beams_have_none():
    found = candidates(TRIE, 1, torch.tensor([[0, 1], [1, -1]]))
    assert found.parent.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert found.node.tolist() == [0, 1, 2, 3, 4, 2, 3, 4]


def test_a_filter_takes_candidates_away_from_its_rows_alone():
    allowed = torch.ones(1, 5, dtype=torch.bool)
    filter = filters.make(TRIE, filters.counts(TRIE, allowed), torch.tensor([0, 0]), torch.tensor([[0, 2], [-1, -1]]))
    rows = torch.tensor([[0, 0], [1, 1]])
    found = candidates(TRIE, 1, torch.tensor([[0, 1], [1, -1]]), filter, rows)
    assert found.parent.tolist() == [0, 1, 1, 2, 2, 2]
    assert found.node.tolist() == [1, 3, 4, 2, 3, 4]


def test_the_best_candidates_are_kept_in_the_order_of_their_nodes():
    found = Children(torch.tensor([0, 0, 1, 2]), torch.tensor([4, 5, 7, 0]))
    kept = select(found, torch.tensor([-1.0, -3.0, -2.0, -5.0]), torch.Size((2, 2)), 2)
    assert kept.nodes.tolist() == [[4, 7], [0, -1]]
    assert kept.parents.tolist() == [[0, 1], [0, 0]]
    assert kept.scores.tolist() == [[-1.0, -2.0], [-5.0, -torch.inf]]


def test_of_equal_candidates_the_first_are_kept():
    found = Children(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 3, 4]))
    kept = select(found, torch.tensor([-2.0, -1.0, -2.0, -2.0]), torch.Size((1, 2)), 3)
    assert kept.nodes.tolist() == [[1, 2, 3]]


@settings(max_examples=100, deadline=None)
@given(data=st.data(), users=st.integers(1, 3), width=st.integers(1, 4), keep=st.integers(1, 8))
def test_selection_is_that_of_sorting_all_candidates(data, users, width, keep):
    numbers = st.sampled_from([-3.0, -2.0, -1.0, -torch.inf])
    rows = [(u * width + b, c) for u in range(users) for b in range(width) for c in range(data.draw(st.integers(0, 4)))]
    scores = [data.draw(numbers) for _ in rows]
    found = Children(torch.tensor([row for row, _ in rows], dtype=torch.int64), torch.arange(len(rows)).long())
    kept = select(found, torch.tensor(scores), torch.Size((users, width)), keep)
    for user in range(users):
        mine = [n for n, (row, _) in enumerate(rows) if row // width == user and scores[n] > -torch.inf]
        best = sorted(sorted(mine, key=lambda n: (-scores[n], n))[:keep])
        alive = [n for n in kept.nodes[user].tolist() if n >= 0]
        assert alive == best
        assert kept.scores[user, : len(best)].tolist() == [scores[n] for n in best]
        assert kept.parents[user, : len(best)].tolist() == [rows[n][0] % width for n in best]
        assert kept.scores[user, len(best) :].tolist() == [-torch.inf] * (kept.nodes.shape[1] - len(best))

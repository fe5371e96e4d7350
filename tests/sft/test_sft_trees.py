import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.lm.rows import Rows
from leadre.sft.batches import collate, num_learned
from leadre.sft.module import learned_logprobs
from leadre.sft.trees import alike, alone, attention_mask, common_prefix, packed, side_by_side, tree
from tests.small_model import small_model

lists_of_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=6)


def _rows(texts, seed=0):
    """Token rows with random learned marks."""
    rng = np.random.default_rng(seed)
    lengths = [len(text) for text in texts]
    return Rows(
        ids=np.array([token for text in texts for token in text], dtype=np.int32),
        kinds=rng.integers(0, 3, sum(lengths)).astype(np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        targets=np.zeros(len(texts), dtype=np.int32),
    )


@settings(deadline=None)
@given(texts=lists_of_tokens)
def test_the_way_from_the_root_to_a_rows_last_token_is_the_row(texts):
    rows = [np.array(text, dtype=np.int32) for text in texts]
    found = tree(rows, [np.ones(len(row), dtype=bool) for row in rows])
    seen = attention_mask(torch.from_numpy(found.ends)[None], dtype=torch.float32)[0, 0] == 0
    ways = set()
    for place in range(len(found.ids)):
        way = seen[place].nonzero().flatten().numpy()
        assert found.positions[way].tolist() == list(range(len(way)))  # no token twice, none left out
        assert found.parents[place] == (way[-2] if len(way) > 1 else place)
        ways.add(tuple(found.ids[way].tolist()))
    assert {tuple(text) for text in texts} <= ways
    assert found.counts.sum() == sum(len(text) - 1 for text in texts)


def test_two_targets_of_one_history_read_it_once():
    history, first, second = [5, 6, 7], [8, 1], [9, 9, 2]
    rows = [np.array(history + first), np.array(history + second)]
    marks = [np.array([False, True, False, False, True]), np.array([False, True, False, False, False, True])]
    found = tree(rows, marks)
    assert found.ids.tolist() == [5, 6, 7, 8, 1, 9, 9, 2]
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert found.parents.tolist() == [0, 0, 1, 2, 3, 2, 5, 6]
    assert found.ends.tolist() == [8, 8, 8, 5, 5, 8, 8, 8]
    assert found.counts.tolist() == [0, 2, 0, 0, 1, 0, 0, 1]  # the shared token is learned twice


@given(texts=lists_of_tokens, most=st.integers(1, 4))
def test_groups_cover_all_rows_in_order_and_their_lengths_are_those_of_their_trees(texts, most):
    rows = _rows(texts)
    groups = alike(rows.ids, rows.offsets, most=most)
    assert (groups.begins[0], groups.begins[-1], groups.sizes.sum()) == (0, len(texts), len(texts))
    assert groups.sizes.min() >= 1
    assert groups.sizes.max() <= most
    for begin, size, length in zip(groups.begins, groups.sizes, groups.lengths, strict=False):
        part = [np.array(text, dtype=np.int32) for text in texts[begin : begin + size]]
        assert len(tree(part, [np.zeros(len(row), dtype=bool) for row in part]).ids) == length


def test_rows_that_share_less_than_half_stay_apart():
    rows = _rows([[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 7], [1, 9, 9, 9]])
    assert alike(rows.ids, rows.offsets, most=9).begins.tolist() == [0, 3, 4]
    assert alike(rows.ids, rows.offsets, most=2).begins.tolist() == [0, 2, 3, 4]
    assert alone(rows.offsets).begins.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("one", "two", "shared"), [([1, 2, 3], [1, 2, 4], 2), ([1], [1, 2], 1), ([2], [1], 0), ([1, 2], [1, 2], 2)]
)
def test_what_two_rows_begin_with_alike(one, two, shared):
    assert common_prefix(np.array(one), np.array(two)) == shared


@pytest.mark.parametrize("loss_on", ["response", "history_and_response"])
def test_a_tree_has_the_loss_and_the_gradient_of_its_rows(loss_on):
    rng = np.random.default_rng(3)
    history = rng.integers(0, 10, 12).tolist()
    users = [[[*history[:5], 10, 1], [*history[:9], 10, 2, 3], [*history, 11, 4]], [[4, 5, 6, 7]]]
    rows = _rows([text for user in users for text in user], seed=5)
    results = {}
    for name, groups in (("plain", np.arange(5)), ("tree", np.array([0, 3, 4]))):
        model = small_model(12)
        which, learned = np.arange(len(groups) - 1), num_learned(rows, groups, loss_on=loss_on)
        batch = collate(rows, groups, learned, which, which, loss_on=loss_on)
        loss = -(batch.weights * learned_logprobs(model, batch)).sum() / batch.total
        loss.backward()
        results[name] = (batch, loss.item(), [weight.grad for weight in model.parameters()])
    assert results["tree"][0].ids.numel() < results["plain"][0].ids.numel()
    assert results["tree"][0].total == results["plain"][0].total == learned.sum()
    assert results["tree"][1] == pytest.approx(results["plain"][1], rel=1e-6)
    for one, two in zip(results["tree"][2], results["plain"][2], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_packed_lines_hold_every_tree_once_and_are_no_longer_than_the_longest(lengths):
    texts = [np.full(length, n, dtype=np.int32) for n, length in enumerate(lengths)]
    trees = [tree([text], [np.ones(len(text), dtype=bool)]) for text in texts]
    lines = packed(trees)
    assert max(len(line.ids) for line in lines) == max(lengths)
    assert sorted(np.concatenate([line.ids for line in lines])) == sorted(np.concatenate([one.ids for one in trees]))
    for line in lines:
        seen = attention_mask(torch.from_numpy(line.ends)[None], dtype=torch.float32)[0, 0] == 0
        apart = torch.from_numpy(line.ids[:, None] != line.ids[None, :])
        assert not (seen & apart).any()  # no token sees another tree's
        assert (seen.sum(1).numpy() == line.positions + 1).all()


def test_rows_of_unlike_lengths_are_packed_with_the_loss_and_gradient_of_separate_rows():
    rng = np.random.default_rng(1)
    rows = _rows([rng.integers(0, 12, length).tolist() for length in (30, 12, 9, 8, 5, 3)], seed=2)
    groups = np.arange(7)
    learned = num_learned(rows, groups, loss_on="history_and_response")
    everything = np.arange(6)
    losses, gradients = [], []
    for parts in ([everything], [np.array([n]) for n in range(6)]):
        model, total = small_model(12), 0.0
        for which in parts:
            batch = collate(rows, groups, learned, which, everything, loss_on="history_and_response")
            loss = -(batch.weights * learned_logprobs(model, batch)).sum() / batch.total
            loss.backward()
            total += loss.item()
        losses.append(total)
        gradients.append([weight.grad for weight in model.parameters()])
    assert collate(rows, groups, learned, everything, everything, loss_on="response").ids.shape == (3, 30)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_rows_of_like_length_stay_apart():
    trees = [tree([np.zeros(9, dtype=np.int32)], [np.ones(9, dtype=bool)])] * 4
    assert len(packed(trees)) == 4
    assert len(side_by_side(trees).ids) == 36

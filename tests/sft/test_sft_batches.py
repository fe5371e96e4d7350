import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadre.lm.rows import Rows, concatenate
from leadre.sft.batches import collate, mixed_plan, num_learned
from leadre.sft.trees import Groups, alone

# Two rows: [5 6 | 7 8 | 9] with an ad in the history and a response of one token, and [4 | 3].
ROWS = Rows(
    ids=np.array([5, 6, 7, 8, 9, 4, 3], dtype=np.int32),
    kinds=np.array([0, 0, 1, 1, 2, 0, 2], dtype=np.uint8),
    offsets=np.array([0, 5, 7]),
    targets=np.array([11, 12], dtype=np.int32),
)


def _alone(lengths):
    return alone(np.concatenate([[0], np.cumsum(lengths)]))


def _batch(rows, which, loss_on, groups=None, whole=None):
    groups = np.arange(len(rows.targets) + 1) if groups is None else np.array(groups)
    learned = num_learned(rows, groups, loss_on=loss_on)
    return collate(rows, groups, learned, np.array(which), np.array(whole or which), loss_on=loss_on)


def test_the_loss_on_the_response_alone_marks_the_response():
    batch = _batch(ROWS, [0, 1], "response")
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert list(zip(batch.rows.tolist(), batch.places.tolist(), strict=True)) == [(0, 4), (1, 1)]
    assert batch.before.tolist() == [3, 0]
    assert (batch.weights.tolist(), batch.total) == ([1.0, 1.0], 2.0)
    assert batch.ends is None


def test_the_loss_on_the_history_marks_every_sid_token_too():
    batch = _batch(ROWS, [1, 0], "history_and_response")
    assert list(zip(batch.rows.tolist(), batch.places.tolist(), strict=True)) == [(0, 1), (1, 2), (1, 3), (1, 4)]


def test_the_first_token_is_never_learned_since_nothing_precedes_it():
    rows = ROWS._replace(kinds=np.array([1, 1, 1, 1, 2, 2, 2], dtype=np.uint8))
    batch = _batch(rows, [0, 1], "history_and_response")
    assert 0 not in batch.places.tolist()
    assert batch.total == 5


def test_concatenated_rows_are_the_rows_of_each_part():
    both = concatenate([ROWS, ROWS])
    assert both.offsets.tolist() == [0, 5, 7, 12, 14]
    assert both.targets.tolist() == [11, 12, 11, 12]
    assert torch.equal(_batch(both, [2], "response").ids, _batch(ROWS, [0], "response").ids)


def test_a_part_of_a_step_knows_how_many_tokens_the_whole_step_learns():
    assert _batch(ROWS, [1], "history_and_response", whole=[0, 1]).total == 4.0


def test_a_rank_without_rows_reads_a_row_that_weighs_nothing():
    nothing, groups = np.array([], dtype=np.int64), np.arange(3)
    learned = num_learned(ROWS, groups, loss_on="response")
    batch = collate(ROWS, groups, learned, nothing, np.array([1]), loss_on="response")
    assert (batch.ids.tolist(), batch.weights.tolist(), batch.total) == ([[4, 3]], [0.0], 1.0)


@given(
    rows=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    epochs=st.tuples(st.floats(0.1, 3.5), st.floats(0.1, 3.5)),
    size=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_each_row_of_a_task_is_seen_as_often_as_its_epochs_say(rows, epochs, size, seed):
    groups = {task: _alone(np.arange(1, n + 1)) for task, n in zip(("main", "explicit"), rows, strict=True)}
    plan = mixed_plan(groups, dict(zip(groups, epochs, strict=True)), batch_size=size, seed=seed)
    seen = np.bincount(np.concatenate([*plan, np.zeros(0, dtype=np.int64)]), minlength=sum(rows))
    for part, n, number in zip(np.split(seen, [rows[0]]), rows, epochs, strict=True):
        assert part.sum() == pytest.approx(n * number, abs=1)
        assert part.min() >= np.floor(number) - 1e-9
        assert part.max() <= np.ceil(number + 1 / n)


def test_a_mixed_stage_spreads_its_tasks_evenly():
    groups = {"main": _alone(np.ones(400, dtype=np.int64)), "explicit": _alone(np.ones(100, dtype=np.int64))}
    plan = mixed_plan(groups, {"main": 2.0, "explicit": 4.0}, batch_size=40, seed=0)
    rows = np.concatenate(plan)
    shares = [np.mean(part >= 400) for part in np.array_split(rows, 4)]
    assert max(shares) - min(shares) < 0.1


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=40), size=st.integers(1, 12), epochs=st.floats(0.3, 2.0))
def test_groups_stay_whole_and_batches_hold_about_as_many_rows_as_asked(sizes, size, epochs):
    begins = np.concatenate([[0], np.cumsum(sizes)])
    plan = mixed_plan({"main": Groups(begins, np.array(sizes))}, {"main": epochs}, batch_size=size, seed=0)
    for batch in plan:
        rows = np.array(sizes)[batch]
        assert rows.sum() - rows[-1] < size  # without its last group there was room
    assert len(np.concatenate([*plan, []])) == round(len(sizes) * epochs)

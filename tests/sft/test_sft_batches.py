import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadre.sft.batches import Rows, collate, concatenate, mixed_plan

# Two rows: [5 6 | 7 8 | 9] with an ad in the history and a response of one token, and [4 | 3].
ROWS = Rows(
    ids=np.array([5, 6, 7, 8, 9, 4, 3], dtype=np.int32),
    kinds=np.array([0, 0, 1, 1, 2, 0, 2], dtype=np.uint8),
    offsets=np.array([0, 5, 7]),
    targets=np.array([11, 12], dtype=np.int32),
)


def test_the_loss_on_the_response_alone_marks_the_response():
    batch = collate(ROWS, np.array([0, 1]), loss_on="response")
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert list(zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)) == [(0, 4), (1, 1)]


def test_the_loss_on_the_history_marks_every_sid_token_too():
    batch = collate(ROWS, np.array([1, 0]), loss_on="history_and_response")
    assert list(zip(batch.rows.tolist(), batch.positions.tolist(), strict=True)) == [(0, 1), (1, 2), (1, 3), (1, 4)]


def test_the_first_token_is_never_learned_since_nothing_precedes_it():
    rows = ROWS._replace(kinds=np.array([1, 1, 1, 1, 2, 2, 2], dtype=np.uint8))
    batch = collate(rows, np.array([0, 1]), loss_on="history_and_response")
    assert 0 not in batch.positions.tolist()


def test_concatenated_rows_are_the_rows_of_each_part():
    both = concatenate([ROWS, ROWS])
    assert both.offsets.tolist() == [0, 5, 7, 12, 14]
    assert both.targets.tolist() == [11, 12, 11, 12]
    assert torch.equal(
        collate(both, np.array([2]), loss_on="response").ids, collate(ROWS, np.array([0]), loss_on="response").ids
    )


@given(
    rows=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    epochs=st.tuples(st.floats(0.1, 3.5), st.floats(0.1, 3.5)),
    size=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_each_row_of_a_task_is_seen_as_often_as_its_epochs_say(rows, epochs, size, seed):
    lengths = {task: np.arange(1, n + 1) for task, n in zip(("main", "explicit"), rows, strict=True)}
    plan = mixed_plan(lengths, dict(zip(lengths, epochs, strict=True)), batch_size=size, seed=seed)
    seen = np.bincount(np.concatenate([*plan, np.zeros(0, dtype=np.int64)]), minlength=sum(rows))
    for part, n, number in zip(np.split(seen, [rows[0]]), rows, epochs, strict=True):
        assert part.sum() == pytest.approx(n * number, abs=1)
        assert part.min() >= np.floor(number) - 1e-9
        assert part.max() <= np.ceil(number + 1 / n)


def test_a_mixed_stage_spreads_its_tasks_evenly():
    lengths = {"main": np.ones(400, dtype=np.int64), "explicit": np.ones(100, dtype=np.int64)}
    plan = mixed_plan(lengths, {"main": 2.0, "explicit": 4.0}, batch_size=40, seed=0)
    rows = np.concatenate(plan)
    shares = [np.mean(part >= 400) for part in np.array_split(rows, 4)]
    assert max(shares) - min(shares) < 0.1

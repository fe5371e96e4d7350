import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.training.batches import Batches, bucketed_plan, shuffled_plan


@given(rows=st.integers(1, 60), size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_row_is_seen_exactly_once_an_epoch(rows, size, epochs, seed):
    lengths = np.random.default_rng(seed).integers(1, 99, rows)
    for plan in (
        shuffled_plan(rows, batch_size=size, epochs=epochs, seed=seed),
        bucketed_plan(lengths, batch_size=size, epochs=epochs, seed=seed),
    ):
        seen = np.bincount(np.concatenate(plan), minlength=rows)
        assert (seen == epochs).all()
        assert max(len(batch) for batch in plan) <= size


def test_buckets_hold_rows_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 400)
    padded = sum(len(rows) * lengths[rows].max() for rows in bucketed_plan(lengths, batch_size=8, epochs=1, seed=0))
    assert padded < 1.05 * lengths.sum()


def test_batches_start_at_any_step_whatever_its_parts_and_after_the_last_none_is_left():
    plan = shuffled_plan(10, batch_size=3, epochs=2, seed=1)
    batches = Batches(plan, lambda rows, whole: rows, micro_batches=2)
    whole = [rows.tolist() for rows in batches]
    assert len(batches) == len(whole) == 2 * len(plan)
    for step in range(len(plan) + 1):
        batches.start_at(step)
        assert [rows.tolist() for rows in batches] == whole[2 * step :]
        assert len(batches) == len(whole)


def test_an_empty_plan_is_refused():
    with pytest.raises(ValueError, match="plan holds no batch"):
        Batches([], lambda rows, whole: rows)


def test_seeds_give_other_orders_and_zero_is_a_seed():
    zero, again, one = (shuffled_plan(50, batch_size=50, epochs=1, seed=seed)[0] for seed in (0, 0, 1))
    assert zero.tolist() == again.tolist() != one.tolist()

import pytest
import torch

from leadre.training.optimizer import adamw, decay_groups, rate


def test_vectors_are_not_decayed():
    layer = torch.nn.Linear(2, 2)
    matrices, vectors = decay_groups(layer.parameters(), 0.9)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.9, 0.0)
    assert [matrices["params"][0] is layer.weight, vectors["params"][0] is layer.bias] == [True, True]


def test_the_rate_rises_to_one_at_the_end_of_the_warm_up_and_falls_to_the_floor_at_the_last_step():
    rates = [rate(step, num_steps=100, warmup_share=0.1, floor=0.2) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.2)


def test_without_a_warm_up_the_first_step_has_the_highest_rate():
    assert rate(0, num_steps=10, warmup_share=0.0, floor=0.1) == 1.0


def test_a_minimum_above_the_rate_that_falls_to_it_is_refused():
    with pytest.raises(ValueError, match=r"min_learning_rate is 0\.1, but .* learning_rate 0\.01: lower"):
        adamw(
            torch.nn.Linear(2, 2).parameters(),
            num_steps=3,
            learning_rate=0.01,
            min_learning_rate=0.1,
            warmup_share=0.0,
            weight_decay=0.0,
        )

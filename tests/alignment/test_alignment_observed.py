"""What is told of a step, by hand."""

import math

import pytest
import torch

from leadre.alignment.observed import MEANS, observe, prefix_masses, running_names, shared_codes
from leadre.alignment.rows import Batch

ANSWERS = torch.tensor([[[1, 2, 3], [1, 2, 4], [5, 2, 3]], [[1, 2, 3], [1, 6, 3], [-1, -1, -1]]])
LOGPROBS = torch.tensor(
    [[[-1.0, -0.5, -2.0], [-1.0, -0.5, -3.0], [-4.0, 0.0, 0.0]], [[-0.25, -1.0, 0.0], [-0.25, -2.0, -1.0], [0.0] * 3]]
)
REFERENCE = torch.tensor([[-3.0, -4.0, -5.0], [-2.0, -3.0, 0.0]])


def batch(real=(True, True), total=2):
    real = torch.tensor(real)
    return Batch(torch.ones(2, 1), torch.ones(2), ANSWERS, REFERENCE.view(torch.int32), real, total)


def seen(real=(True, True), total=2):
    found = observe(torch.tensor([0.25, 0.75]), LOGPROBS, batch(real, total), reward_scale=2.0)
    names = (MEANS, running_names(3), running_names(3))
    return [dict(zip(of, values.tolist(), strict=True)) for of, values in zip(names, found, strict=True)]


def test_the_means_of_a_step_by_hand():
    # gains: chosen -.5, .75; rejected -.5 and 1, -.25: margins 2 * (0, -1.5) and 2 * 1
    means, _, _ = seen()
    assert means == pytest.approx(
        {
            "loss": 0.5,
            "chosen_logp": (-3.5 - 1.25) / 2,
            "rejected_logp": ((-4.5 - 4) / 2 - 3.25) / 2,
            "reward_margin": ((0 - 3) / 2 + 2) / 2,
            "reward_accuracy": (0 + 1) / 2,
        }
    )


def test_drop_prefix_mass_and_margins_by_level_by_hand():
    _, sums, counts = seen()
    masses = math.exp(-1.5) + math.exp(-0.25)  # two codes shared, and one; nothing by the pair of the other first code
    assert sums == pytest.approx(
        {"chosen_drop": 0.5 - 0.75, "prefix_mass": masses, "margin@0": -3, "margin@1": 2, "margin@2": 0}
    )
    assert counts == {"chosen_drop": 2, "prefix_mass": 2, "margin@0": 1, "margin@1": 1, "margin@2": 1}


def test_a_row_that_keeps_a_rank_busy_is_not_seen():
    means, sums, counts = seen(real=(False, True), total=1)
    assert means["chosen_logp"] == -1.25
    assert sums["chosen_drop"] == -0.75
    assert counts == {"chosen_drop": 1, "prefix_mass": 1, "margin@0": 0, "margin@1": 1, "margin@2": 0}


def test_what_ranks_have_seen_adds_up():
    losses = torch.tensor([0.25, 0.75])
    first, second, whole = (
        observe(losses, LOGPROBS, batch(real), reward_scale=2.0)
        for real in ((True, False), (False, True), (True, True))
    )
    for a, b, both in zip(first, second, whole, strict=True):
        torch.testing.assert_close(a + b, both)


def test_autocast_rounds_nothing():
    plain = seen()
    with torch.autocast("cpu", torch.bfloat16):
        assert seen() == plain


def test_the_mass_of_a_prefix_is_1_where_none_is_shared():
    shared = shared_codes(ANSWERS)
    assert shared.tolist() == [[2, 0], [1, 0]]
    assert prefix_masses(LOGPROBS, shared)[:, 1].tolist() == [1, 1]

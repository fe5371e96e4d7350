"""Intervals over users and seeds, and what may be concluded from them."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from experiments.verdict import Effect, effect, holm, judge, users_needed


def _effect(better, worse, samples=2000, seed=0):
    return effect(
        np.asarray(better, dtype=float),
        np.asarray(worse, dtype=float),
        samples=samples,
        confidence=0.95,
        generator=np.random.default_rng(seed),
    )


def _found(mean, low, high, p=0.001, users=1000, of_users=1e-4, of_seeds=0.0):
    return Effect(mean, low, high, p, users, of_users, of_seeds)


def test_the_variances_are_those_of_a_table_by_hand():
    # Two seeds, two users: differences [[1, 0], [3, 2]]. Seeds' means .5 and 2.5, no interaction at all:
    # between seeds the variance is 2, of the mean of two 1; users' means are 2 and 1, drawn again var .25 / 2.
    found = _effect([[1, 0], [3, 2]], np.zeros((2, 2)), samples=200_000)
    assert found.mean == 1.5
    assert found.of_seeds == pytest.approx(1.0)
    assert found.of_users == pytest.approx(0.125, rel=0.02)


def test_where_seeds_agree_the_interval_is_the_plain_bootstrap_over_users():
    rng = np.random.default_rng(1)
    users = rng.normal(0.1, 1, 300)
    found = _effect(np.tile(users, (3, 1)), np.zeros((3, 300)), samples=20_000)
    plain = users[rng.integers(300, size=(20_000, 300))].mean(axis=1)
    np.testing.assert_allclose([found.low, found.high], np.quantile(plain, [0.025, 0.975]), atol=0.01)
    assert found.of_seeds == 0


def test_seeds_that_differ_widen_the_interval_by_students_t():
    ends = 4.303 * np.sqrt(1 / 3)  # t of 2 degrees of freedom at .975; three seeds of variance 1
    found = _effect(np.array([[-1.0], [0.0], [1.0]]) + np.zeros((3, 5)), np.zeros((3, 5)), samples=200_000)
    assert [found.low, found.high] == pytest.approx([-ends, ends], rel=0.03)


def test_users_that_are_not_scored_in_a_row_are_left_out_of_all_seeds():
    found = _effect([[1, np.nan, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, np.nan]])
    assert (found.users, found.mean) == (1, 1.0)
    with pytest.raises(ValueError, match="no user is scored in both rows"):
        _effect([[np.nan]], [[0.0]])
    with pytest.raises(ValueError, match=r"better is \(1, 2\), worse is \(1, 3\)"):
        _effect(np.zeros((1, 2)), np.zeros((1, 3)))


@given(st.integers(0, 1000), st.integers(1, 3), st.integers(2, 30))
@example(223, 2, 13)  # a variance of seeds that is 0 but for rounding, and draws at 0
def test_the_order_of_users_does_not_matter_and_turning_rows_round_turns_the_effect_round(seed, seeds, users):
    rng = np.random.default_rng(seed)
    better, worse = rng.integers(0, 2, (2, seeds, users))
    shuffled = rng.permutation(users)
    found, other = _effect(better, worse, samples=50), _effect(better[:, shuffled], worse[:, shuffled], samples=50)
    assert found == pytest.approx(other)
    assert _effect(worse, better, samples=50).mean == -found.mean
    assert found.low <= found.high
    assert 0 < found.p <= 1


@pytest.mark.slow
@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.03])
def test_intervals_hold_the_true_difference_about_as_often_as_they_say(of_seeds):
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        users, swings = rng.normal(0, 0.25, (1, 800)), rng.normal(0, 0.3, (3, 800))
        found = _effect(users + swings + rng.normal(0, of_seeds, (3, 1)), np.zeros((3, 800)), samples=300)
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 400 <= 0.985


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_p_values_are_those_of_the_textbook(p):
    adjusted = holm(p)
    for place, value in enumerate(p):
        before = [other for other in p if other <= value]
        steps = [(len(p) - sum(x < other for x in p)) * other for other in before]
        assert adjusted[place] == pytest.approx(min(1.0, max(steps)))


def test_users_needed_shrink_with_the_square_of_the_effect_and_seeds_set_a_floor():
    wide = users_needed(_found(0.028, 0, 0), seeds=3, confidence=0.95)
    assert wide == pytest.approx(1000 * 1e-4 / (0.028 / 2.8016) ** 2, abs=1)
    assert users_needed(_found(0.056, 0, 0), seeds=3, confidence=0.95) == pytest.approx(wide / 4, abs=1)
    assert users_needed(_found(0.028, 0, 0, of_seeds=4.4e-5), seeds=3, confidence=0.95) is None, "4.3 x .0066 > .028"
    assert users_needed(_found(0.028, 0, 0, of_seeds=4.4e-5), seeds=30, confidence=0.95) is not None
    assert users_needed(_found(0.0, 0, 0), seeds=3, confidence=0.95) is None


@given(st.floats(1e-3, 0.1), st.floats(1e-6, 1e-3), st.floats(0, 1e-4), st.integers(1, 6))
def test_users_needed_are_just_enough(mean, of_users, of_seeds, claims):
    found = _found(mean, 0, 0, of_users=of_users, of_seeds=of_seeds)
    needed = users_needed(found, seeds=3, confidence=1 - 0.05 / claims)
    if needed is not None:
        then = found._replace(users=needed, of_users=of_users * 1000 / needed)
        assert users_needed(then, seeds=3, confidence=1 - 0.05 / claims) == pytest.approx(needed, abs=1)


NULL = _found(0.0, -0.01, 0.01, p=0.9)
OVER = _found(0.05, 0.02, 0.08)


@pytest.mark.parametrize(
    ("found", "p", "excess", "seeds", "verdict", "why"),
    [
        (_found(0.05, 0.03, 0.07), 0.01, OVER, 3, "holds", "above its negative control's"),
        (_found(0.05, 0.03, 0.07), 0.01, None, 3, "undecided", "control was not run with three seeds"),
        (_found(0.05, 0.03, 0.07), 0.01, NULL, 3, "undecided", "control's difference cannot be told from it"),
        (_found(0.05, 0.03, 0.07), 0.01, OVER, 2, "undecided", "2 training seeds"),
        (_found(0.05, 0.03, 0.07, of_users=1e-3), 0.06, OVER, 3, "undecided", "cannot be told from none with 1,000"),
        (_found(-0.05, -0.07, -0.03), 0.01, NULL, 3, "fails", "the other way round"),
        (_found(-0.05, -0.07, -0.03), 0.01, None, 3, "fails", "the other way round"),
        (_found(-0.05, -0.07, -0.03), 0.01, None, 1, "undecided", "1 training seed:"),
        (_found(0.01, -0.1, 0.1, of_seeds=1.0), 0.9, OVER, 3, "undecided", "more training seeds are needed"),
    ],
)
def test_a_claim_holds_only_with_seeds_and_above_its_control(found, p, excess, seeds, verdict, why):
    judged = judge(found, p, excess, seeds=seeds, claims=1, confidence=0.95)
    assert judged.verdict == verdict
    assert why in judged.why


def test_where_the_control_gains_as_much_as_the_claim_nothing_holds():
    """Rows of 400 users: the control's pair differs just as the claim's does, seed by seed and user by user."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        worse = rng.binomial(1, 0.3, (3, 400)).astype(float)
        better, gaining = (np.maximum(worse, rng.binomial(1, 0.15, (3, 400))) for _ in range(2))
        found = _effect(better, worse, samples=300)
        excess = _effect(better - worse, gaining - worse, samples=300)
        verdict = judge(found, found.p, excess, seeds=3, claims=1, confidence=0.95).verdict
        if excess.low <= 0:
            assert verdict == "undecided"

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from leadre.metrics.uncertainty import bootstrap_interval, paired_bootstrap, resampled_means, wilson


def column(values):
    return np.asarray(values, dtype=np.float64)[:, None]


def draw(seed=0):
    return np.random.default_rng(seed)


@given(st.integers(1, 500), st.data())
def test_wilson_agrees_with_scipy(users, data):
    hits = data.draw(st.integers(0, users))
    theirs = binomtest(hits, users).proportion_ci(0.95, method="wilson")
    assert wilson(hits, users, confidence=0.95) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_bootstrap_agrees_with_scipys_percentiles():
    values = draw(1).random(200)
    ours = bootstrap_interval(column(values), samples=4000, confidence=0.9, generator=draw())
    theirs = bootstrap(
        (values,), np.mean, n_resamples=4000, confidence_level=0.9, method="percentile", rng=draw(5)
    ).confidence_interval
    assert (ours.low[0], ours.high[0]) == pytest.approx((theirs.low, theirs.high), abs=3e-3)


def test_equal_seeds_give_equal_numbers_and_0_is_a_seed():
    values = column(draw(1).random(50))
    first, again, other = (resampled_means(values, samples=40, generator=draw(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pairing_cancels_what_users_have_in_common():
    easy = draw(2).random(300)  # users differ a lot, the systems by the same 0.01 for each
    pair = paired_bootstrap(column(easy + 0.01), column(easy), samples=200, confidence=0.95, generator=draw())
    assert (pair.low[0], pair.mean[0], pair.high[0]) == pytest.approx((0.01, 0.01, 0.01))
    assert pair.ratio[0] == pytest.approx((easy.mean() + 0.01) / easy.mean())


def test_a_system_against_itself_differs_by_nothing():
    values = draw(3).random((20, 3))
    pair = paired_bootstrap(values, values, samples=10, confidence=0.95, generator=draw())
    assert pair.mean.tolist() == pair.low.tolist() == pair.high.tolist() == [0, 0, 0]
    assert pair.ratio.tolist() == [1, 1, 1]


def test_users_that_are_not_scored_count_in_no_mean():
    values = np.array([[1.0, np.nan, 0.5], [np.nan, np.nan, 0.5], [1.0, np.nan, 0.5]])
    ends = bootstrap_interval(values, samples=50, confidence=0.95, generator=draw())
    assert ends.low[[0, 2]].tolist() == ends.high[[0, 2]].tolist() == [1.0, 0.5]
    assert np.isnan([ends.low[1], ends.high[1]]).all()


def test_the_ratio_to_nothing_is_not_a_number():
    pair = paired_bootstrap(column([1, 0]), column([0, 0]), samples=9, confidence=0.95, generator=draw())
    assert np.isnan(pair.ratio[0])
    assert pair.mean[0] == 0.5


@pytest.mark.slow
def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    held = 0
    for seed in range(300):
        values = column(draw(seed).random(80) < 0.3)
        ends = bootstrap_interval(values, samples=300, confidence=0.9, generator=draw(seed + 1000))
        held += ends.low[0] <= 0.3 <= ends.high[0]
    assert 0.84 <= held / 300 <= 0.95


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="3 hits of 2 users is no share"):
        wilson(3, 2, confidence=0.95)
    with pytest.raises(ValueError, match="0 hits of 0 users"):
        wilson(0, 0, confidence=0.95)
    with pytest.raises(ValueError, match="confidence is 95, must lie between 0 and 1"):
        wilson(1, 2, confidence=95)
    with pytest.raises(ValueError, match="samples is 0"):
        resampled_means(column([1]), samples=0, generator=draw())
    with pytest.raises(ValueError, match=r"values is \(0, 1\)"):
        resampled_means(np.empty((0, 1)), samples=3, generator=draw())
    with pytest.raises(ValueError, match=r"first is \(2, 1\), second is \(1, 1\)"):
        paired_bootstrap(column([1, 1]), column([1]), samples=3, confidence=0.9, generator=draw())

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap, ks_2samp

from leadre.metrics.uncertainty import Tally, bootstrap_interval, resampled_means, wilson


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


def test_users_that_are_not_scored_count_in_no_mean():
    values = np.array([[1.0, np.nan, 0.5], [np.nan, np.nan, 0.5], [1.0, np.nan, 0.5]])
    ends = bootstrap_interval(values, samples=50, confidence=0.95, generator=draw())
    assert ends.low[[0, 2]].tolist() == ends.high[[0, 2]].tolist() == [1.0, 0.5]
    assert np.isnan([ends.low[1], ends.high[1]]).all()


def tallied(values, blocks=1):
    tally = Tally()
    for block in np.array_split(np.asarray(values, dtype=np.float64), blocks):
        tally.add(block)
    return tally


def test_pairing_cancels_what_users_have_in_common():
    easy = draw(2).random(300)  # users differ a lot, the systems by the same 0.01 for each
    pair = tallied((easy + 0.01) - easy)
    assert pair.interval(samples=200, confidence=0.95, generator=draw()) == pytest.approx((0.01, 0.01))


@given(st.lists(st.floats(-1e6, 1e6) | st.just(np.nan), max_size=40), st.integers(1, 5))
def test_a_tally_has_the_mean_of_those_that_are_scored_however_they_are_added(values, blocks):
    tally, scored = tallied(values, blocks), [value for value in values if not np.isnan(value)]
    assert (tally.scored, tally.unscored) == (len(scored), len(values) - len(scored))
    assert tally.mean == pytest.approx(np.mean(scored) if scored else np.nan, nan_ok=True, abs=1e-9, rel=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        draw(4).random(300) < 0.2,
        draw(4).choice([0, 1 / 3, 0.5, 1], size=300),
        np.where(draw(4).random(300) < 0.4, np.nan, draw(5).choice([0, 0.125, 0.25], size=300)),
        draw(4).random(300),
        draw(4).lognormal(0, 1.5, size=300),
        draw(4).normal(0, 1, size=300),
    ],
    ids=["hits", "shares", "some not scored", "uniform", "skewed", "of both signs"],
)
def test_the_bootstrap_of_a_tally_is_that_of_its_users(values):
    """Two samples of 5,000 means each are not told apart; of hits and shares they are numbers of the same lattice."""
    values = np.asarray(values, dtype=np.float64)
    exact = resampled_means(column(values), samples=5000, generator=draw())[:, 0]
    ours = tallied(values, 3).resampled_means(samples=5000, generator=draw(1))
    assert ours.mean() == pytest.approx(exact.mean(), abs=0.06 * exact.std())
    assert ours.std() == pytest.approx(exact.std(), rel=0.05)
    assert ks_2samp(ours.round(12), exact.round(12)).statistic < 0.04


def test_a_tally_of_equal_numbers_is_sure_and_one_without_any_says_nothing():
    options = {"samples": 50, "confidence": 0.95, "generator": draw()}
    assert tallied([0.63] * 7 + [np.nan]).interval(**options) == pytest.approx((0.63, 0.63), abs=1e-15)
    assert np.isnan(tallied([np.nan] * 3).interval(**options)).all()
    assert np.isnan(tallied([np.nan] * 3).mean)


def test_a_tally_stays_small():
    tally = tallied(draw(6).random(200_000), 20)
    assert tally._totals.nbytes < 20_000


def test_a_tally_refuses_to_draw_nobody():
    with pytest.raises(ValueError, match="there are 0 users: an interval needs 1 or more"):
        Tally().resampled_means(samples=3, generator=draw())
    with pytest.raises(ValueError, match="samples is 0"):
        tallied([1.0]).resampled_means(samples=0, generator=draw())


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
    for number in (np.inf, -np.inf):
        with pytest.raises(ValueError, match="values holds 1 infinite numbers of 3: a user's number is finite, or NaN"):
            tallied([1.0, np.nan, number])

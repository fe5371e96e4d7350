import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadre.metrics.similarity import dice, rbo

ads = st.integers(-1, 6)


@given(arrays(np.int64, (3, 5), elements=ads), arrays(np.int64, (3, 4), elements=ads), st.integers(1, 6))
def test_dice_agrees_with_python_sets_and_is_symmetric(first, second, k):
    def top(row):
        return {ad for ad in [a for i, a in enumerate(row) if a == -1 or a not in row[:i]][:k] if ad != -1}

    values = dice(first, second, k=k)
    for user, (one, other) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        a, b = top(one), top(other)
        assert values[user] == pytest.approx(2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0)
    np.testing.assert_array_equal(dice(second, first, k=k), values)
    np.testing.assert_array_equal(dice(first, first, k=k), np.ones(3))


def test_dice_by_hand_with_its_edges():
    first = np.array([[1, 2, 3, 4], [1, 2, 3, 4], [-1, -1, -1, -1], [-1, -1, -1, -1], [1, 1, 2, -1]])
    second = np.array([[4, 3, 9, 8], [5, 6, 7, 8], [-1, -1, -1, -1], [1, 2, 3, 4], [2, 1, -1, -1]])
    assert dice(first, second, k=4).tolist() == [0.5, 0.0, 1.0, 0.0, 1.0]


def test_the_order_does_not_count_but_the_cut_does():
    first, second = np.array([[1, 2, 3]]), np.array([[3, 2, 1]])
    assert dice(first, second, k=3).tolist() == [1.0]
    assert dice(first, second, k=1).tolist() == [0.0]
    with pytest.raises(ValueError, match="k is 0"):
        dice(first, second, k=0)


def _agreement(first, second, depth):
    """The share of the first ``depth`` places that two lists have in common, as Webber extrapolates it."""
    short, long = sorted([first, second], key=len)
    s, l = len(short), len(long)  # noqa: E741  # Webber's names
    shared = [len(set(short[:d]) & set(long[:d])) for d in range(max(depth, l) + 1)]
    if depth <= s:
        return shared[depth] / depth
    if depth <= l:
        return (shared[depth] + shared[s] * (depth - s) / s) / depth
    return (shared[l] - shared[s]) / l + shared[s] / s


@given(
    st.lists(st.integers(0, 9), unique=True, max_size=7),
    st.lists(st.integers(0, 9), unique=True, max_size=7),
    st.sampled_from([0.3, 0.8]),
)
@settings(deadline=None)
def test_rbo_is_the_weighted_agreement_over_all_depths(one, other, p):
    (value,) = rbo(_row(one), _row(other), k=7, p=p)
    (turned,) = rbo(_row(other), _row(one), k=7, p=p)
    if one and other:
        expected = (1 - p) * sum(p ** (depth - 1) * _agreement(one, other, depth) for depth in range(1, 100))
        assert value == pytest.approx(expected, abs=1e-9)
    else:
        assert value == (one == other)
    assert turned == pytest.approx(value)
    assert -1e-12 <= value <= 1 + 1e-12
    assert rbo(_row(one), _row(one), k=7, p=p)[0] == pytest.approx(1)


def _row(ads):
    return np.array([ads + [-1] * (8 - len(ads))])


def test_rbo_by_hand_and_its_front_places_count_most():
    """Of [1,2] and [1,3] with p = .5: depth 1 has 1, depth 2 has 1/2 and so has all beyond: .5 + .25/2 + .25/2."""
    first = np.array([[1, 2], [1, 2], [1, 2], [1, 1], [-1, -1]])
    second = np.array([[1, 3], [3, 2], [4, 5], [1, -1], [-1, -1]])
    np.testing.assert_allclose(rbo(first, second, k=2, p=0.5), [0.75, 0.25, 0.0, 1.0, 1.0])


def test_a_place_without_an_ad_is_like_no_other():
    assert rbo(np.array([[-1, 2]]), np.array([[-1, 2]]), k=2, p=0.5)[0] == pytest.approx(0.25)


@pytest.mark.parametrize(("p", "k", "match"), [(1.0, 8, "p is 1.0, must lie between"), (0.9, 0, "k is 0")])
def test_rbo_refuses_weights_and_cuts_that_are_none(p, k, match):
    with pytest.raises(ValueError, match=match):
        rbo(np.array([[1]]), np.array([[1]]), k=k, p=p)

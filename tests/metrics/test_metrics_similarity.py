import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadre.metrics.similarity import dice

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

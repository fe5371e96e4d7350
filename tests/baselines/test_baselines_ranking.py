import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.baselines.ranking import best, exact

NOTHING = torch.zeros(2, 0, dtype=torch.int64)


class Fixed(torch.nn.Module):
    """Its inputs are the scores."""

    def scores(self, inputs):
        return inputs.clone()


few = st.sampled_from([-1.5, -0.0, 0.0, 2.0, -np.inf])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(few, min_size=n, max_size=n), max_size=4)), st.data())
def test_the_best_are_the_beginning_of_a_stable_sort(rows, data):
    width = len(rows[0]) if rows else 3
    scores = torch.tensor(rows).reshape(len(rows), width)
    size = data.draw(st.integers(1, width))
    order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :size]
    assert best(scores, size).tolist() == order.tolist()


def test_ads_that_are_left_out_are_in_no_list_and_a_list_without_enough_others_is_filled_up():
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 5.0]])
    left_out = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 2]])
    found = exact(Fixed(), scores, left_out, size=3)
    assert found.ads.tolist() == [[2, -1, -1], [0, 1, -1]]
    assert found.scores.tolist() == [[1.0, -torch.inf, -torch.inf], [1.0, 1.0, -torch.inf]]
    assert exact(Fixed(), scores, NOTHING, size=2).ads.tolist() == [[0, 1], [2, 0]]


def test_a_list_is_no_longer_than_the_catalog():
    assert exact(Fixed(), torch.tensor([[1.0, 2.0]]), NOTHING, size=9).ads.tolist() == [[1, 0]]

"""Top-K accuracy, by hand, against plain Python, and at its bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.inspection.accuracy import Task, accuracy, ceiling, chance, found, macro, sample

KS = (1, 2, 3)


def whole(category, queries=None):
    rows = np.arange(len(category))
    return Task(rows if queries is None else np.array(queries), rows, np.array(category))


def test_four_ads_on_a_circle_by_hand():
    """Ads 0 and 1 are of one category and side by side; 2 is nearer to 1 than to 3, its only fellow."""
    x = np.array([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5], [0.0, 1.0]])
    task = whole([0, 0, 1, 1])
    neighbors = found(task, x, most=3)
    assert neighbors.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    assert accuracy(task, neighbors, KS).tolist() == [
        [1, 1 / 2, 1 / 3],
        [1, 1 / 2, 1 / 3],
        [0, 0, 1 / 3],
        [1, 1 / 2, 1 / 3],
    ]
    assert ceiling(task, KS)[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert chance(task, KS)[0].tolist() == pytest.approx([1 / 3] * 3)


def test_the_papers_sample_has_its_ceiling_and_its_chance():
    task = whole(np.repeat(np.arange(48), 100))
    assert macro(ceiling(task, (1, 10, 50, 100)), task) == pytest.approx([1, 1, 1, 0.99])
    assert macro(chance(task, (1, 100)), task) == pytest.approx([99 / 4799] * 2)  # 2.06 %


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-1, 3), min_size=2, max_size=25), st.integers(0, 99))
def test_accuracy_is_that_of_plain_python_and_within_its_bounds(category, seed):
    queries = [row for row, number in enumerate(category) if number >= 0]
    if not queries:
        return
    x = np.random.default_rng(seed).normal(size=(len(category), 3))
    task = whole(category, queries)
    neighbors = found(task, x, most=3)
    values = accuracy(task, neighbors, KS)
    for line, query in enumerate(queries):
        for column, k in enumerate(KS):
            if k > len(category) - 1:
                assert np.isnan(values[line, column])
                assert np.isnan(ceiling(task, KS)[line, column])
                continue
            same = [category[row] == category[query] for row in neighbors[line, :k]]
            assert values[line, column] == pytest.approx(np.mean(same))
    assert (values <= ceiling(task, KS) + 1e-12)[~np.isnan(values)].all()


def test_categories_as_embeddings_are_found_always_and_other_vectors_by_chance():
    category = np.repeat(np.arange(10), 40)
    generator = np.random.default_rng(0)
    task = whole(category)
    told = np.eye(10)[category] + generator.normal(scale=0.01, size=(400, 10))
    assert macro(accuracy(task, found(task, told, most=10), (10,)), task) == pytest.approx([1.0])
    mixed = found(task, generator.normal(size=(400, 10)), most=10)
    assert macro(accuracy(task, mixed, (10,)), task) == pytest.approx(macro(chance(task, (10,)), task), abs=0.02)


def test_queries_come_from_the_largest_categories_and_all_of_a_small_one():
    category = np.array([5] * 7 + [2] * 3 + [9] * 2 + [0] + [-1] * 30)
    drawn = sample(category, categories=3, ads=4, generator=np.random.default_rng(0))
    assert sorted(drawn.tolist()) == drawn.tolist()
    assert np.bincount(category[drawn]).tolist() == [0, 0, 3, 0, 0, 4, 0, 0, 0, 2]
    drawn = sample(category, categories=1, ads=9, generator=np.random.default_rng(0))
    assert drawn.tolist() == list(range(7))
    assert not len(sample(np.array([-1, 0, 1]), categories=9, ads=9, generator=np.random.default_rng(0)))


def test_a_small_category_weighs_as_much_as_a_large_one():
    task = whole([0, 0, 0, 0, 1, 1])
    values = np.array([[1.0], [1.0], [1.0], [1.0], [0.0], [0.5]])
    assert macro(values, task).tolist() == [0.625]

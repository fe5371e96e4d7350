"""Exact neighbors, against a full sort, scikit-learn, and themselves in other blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.neighbors import NearestNeighbors

from leadre.inspection import neighbors
from leadre.inspection.neighbors import nearest


def _sorted(queries, pool, k, exclude=None):
    """Every cosine, one by one, and a stable sort."""
    found = []
    for number, query in enumerate(queries.astype(np.float64)):
        cosines = []
        for row, vector in enumerate(pool.astype(np.float64)):
            lengths = np.linalg.norm(query) * np.linalg.norm(vector)
            if exclude is None or row != exclude[number]:
                cosines.append((-round(query @ vector / lengths if lengths else 0.0, 9), row))
        found.append([row for _, row in sorted(cosines)[:k]])
    return found


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(3, 25), st.just(2)), elements=st.sampled_from([-1.0, 0.0, 1.0, 2.0])),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_vectors_full_of_ties_and_zeros_come_in_the_order_of_a_full_sort(pool, k, block):
    k = min(k, len(pool) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "POOL", block)
        patch.setattr(neighbors, "QUERIES", 4)
        assert nearest(pool, pool, k).rows.tolist() == _sorted(pool, pool, k)
        rows = np.arange(len(pool))
        assert nearest(pool, pool, k, exclude=rows).rows.tolist() == _sorted(pool, pool, k, exclude=rows)


def test_the_neighbors_and_cosines_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    queries, pool = generator.normal(size=(20, 8)), generator.normal(size=(300, 8)).astype(np.float32)
    distances, rows = NearestNeighbors(metric="cosine", algorithm="brute").fit(pool).kneighbors(queries, 7)
    found = nearest(queries, pool, 7)
    assert found.rows.tolist() == rows.tolist()
    np.testing.assert_allclose(found.similarities, 1 - distances, atol=1e-6)


def test_equal_vectors_are_tied_whatever_block_they_stand_in(monkeypatch):
    generator = np.random.default_rng(1)
    pool = np.repeat(generator.normal(size=(5, 64)).astype(np.float32), 40, axis=0)
    pool = pool[np.random.default_rng(2).permutation(len(pool))]
    whole = nearest(pool[:10], pool, 50)
    for block in (7, 64):
        monkeypatch.setattr(neighbors, "POOL", block)
        found = nearest(pool[:10], pool, 50)
        assert found.rows.tolist() == whole.rows.tolist()
    for row in range(10):
        same = np.flatnonzero((pool == pool[row]).all(1))
        assert whole.rows[row, :40].tolist() == same.tolist()


def test_only_the_rows_to_choose_from_are_found_and_told_as_rows_of_the_pool():
    pool = np.float32([[1, 0], [1, 0.1], [0, 1], [1, 0.2]])
    found = nearest(pool[:1], pool, 2, rows=np.array([2, 3]))
    assert found.rows.tolist() == [[3, 2]]
    assert nearest(pool[:0], pool, 2).rows.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 4])
def test_more_neighbors_than_there_are_is_an_error(k):
    with pytest.raises(ValueError, match=rf"k is {k}, but there are 3 rows to choose from: use 1 to 3"):
        nearest(np.eye(4), np.eye(4), k, exclude=np.arange(4))

"""Sample ads beside their neighbors, against a sort of all others."""

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.inspection.side_by_side import longest_prefix, side_by_side


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(1, 6), st.integers(0, 99))
def test_the_longest_prefixes_come_in_the_order_of_a_full_sort(num_ads, most, seed):
    generator = np.random.default_rng(seed)
    x, codes = generator.normal(size=(num_ads, 4)), generator.integers(0, 3, size=(num_ads, 3))
    rows = np.arange(num_ads)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for row in range(num_ads):
        shared = (codes == codes[row]).cumprod(1).sum(1)
        ranked = sorted((-shared[other], -(unit[row] @ unit[other]), other) for other in rows if other != row)
        wanted = [other for length, _, other in ranked if length < 0][:most]
        assert longest_prefix(x, row, rows, shared, most) == wanted


def test_more_samples_or_neighbors_than_ads_are_all_there_are():
    ads = pl.DataFrame({"ad_id": ["a", "b", "c"]})
    x, codes = np.eye(3), np.array([[0], [0], [1]])
    told = side_by_side(ads, x, codes, rows=np.arange(3), samples=9, neighbors=9, generator=np.random.default_rng(0))
    assert [sample["ad"]["ad_id"] for sample in told] == ["a", "b", "c"]
    assert [[other["ad_id"] for other in sample["nearest"]] for sample in told] == [["b", "c"], ["a", "c"], ["a", "b"]]
    assert [[other["ad_id"] for other in sample["prefix"]] for sample in told] == [["b"], ["a"], []]
    assert told[0]["nearest"][0] == {"ad_id": "b", "cosine": 0.0, "shared": 1}

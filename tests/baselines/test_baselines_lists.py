import numpy as np
import polars as pl
import pytest

from leadre.baselines.lists import ranked
from leadre.baselines.popularity import own_history_lists, popular_lists, train_counts

ADS = ["a", "b", "c", "d"]


def _split(*rows):
    return pl.DataFrame(rows, schema=["user_id", "role", "ad_id", "time"], orient="row")


def test_train_counts_by_hand():
    split = _split(
        ("u", "train", "b", 1),
        ("u", "valid", "a", 2),
        ("u", "test", "a", 3),
        ("v", "train", "b", 1),
        ("v", "train", "x", 2),
    )
    assert train_counts(split, ADS).tolist() == [0, 2, 0, 0]


def test_popularity_is_the_same_for_all_and_ties_are_in_order_of_ids():
    lists = popular_lists(["u", "v"], ADS, np.array([1.0, 2.0, 1.0, 0.0]), size=3)
    assert lists["ad_id"].to_list() == ["b", "a", "c"] * 2
    assert lists["rank"].to_list() == [1, 2, 3] * 2
    assert lists["score"].to_list() == [2.0, 1.0, 1.0] * 2


def test_own_history_by_hand():
    """User u saw d, b, d, x (not in the catalog) and content; v nothing. Popularity is c, a, b, d."""
    history = pl.DataFrame(
        [(0, "d", "ad"), (0, "b", "ad"), (0, "d", "ad"), (0, "a", "content"), (0, "x", "ad")],
        schema=["target", "item_id", "domain"],
        orient="row",
    )
    lists = own_history_lists(["u", "v"], ADS, np.array([2.0, 1.0, 3.0, 0.0]), history, size=3)
    assert lists["ad_id"].to_list() == ["d", "b", "c", "c", "a", "b"]
    assert lists["score"].to_list() == [-1, -2, -3] * 2


def test_a_catalog_of_few_ads_gives_short_lists():
    assert ranked(["u"], ["a", "b"], np.array([[0.0, 1.0]]), size=9)["ad_id"].to_list() == ["b", "a"]


def test_unsorted_ads_are_refused():
    with pytest.raises(ValueError, match="ads are not sorted and unique, so ties cannot be broken by ad_id"):
        ranked(["u"], ["b", "a"], np.zeros((1, 2)), size=1)

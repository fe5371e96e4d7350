import numpy as np
import polars as pl
import pytest

from leadre.baselines.features import Bags
from leadre.baselines.lists import ranked, ranked_in_chunks
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


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_users_ranked_in_chunks_have_the_lists_of_all_at_once(chunk):
    scores = np.random.default_rng(0).integers(0, 3, (7, 4)).astype(np.float64)
    users = [f"u{n}" for n in range(7)]
    whole = ranked(users, ADS, scores, size=3)
    asked = []

    def part(start, stop):
        asked.append(stop - start)
        return scores[start:stop]

    assert ranked_in_chunks(users, ADS, part, size=3, chunk=chunk).equals(whole)
    assert max(asked) <= chunk


def test_nobody_has_no_lists():
    lists = ranked_in_chunks([], ADS, lambda start, stop: np.zeros((stop - start, 4)), size=3)
    assert lists.schema == ranked(["u"], ADS, np.zeros((1, 4)), size=3).schema
    assert lists.is_empty()
    assert popular_lists([], ADS, np.zeros(4), size=3).equals(lists)


def test_popularity_equals_the_ranking_of_equal_rows():
    counts = np.array([1.0, 2.0, 2.0, 0.0])
    lists = popular_lists(["u", "v", "w"], ADS, counts, size=9)
    assert lists.equals(ranked(["u", "v", "w"], ADS, np.tile(counts, (3, 1)), size=9))


def test_a_part_of_the_bags_is_those_rows():
    bags = Bags(np.array([4, 5, 6, 7]), np.array([1, 2, 3, 4], dtype=np.float32), np.array([0, 1, 1, 4]))
    part = bags.part(1, 3)
    assert (part.feature.tolist(), part.weight.tolist(), part.offsets.tolist()) == ([5, 6, 7], [2, 3, 4], [0, 0, 3])

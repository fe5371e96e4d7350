import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from leadre.metrics.ranking import (
    capped_recall,
    deduplicate,
    hit_rate,
    hits,
    mean_value,
    ndcg,
    rank_of,
    recall,
    value_recall,
)

METRICS = [hit_rate, ndcg, recall, capped_recall]
CUTS = (1, 4, 8, 10, 20)


@st.composite
def problems(draw):
    users = draw(st.integers(1, 5))
    ads = st.integers(-1, 8)
    lists = draw(arrays(np.int64, (users, draw(st.integers(0, 7))), elements=ads))
    truths = draw(arrays(np.int64, (users, draw(st.integers(1, 4))), elements=ads))
    return lists, truths


def by_sets(lists, truths, k):
    """The definitions, a user at a time, with Python's sets."""
    found = {"hit": [], "recall": [], "capped": [], "ndcg": []}
    for row, truth in zip(lists.tolist(), truths.tolist(), strict=True):
        seen, kept = set(), []
        for ad in row:
            if ad == -1 or ad not in seen:
                kept.append(ad)
            seen.add(ad)
        good = set(truth) - {-1}
        places = [place for place, ad in enumerate(kept[:k]) if ad in good]
        ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(good))))
        empty = not good
        found["hit"].append(np.nan if empty else float(bool(places)))
        found["recall"].append(np.nan if empty else len(places) / len(good))
        found["capped"].append(np.nan if empty else len(places) / min(k, len(good)))
        found["ndcg"].append(np.nan if empty else sum(1 / np.log2(p + 2) for p in places) / ideal)
    return found


@given(problems(), st.integers(1, 9))
def test_the_arrays_agree_with_the_definitions_a_user_at_a_time(problem, k):
    lists, truths = problem
    expected = by_sets(lists, truths, k)
    np.testing.assert_array_equal(hit_rate(lists, truths, k=k), expected["hit"])
    np.testing.assert_allclose(recall(lists, truths, k=k), expected["recall"])
    np.testing.assert_allclose(capped_recall(lists, truths, k=k), expected["capped"])
    np.testing.assert_allclose(ndcg(lists, truths, k=k), expected["ndcg"])


def random_case(seed, num_truths, users=60, ads=80, width=20):
    generator = np.random.default_rng(seed)
    order = generator.permuted(np.tile(np.arange(ads), (users, 1)), axis=1)
    lists = order[:, :width].copy()
    lists[np.arange(width) >= generator.integers(0, width + 1, size=(users, 1))] = -1  # also empty lists
    truths = generator.permuted(np.tile(np.arange(ads), (users, 1)), axis=1)[:, :num_truths].copy()
    truths[:, 1:][generator.random((users, num_truths - 1)) < 0.3] = -1
    return lists, truths


@pytest.mark.parametrize("num_truths", [1, 12])
def test_ir_measures_gives_the_same_hit_rate_ndcg_and_recall(num_truths):
    lists, truths = random_case(3, num_truths)
    qrels = [ir_measures.Qrel(str(u), str(ad), 1) for u, row in enumerate(truths) for ad in row if ad >= 0]
    run = [
        ir_measures.ScoredDoc(str(u), str(ad), float(-place))
        for u, row in enumerate(lists)
        for place, ad in enumerate(row)
        if ad >= 0
    ]
    pairs = {
        measure @ k: ours(lists, truths, k=k).mean()
        for measure, ours in [
            (ir_measures.Success, hit_rate),
            (ir_measures.nDCG, ndcg),
            (ir_measures.R, recall),
        ]
        for k in CUTS
    }
    theirs = ir_measures.calc_aggregate(list(pairs), qrels, run)
    assert {m: pytest.approx(theirs[m], abs=1e-9) for m in pairs} == pairs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # numba speaks about casts while it compiles
@pytest.mark.parametrize("num_truths", [1, 12])
def test_ranx_gives_the_same_hit_rate_ndcg_and_recall(num_truths):
    from ranx import Qrels, Run, evaluate

    lists, truths = random_case(4, num_truths)
    qrels = Qrels({str(u): {str(ad): 1 for ad in row if ad >= 0} for u, row in enumerate(truths)})
    run = Run({str(u): {str(ad): float(-p) for p, ad in enumerate(row) if ad >= 0} for u, row in enumerate(lists)})
    for name, ours in [("hit_rate", hit_rate), ("ndcg", ndcg), ("recall", recall)]:
        for k in CUTS:
            theirs = evaluate(qrels, run, f"{name}@{k}", make_comparable=True)
            assert ours(lists, truths, k=k).mean() == pytest.approx(theirs, abs=1e-9)


def test_a_hit_at_the_third_place_is_worth_a_half_and_no_hit_nothing():
    lists = np.array([[4, 5, 6, 7], [4, 5, 7, 8]])
    truths = np.array([[6], [6]])
    assert ndcg(lists, truths, k=4).tolist() == [0.5, 0.0]
    assert hit_rate(lists, truths, k=2).tolist() == [0.0, 0.0]
    assert hit_rate(lists, truths, k=3).tolist() == [1.0, 0.0]


def test_ndcg_with_two_truths_by_hand():
    value = ndcg(np.array([[1, 9, 2]]), np.array([[1, 2]]), k=3)[0]
    assert value == pytest.approx((1 + 1 / 2) / (1 + 1 / np.log2(3)))
    assert ndcg(np.array([[1, 9, 2]]), np.array([[1, 2]]), k=1).tolist() == [1.0]


def test_a_duplicate_is_dropped_before_the_cut_and_the_rest_moves_up():
    lists = np.array([[5, 5, 6]])
    assert deduplicate(lists).tolist() == [[5, 6, -1]]
    assert hit_rate(lists, np.array([[6]]), k=2).tolist() == [1.0]
    assert rank_of(lists, np.array([[6]])).tolist() == [2]


def test_a_duplicate_hit_counts_once():
    assert recall(np.array([[5, 5, 5]]), np.array([[5, 6]]), k=3).tolist() == [0.5]
    assert recall(np.array([[5, 6]]), np.array([[5, 5]]), k=2).tolist() == [1.0]


def test_a_place_without_an_ad_is_a_miss_and_keeps_its_place():
    lists = np.array([[5, -1, -1, 6]])
    assert rank_of(lists, np.array([[6]])).tolist() == [4]
    assert hit_rate(lists, np.array([[6]]), k=3).tolist() == [0.0]


def test_a_short_list_is_not_rescaled_and_an_empty_one_scores_nothing():
    short, empty = np.array([[5]]), np.empty((1, 0), dtype=np.int64)
    truths = np.array([[5, 6, 7, 8]])
    assert recall(short, truths, k=8).tolist() == [0.25]
    assert hits(short, truths, k=3).tolist() == [[True, False, False]]
    for metric in METRICS:
        assert metric(empty, truths, k=4).tolist() == [0.0]
    assert rank_of(empty, truths).tolist() == [0]


def test_a_user_without_truths_is_not_scored():
    for metric in METRICS:
        assert np.isnan(metric(np.array([[5]]), np.array([[-1, -1]]), k=4)).all()


def test_ltrr_cannot_pass_k_of_m_but_the_capped_one_reaches_one():
    lists, labels = np.arange(8)[None], np.arange(50)[None]
    assert recall(lists, labels, k=4).tolist() == [4 / 50]
    assert capped_recall(lists, labels, k=4).tolist() == [1.0]


def test_value_recall_weighs_the_found_labels_by_their_value():
    labels, values = np.array([[1, 2, 3, -1]]), np.array([[10.0, 5.0, 1.0, np.nan]])
    assert value_recall(np.array([[2, 9]]), labels, values, k=2).tolist() == [5 / 15]
    assert value_recall(np.array([[2, 1]]), labels, values, k=2).tolist() == [1.0]
    assert np.isnan(value_recall(np.array([[2]]), labels, np.zeros((1, 4)), k=2)).all()


def test_mean_value_by_hand():
    """Places: ad 2 (8), ad 9 (not appraised), ad 2 again (dropped), no ad, ad 1 (4), then the list has ended."""
    lists = np.array([[2, 9, 2, -1, 1], [1, 1, -1, -1, -1], [2, 1, 9, -1, -1]])
    ads, values = np.array([[1, 2, -1], [2, -1, -1], [-1, -1, -1]]), np.array([[4.0, 8.0, 7.0]] * 3)
    np.testing.assert_array_equal(mean_value(lists, ads, values, k=2), [4, 0, np.nan])
    np.testing.assert_array_equal(mean_value(lists, ads, values, k=4), [12 / 4, 0, np.nan])
    np.testing.assert_array_equal(mean_value(lists, ads, values, k=8), [12 / 8, 0, np.nan])


@given(problems(), st.integers(1, 9), st.integers(0, 9))
def test_mean_value_is_a_plain_sum_over_places(problem, k, seed):
    lists, _ = problem
    worth = np.random.default_rng(seed).random(9)
    expected = []
    for row in lists.tolist():
        kept = [ad for place, ad in enumerate(row) if ad == -1 or ad not in row[:place]][:k]
        expected.append(sum(worth[ad] for ad in kept if ad >= 0) / k)
    ads, values = (np.tile(column, (len(lists), 1)) for column in (np.arange(9), worth))
    np.testing.assert_allclose(mean_value(lists, ads, values, k=k), expected)


def test_value_recall_with_equal_values_is_the_capped_recall():
    lists, truths = random_case(5, 12)
    values = np.ones(truths.shape)
    np.testing.assert_allclose(value_recall(lists, truths, values, k=4), capped_recall(lists, truths, k=4))


@given(problems())
def test_numbers_lie_between_0_and_1_and_hits_never_fall_with_k(problem):
    lists, truths = problem
    for metric in METRICS:
        values = np.stack([metric(lists, truths, k=k) for k in range(1, 9)])
        assert ((values >= 0) & (values <= 1 + 1e-12) | np.isnan(values)).all()
    for metric in (hit_rate, recall):
        rising = np.diff(np.stack([metric(lists, truths, k=k) for k in range(1, 9)]), axis=0)
        assert (np.isnan(rising) | (rising >= 0)).all()


@given(problems())
def test_ndcg_of_a_single_truth_never_falls_with_k(problem):
    lists, truths = problem
    rising = np.diff(np.stack([ndcg(lists, truths[:, :1], k=k) for k in range(1, 9)]), axis=0)
    assert (np.isnan(rising) | (rising >= -1e-12)).all()


@given(problems(), st.randoms(use_true_random=False))
def test_a_users_number_does_not_depend_on_the_order_of_users_or_of_truths(problem, random):
    lists, truths = problem
    order, columns = list(range(len(lists))), list(range(truths.shape[1]))
    random.shuffle(order)
    random.shuffle(columns)
    for metric in METRICS:
        expected = metric(lists, truths, k=4)[order]
        np.testing.assert_array_equal(metric(lists[order], truths[order][:, columns], k=4), expected)


@given(problems())
def test_deduplicate_twice_is_once_and_hits_stand_at_rank_of(problem):
    lists, truths = problem
    once = deduplicate(lists)
    np.testing.assert_array_equal(deduplicate(once), once)
    ranks = rank_of(lists, truths)
    for k in (1, 3, 7):
        expected = np.where((truths >= 0).any(axis=1), (ranks > 0) & (ranks <= k), np.nan)
        np.testing.assert_array_equal(hit_rate(lists, truths, k=k), expected)


def test_wrong_input_is_named():
    lists, truths = np.array([[1, 2]]), np.array([[1]])
    with pytest.raises(ValueError, match="k is 0, but a list is cut at 1 or later"):
        hit_rate(lists, truths, k=0)
    with pytest.raises(ValueError, match="1 lists, but 2 rows of truths"):
        ndcg(lists, np.array([[1], [2]]), k=1)
    with pytest.raises(ValueError, match=r"lists is float64 \(1, 1\), must be integers"):
        recall(np.array([[1.0]]), truths, k=1)
    with pytest.raises(ValueError, match="truths holds -2: give catalog rows from 0 on"):
        recall(lists, np.array([[-2]]), k=1)
    with pytest.raises(ValueError, match=r"values is \(1, 2\), but its ads are \(1, 1\)"):
        value_recall(lists, truths, np.ones((1, 2)), k=1)
    with pytest.raises(ValueError, match="values holds a negative or not finite number"):
        value_recall(lists, truths, np.array([[-1.0]]), k=1)

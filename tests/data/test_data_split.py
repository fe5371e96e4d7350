import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from leadre import tables
from leadre.data.split import DAY, histories, leave_one_out

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "ü3", "漢"]),
        st.sampled_from(["x", "y", "z"]),
        st.sampled_from(["ad", "content"]),
        st.integers(0, 6).map(lambda half_days: half_days * DAY // 2),
    ),
    max_size=30,
)


def behaviors(rows):
    rows = [(user, item, domain, "click", time) for user, item, domain, time in rows]
    return pl.DataFrame(rows, schema=tables.BEHAVIORS.schema, orient="row")


def ads(user, *times):
    return [(user, f"{user}-{place}", "ad", time) for place, time in enumerate(times)]


def slow_split(rows, min_ads):
    """The rule said as a loop."""
    targets = []
    for user in sorted({user for user, *_ in rows}, key=lambda user: user.encode()):
        mine = sorted((row for row in rows if row[0] == user and row[2] == "ad"), key=lambda row: row[3])
        for place, (_, item, _, time) in enumerate(mine):
            left = len(mine) - 1 - place
            if len(mine) < min_ads:
                role = "train"
            elif left < 2:
                role = ["test", "valid"][left]
            elif time < mine[-2][3]:
                role = "train"
            else:
                continue
            targets.append((user, role, item, time))
    return pl.DataFrame(targets, schema=tables.SPLIT.schema, orient="row")


def slow_histories(rows, targets, window_days):
    found = []
    for number, (user, time) in enumerate(targets.select("user_id", "time").iter_rows()):
        mine = [row for row in rows if row[0] == user and time - window_days * DAY <= row[3] < time]
        found += [(number, item, domain, "click", at) for _, item, domain, at in sorted(mine, key=lambda row: row[3])]
    schema = {"target": pl.Int64(), "item_id": pl.String(), "domain": pl.String(), "action": pl.String()}
    return pl.DataFrame(found, schema={**schema, "time": pl.Int64()}, orient="row")


def test_the_last_ad_tests_the_last_but_one_validates_and_the_rest_trains():
    rows = [*ads("u", 10, 20, 30, 40), ("u", "c", "content", 50)]
    split = leave_one_out(behaviors(rows[::-1]), min_ads=3)
    assert split["role"].to_list() == ["train", "train", "valid", "test"]
    assert split["ad_id"].to_list() == ["u-0", "u-1", "u-2", "u-3"]


def test_a_user_with_too_few_ads_only_trains():
    split = leave_one_out(behaviors([*ads("u", 10, 20), *ads("v", 1, 2, 3)]), min_ads=3)
    assert split.filter(user_id="u")["role"].to_list() == ["train", "train"]
    assert split.filter(user_id="v")["role"].to_list() == ["train", "valid", "test"]


def test_ads_of_the_same_second_keep_the_order_of_the_table():
    split = leave_one_out(behaviors(ads("u", 1, 7, 7)), min_ads=3)
    assert split["ad_id"].to_list() == ["u-0", "u-1", "u-2"]
    assert split["role"].to_list() == ["train", "valid", "test"]


def test_an_ad_at_the_time_of_the_valid_target_is_no_train_target():
    split = leave_one_out(behaviors(ads("u", 1, 7, 7, 7)), min_ads=3)
    assert split["ad_id"].to_list() == ["u-0", "u-2", "u-3"]


def test_too_small_min_ads_is_told():
    with pytest.raises(ValueError, match="min_ads is 1, but test and valid take one ad behavior each"):
        leave_one_out(behaviors([]), min_ads=1)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(2, 4))
def test_the_split_is_the_rule_said_as_a_loop(rows, min_ads):
    assert_frame_equal(leave_one_out(behaviors(rows), min_ads=min_ads), slow_split(rows, min_ads))


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 2))
def test_histories_are_the_rule_said_as_a_loop(rows, window_days):
    targets = leave_one_out(behaviors(rows), min_ads=3)
    assert_frame_equal(histories(behaviors(rows), targets, window_days), slow_histories(rows, targets, window_days))


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_no_history_holds_anything_at_or_after_its_target_or_of_another_user(rows):
    known = behaviors(rows).with_columns(pl.col("user_id").alias("item_id"))  # the item tells whose it was
    targets = leave_one_out(known, min_ads=3)
    history = histories(known, targets, 90)
    target = targets[history["target"]]
    assert (history["time"] < target["time"]).all()
    assert (history["item_id"] == target["user_id"]).all()


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_training_sees_nothing_at_or_after_a_users_valid_time(rows):
    split = leave_one_out(behaviors(rows), min_ads=3)
    valid = split.filter(role="valid").select("user_id", valid_time="time")
    train = split.filter(role="train").join(valid, on="user_id")
    assert (train["time"] < train["valid_time"]).all()


@settings(deadline=None, max_examples=60)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_users_in_the_table_does_not_matter(rows, random):
    users = list({user for user, *_ in rows})
    random.shuffle(users)
    moved = [row for user in users for row in rows if row[0] == user]
    assert_frame_equal(leave_one_out(behaviors(moved), min_ads=3), leave_one_out(behaviors(rows), min_ads=3))


def test_the_window_holds_what_is_exactly_as_old_and_not_a_second_more():
    rows = ads("u", 0, 1, DAY, DAY + 1)
    targets = pl.DataFrame({"user_id": ["u"], "time": [DAY + 1]})
    assert histories(behaviors(rows), targets, 1)["time"].to_list() == [1, DAY]


def test_targets_in_any_order_and_of_unknown_users_keep_their_numbers():
    targets = pl.DataFrame({"user_id": ["v", "nobody", "u"], "time": [9, 9, 2]})
    history = histories(behaviors([*ads("u", 1, 2), *ads("v", 3)]), targets, 1)
    assert history.select("target", "item_id").rows() == [(0, "v-0"), (2, "u-0")]


def test_no_target_has_no_history():
    assert histories(behaviors(ads("u", 1)), behaviors([]), 1).is_empty()


def test_targets_before_and_after_all_behaviors_take_nothing_of_other_users():
    targets = pl.DataFrame({"user_id": ["u", "v", "u", "v"], "time": [-(10**12), 10**12, 10**12, 0]})
    known = behaviors([*ads("u", 1, 2), *ads("v", 1, 2)])
    assert histories(known, targets, 1).is_empty()
    history = histories(known, targets, 10**8)
    assert history.select("target", "item_id").rows() == [(1, "v-0"), (1, "v-1"), (2, "u-0"), (2, "u-1")]


def test_times_too_far_apart_for_one_key_are_told():
    with pytest.raises(
        ValueError, match=r"time reaches from 0 to 4611686018427387904 in behaviors.*: give UTC seconds"
    ):
        histories(behaviors([*ads("u", 0), *ads("v", 2**62)]), behaviors([]), 1)


def test_a_window_of_no_day_is_told():
    with pytest.raises(ValueError, match="window_days is 0"):
        histories(behaviors([]), behaviors([]), 0)

"""The newest behaviors and the most frequent names, against plain loops and against `leadre.data.split.histories`."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre.data.split import histories
from leadre.prompts import history as stage
from leadre.prompts.history import any_seen, frequent, newest

DAY = 86_400
TIMES = st.integers(0, 12)
EVENTS = st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from(["ad", "content"]), TIMES), max_size=25)
TARGETS = st.lists(st.tuples(st.sampled_from("uvwx"), TIMES), min_size=1, max_size=6)


def _behaviors(events):
    rows = [
        {"user_id": user, "item_id": f"i{n}", "domain": domain, "action": "click", "time": time}
        for n, (user, domain, time) in enumerate(events)
    ]
    schema = {"user_id": pl.String, "item_id": pl.String, "domain": pl.String, "action": pl.String, "time": pl.Int64}
    return pl.DataFrame(rows, schema).sort("user_id", "time", maintain_order=True)


def _targets(asked, *, window):
    rows = [
        {"target": n, "user_id": user, "since": time - window, "time": time} for n, (user, time) in enumerate(asked)
    ]
    return pl.DataFrame(rows, {"target": pl.Int64, "user_id": pl.String, "since": pl.Int64, "time": pl.Int64})


@settings(deadline=None, max_examples=60)
@given(EVENTS, TARGETS, st.integers(1, 9), st.integers(0, 4), st.integers(1, 4))
def test_the_newest_behaviors_are_those_of_a_plain_loop(events, asked, window, ads, contents):
    behaviors = _behaviors(events)
    found = newest(behaviors, _targets(asked, window=window), most={"ad": ads, "content": contents})
    expected = []
    for target, (user, time) in enumerate(asked):
        seen = [row for row in behaviors.to_dicts() if row["user_id"] == user and time - window <= row["time"] < time]
        of = {name: [row["item_id"] for row in seen if row["domain"] == name] for name in ("ad", "content")}
        kept = {*of["ad"][max(0, len(of["ad"]) - ads) :], *of["content"][-contents:]}
        expected += [(target, row["item_id"]) for row in seen if row["item_id"] in kept]
    assert found.select("target", "item_id").rows() == expected
    seen = any_seen(behaviors, _targets(asked, window=window)).to_list()
    assert seen == [any(user == u and time - window <= t < time for u, _, t in events) for user, time in asked]


@settings(deadline=None, max_examples=30)
@given(EVENTS, TARGETS, st.integers(1, 3))
def test_without_a_cap_the_newest_behaviors_are_the_history_of_the_split(events, asked, days):
    behaviors = _behaviors([(user, domain, time * DAY // 2) for user, domain, time in events])
    targets = _targets([(user, time * DAY // 2) for user, time in asked], window=days * DAY)
    found = newest(behaviors, targets, most={"ad": 99, "content": 99})
    assert found.rows() == histories(behaviors, targets, days).select(found.columns).rows()


def _count(events, asked, *, window, most):
    """Count by a plain loop."""
    told = []
    for target, (user, time) in enumerate(asked):
        seen = Counter(name for u, name, t in events if name and u == user and time - window <= t < time)
        ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:most]
        told += [(target, name, times) for name, times in ranked]
    return told


@pytest.mark.parametrize("pairs", [1, 5, 1_000_000])
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from(["b", "a", "^", "é", None]), TIMES), max_size=40),
    TARGETS,
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_the_most_frequent_names_are_those_of_a_plain_loop(pairs, events, asked, window, most):
    schema = {"user_id": pl.String, "name": pl.String, "time": pl.Int64}
    feedback = pl.DataFrame(events, schema, orient="row")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "COUNTED_AT_A_TIME", pairs)
        found = frequent(feedback, _targets(asked, window=window), most=most)
    assert found.rows() == _count(events, asked, window=window, most=most)
    assert found.columns == ["target", "name", "times"]


def test_the_newest_and_the_most_frequent_are_as_by_hand():
    events = [("u", "ad", 1), ("u", "content", 2), ("u", "ad", 3), ("u", "ad", 4), ("v", "ad", 2)]
    targets = _targets([("u", 4), ("v", 2), ("u", 9)], window=7)  # the target at 9 sees no time before 2
    found = newest(_behaviors(events), targets, most={"ad": 1, "content": 5})
    assert found.select("target", "time").rows() == [(0, 2), (0, 3), (2, 2), (2, 4)]
    feedback = _behaviors(events).select("user_id", "time", name="domain")
    counts = [(0, "ad", 2), (0, "content", 1), (2, "ad", 2), (2, "content", 1)]
    assert frequent(feedback, targets, most=2).rows() == counts


def test_the_numbers_of_targets_need_not_be_their_places():
    targets = _targets([("u", 4), ("u", 9)], window=9).with_columns(target=pl.Series([7, 3]))
    feedback = pl.DataFrame({"user_id": ["u"], "name": ["a"], "time": [3]})
    assert frequent(feedback, targets, most=1).rows() == [(7, "a", 1), (3, "a", 1)]
    assert newest(_behaviors([("u", "ad", 3)]), targets, most={"ad": 1})["target"].to_list() == [7, 3]


def test_users_are_numbered_in_their_order_and_unknown_ones_are_told():
    known, asked = stage._codes(pl.Series(["b", "b", "c"]), pl.Series(["c", "a", "b"]))
    assert (known.tolist(), asked.tolist()) == ([0, 0, 1], [1, -1, 0])


def test_times_at_the_ends_of_64_bits_do_not_overflow():
    far = 2**62
    behaviors = _behaviors([("u", "ad", -far), ("u", "ad", far), ("v", "ad", 0)])
    targets = _targets([("u", far), ("v", 5)], window=far)
    assert newest(behaviors, targets, most={"ad": 9})["item_id"].to_list() == ["i2"]

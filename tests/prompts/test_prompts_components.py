import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.prompts import components
from leadre.prompts.segments import render, soft, text
from leadre.prompts.wording import CHINESE, ENGLISH

DAY = 86_400
WHOLE = {
    "age": "22",
    "gender": "male",
    "region": "Haidian, Beijing",
    "education": "bachelor's",
    "occupation": "Internet industry",
    "consumption_level": "medium",
}


def _profile(wording=ENGLISH, **changes):
    return render(components.profile(WHOLE | changes, wording), {})


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"age": None}, "male, resident in Haidian, Beijing, with a bachelor's degree, "),
        ({"gender": None}, "22-year-old, resident in"),
        ({"age": None, "gender": None}, "resident in Haidian, Beijing, with a bachelor's degree, working"),
        ({"age": "18-24"}, "18-24-year-old male, "),
        ({"age": "60+"}, "60+-year-old male, "),
        ({"age": "young"}, "young male, "),
        ({"region": ""}, "22-year-old male, with a bachelor's degree, "),
        ({"education": "master's degree"}, "22-year-old male, resident in Haidian, Beijing, with a master's degree, w"),
    ],
)
def test_a_missing_field_leaves_its_clause_out(changes, shown):
    assert _profile(**changes).startswith(shown)


def test_a_profile_ends_where_its_last_field_is_missing():
    assert _profile(occupation=None, consumption_level=None).endswith(", with a bachelor's degree. ")


@pytest.mark.parametrize("wording", [ENGLISH, CHINESE])
def test_a_user_without_a_profile_has_no_sentence(wording):
    assert components.profile(dict.fromkeys(WHOLE), wording) == []


def test_each_clause_is_a_segment_so_that_few_texts_serve_all_users():
    values = [segment["value"] for segment in components.profile(WHOLE, ENGLISH)]
    assert values[0] == "22-year-old male, "
    assert values[-1] == "with a medium consumption level. "
    assert len(values) == 5


def test_what_a_user_wrote_is_escaped():
    assert "working in a\\^b\\; \\<a_1>, " in _profile(occupation="a^b; <a_1>")


def test_the_instruction_holds_the_learnable_tokens_inside():
    segments = components.instruction(ENGLISH, soft_tokens=2)
    assert segments == [text(ENGLISH.task), soft(), soft(), text(ENGLISH.role)]
    assert soft() not in components.instruction(ENGLISH, soft_tokens=0)


def test_the_summary_tells_names_in_the_order_given():
    counts = pl.DataFrame({"target": [3, 1, 1], "name": ["z", "a", "b"], "times": [1, 2, 1]})
    told = components.interest_summary(counts, "Often: ", ENGLISH)
    shown = {target: render(summary, {}) for target, summary in told.iter_rows()}
    assert shown == {3: "Often: z^1 times; ", 1: "Often: a^2 times; b^1 times; "}


def test_days_since_the_last_behavior_start_at_0_for_each_target():
    history = pl.DataFrame({"target": [0, 0, 0, 1, 1], "time": [5, DAY + 4, 3 * DAY + 4, 7, 7], "days": [9] * 5})
    assert components.since_last(history)["days"].to_list() == [0, 0, 2, 0, 0]


def test_the_age_of_the_last_behavior_is_told_once_a_target():
    told = components.last(pl.DataFrame({"target": [4, 4, 2], "days": [9, 3, 0]}), CHINESE)
    shown = {target: render(segments, {}) for target, segments in told.iter_rows()}
    assert shown == {4: "其中最后一次在3天前。", 2: "其中最后一次在0天前。"}


CLAUSES = {field: st.none() | st.text(max_size=8) for field in WHOLE}


@pytest.mark.parametrize("wording", [ENGLISH, CHINESE])
@settings(deadline=None, max_examples=60)
@given(user=st.fixed_dictionaries(CLAUSES), draw=st.integers(0, 2**64 - 1))
def test_a_reordered_profile_has_the_same_clauses_and_is_well_formed(user, draw, wording):
    fixed = components.profile(user, wording)
    profiles = pl.Series([fixed], dtype=pl.List(tables.SEGMENT))
    (told,) = components.reordered(profiles, np.array([draw], np.uint64), wording).to_list()
    if not fixed:
        assert told == []
        return
    assert all(segment["value"].endswith(wording.clause) for segment in told[:-1])
    assert told[-1]["value"].endswith(wording.profile_end)

    def clauses(segments):
        ends = [wording.clause] * (len(segments) - 1) + [wording.profile_end]
        return sorted(segment["value"].removesuffix(end) for segment, end in zip(segments, ends, strict=True))

    assert clauses(told) == clauses(fixed)


def test_every_order_of_a_profile_is_equally_likely():
    profiles = pl.Series([components.profile(WHOLE, ENGLISH)] * 120, dtype=pl.List(tables.SEGMENT))
    told = components.reordered(profiles, np.arange(120, dtype=np.uint64), ENGLISH)
    assert len({render(segments, {}) for segments in told.to_list()}) == 120
    assert told.to_list()[0] == profiles.to_list()[0]
    unknown = pl.Series([None], dtype=pl.List(tables.SEGMENT))
    assert components.reordered(unknown, np.zeros(1, np.uint64), ENGLISH).to_list() == [[]]


def test_the_last_behavior_of_each_target_ends_the_sentence():
    history = pl.DataFrame(
        {
            "target": [0, 0, 1],
            "days": [3, 0, 1],
            "domain": ["ad"] * 3,
            "item_id": ["x", "y", "x"],
            "action": ["click", "conversion", "like"],
            "shown": ["X", "Y", "X"],
            "listed": [True, False, True],
        }
    )
    told = components.behaviors(history, ENGLISH, ads="sid")
    names = {"x": "<a_1>"}
    shown = [render([segment for one in row for segment in one], names) for row in told["behaviors"].to_list()]
    assert shown == ["3 days ago^click on ad^<a_1>; 0 days ago^conversion ad^Y. ", "1 days ago^like^<a_1>. "]
    told = components.behaviors(history, ENGLISH, ads="description")
    assert {segment["kind"] for row in told["behaviors"] for one in row for segment in one} == {"text"}

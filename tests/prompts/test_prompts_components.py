import polars as pl
import pytest

from leadre.prompts import components
from leadre.prompts.segments import render, soft, text
from leadre.prompts.wording import CHINESE, ENGLISH

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


def test_the_summary_orders_by_count_then_name_and_skips_what_has_no_category():
    history = pl.DataFrame({"target": [1] * 7 + [0], "category": ["b", "a", "b", "a", "c", "d", None, "z"]})
    told = components.interest_summary(history, ENGLISH, categories=3)
    shown = {target: render(summary, {}) for target, summary in told.iter_rows()}
    assert shown == {
        0: ENGLISH.summary + "z^1 times; ",
        1: ENGLISH.summary + "a^2 times; b^2 times; c^1 times; ",
    }


def test_only_the_newest_behaviors_of_each_domain_are_kept():
    history = pl.DataFrame(
        {"target": [0] * 5 + [1], "domain": ["ad", "content", "ad", "content", "ad", "ad"], "n": range(6)}
    )
    assert components.newest(history, ads=2, contents=1)["n"].to_list() == [2, 3, 4, 5]
    assert components.newest(history, ads=9, contents=9)["n"].to_list() == list(range(6))


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

"""Negative controls keep what can be counted and break what belongs to the user or the ad."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.prompts.controls import descriptions_of_another, names_of_another, of_another_user

BEHAVIORS = pl.DataFrame(
    {
        "user_id": ["u", "u", "v", "w", "u", "x"],
        "time": [1, 2, 3, 4, 5, 6],
        "item_id": ["c1", "c2", "c3", "c4", "a1", "a2"],
        "domain": ["content"] * 4 + ["ad"] * 2,
    }
)


def test_content_goes_whole_to_one_other_user_and_ads_stay():
    given_away = of_another_user(BEHAVIORS, domain="content", seed=0)
    owners = dict(zip(BEHAVIORS["item_id"], given_away["user_id"], strict=True))
    assert owners["a1"] == "u"
    assert owners["a2"] == "x"
    assert owners["c1"] == owners["c2"]
    assert owners["c1"] in {"v", "w"}
    assert {owners["c1"], owners["c3"], owners["c4"]} == {"u", "v", "w"}
    assert given_away.drop("user_id").equals(BEHAVIORS.drop("user_id"))


@given(count=st.integers(2, 40), seed=st.integers(0, 5))
def test_nobody_keeps_his_own_and_nobody_gets_two(count, seed):
    ids = [f"ad{number:02}" for number in range(count)]
    ads = pl.DataFrame({"ad_id": ids, "description": ids})
    exchanged = descriptions_of_another(ads, seed=seed)
    assert exchanged["ad_id"].to_list() == ids
    assert sorted(exchanged["description"]) == ids
    assert not (exchanged["description"] == exchanged["ad_id"]).any()
    backwards = descriptions_of_another(ads.reverse(), seed=seed)
    assert backwards.reverse().equals(exchanged), "who gets whose must not depend on the order of the rows"


@given(seed=st.integers(0, 5))
def test_names_are_exchanged_one_for_one_within_a_user_and_by_another_rule_for_others(seed):
    known = pl.Series([f"n{number}" for number in range(30)])
    names = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(8) for _ in range(4)],
            "name": ["n1", "n1", "n2", None] * 8,
            "time": list(range(32)),
        }
    )
    exchanged = names_of_another(names, known, seed=seed)
    of_user = exchanged["name"].to_numpy().reshape(8, 4)
    assert (of_user[:, 0] == of_user[:, 1]).all()
    assert (of_user[:, 0] != of_user[:, 2]).all()
    assert all(name is None for name in of_user[:, 3])
    assert "n1" not in of_user[:, 0]
    assert len(set(of_user[:, 0])) > 1
    assert exchanged.select("user_id", "time").equals(names.select("user_id", "time"))


def test_what_cannot_be_exchanged_is_refused():
    with pytest.raises(ValueError, match=r"prompts\.content_control is 0, but 1 users have .*content_control to null"):
        of_another_user(BEHAVIORS.filter(user_id="v"), domain="content", seed=0)
    with pytest.raises(ValueError, match=r"prompts\.summary_control is 3, but the items have 1 names"):
        names_of_another(BEHAVIORS.select("user_id", "time", name="item_id"), pl.Series(["c1", None]), seed=3)
    with pytest.raises(ValueError, match=r"prompts\.description_control is 1, but there is 1 ad"):
        descriptions_of_another(pl.DataFrame({"ad_id": ["a"], "description": ["d"]}), seed=1)

"""S-IDs: the extra code and the names."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.catalog import sids


def codes(rows):
    return pl.DataFrame(
        {"ad_id": [row[0] for row in rows], "codes": [list(row[1:]) for row in rows]},
        schema={"ad_id": pl.String(), "codes": pl.List(pl.Int32())},
    )


def test_ads_with_equal_codes_are_numbered_in_the_order_of_their_ids():
    listed = sids.extend(codes([("b", 3, 1), ("c", 0, 2), ("a", 3, 1), ("d", 3, 1)]), max_extra_codes=3)
    assert listed["ad_id"].to_list() == ["c", "a", "b", "d"]
    assert listed["sid"].to_list() == [[0, 2, 0], [3, 1, 0], [3, 1, 1], [3, 1, 2]]
    assert listed.schema["sid"] == pl.List(pl.Int32())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 11)), min_size=1, max_size=30), st.randoms())
def test_sids_are_unique_sorted_and_do_not_depend_on_the_order_of_rows(rows, shuffler):
    ads = [(f"ad{number}", *row) for number, row in enumerate(rows)]
    listed = sids.extend(codes(ads), max_extra_codes=30)
    found = [tuple(sid) for sid in listed["sid"].to_list()]
    assert found == sorted(set(found))
    seen = Counter()
    expected = {}
    for ad, *code in sorted(ads):
        expected[ad] = [*code, seen[tuple(code)]]
        seen[tuple(code)] += 1
    assert dict(zip(listed["ad_id"], listed["sid"].to_list(), strict=True)) == expected
    shuffler.shuffle(ads)
    assert sids.extend(codes(ads), max_extra_codes=30).equals(listed)


def test_a_group_at_the_limit_is_taken_and_one_above_is_refused():
    rows = codes([("a", 5, 9), ("b", 5, 9), ("c", 5, 9), ("d", 5, 8), ("e", 5, 8)])
    assert sids.extend(rows, max_extra_codes=3).height == 5
    with pytest.raises(
        ValueError, match=r"max_extra_codes is 2, but 3 ads share the codes <a_5> <b_9> .*catalog\.max_extra_codes to 3"
    ):
        sids.extend(rows, max_extra_codes=2)


def test_an_empty_catalog_is_refused():
    with pytest.raises(ValueError, match="codes has no ad"):
        sids.extend(codes([]), max_extra_codes=2)


def test_ads_with_different_numbers_of_codes_are_refused():
    with pytest.raises(ValueError, match=r"ads with \[1, 2\] codes"):
        sids.extend(codes([("a", 1), ("b", 1, 2)]), max_extra_codes=2)


def test_an_ad_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="the ad 'a' more than once"):
        sids.extend(codes([("a", 1), ("a", 2)]), max_extra_codes=2)


def test_negative_codes_and_nulls_are_refused():
    with pytest.raises(ValueError, match=r"codes has \[-1\] for the ad 'b'"):
        sids.extend(codes([("a", 1), ("b", -1)]), max_extra_codes=2)
    with pytest.raises(ValueError, match=r"codes has \[None\] for the ad 'b'"):
        sids.extend(codes([("a", 1), ("b", None)]), max_extra_codes=2)


def test_names_are_those_of_the_paper():
    assert sids.name([51, 10, 67, 93, 0]) == "<a_51> <b_10> <c_67> <d_93> <e_0>"
    assert sids.display([51, 10, 67, 93, 0]) == "<a_51, b_10, c_67, d_93, e_0>"
    assert sids.token_names([1, 2]) == ["<a_0>", "<b_0>", "<b_1>"]


def test_the_last_letter_is_z():
    assert sids.level_letter(25) == "z"
    with pytest.raises(ValueError, match=r"level is 26, .* use at most 26 levels"):
        sids.level_letter(26)

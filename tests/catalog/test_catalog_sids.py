"""S-IDs: the extra code, the order, the names."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre.catalog import sids

CODES = st.integers(0, 2).flatmap(
    lambda levels: st.lists(st.tuples(*[st.integers(0, 3)] * (levels + 1)), max_size=30).map(
        lambda rows: np.array(rows, np.int64).reshape(-1, levels + 1)
    )
)
TOO_WIDE = 1 << 40  # codes of so many bits do not fit into one integer with those of another level


def counted(codes):
    seen = Counter()
    extra = []
    for row in map(tuple, codes.tolist()):
        extra.append(seen[row])
        seen[row] += 1
    return extra


def test_rows_with_equal_codes_are_numbered_in_their_order():
    extra = sids.extra_codes(np.array([[3, 1], [0, 2], [3, 1], [3, 2], [3, 1]], np.int32))
    assert extra.tolist() == [0, 0, 1, 0, 2]
    assert extra.dtype == np.int32


def test_names_are_those_of_the_rows_whatever_the_array_looks_like_in_memory():
    codes = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    for order in "CF":
        assert sids.names(codes.astype(np.int32, order=order)).to_list() == [sids.name(row) for row in codes.tolist()]


@given(CODES)
def test_extra_codes_are_those_of_a_loop(codes):
    assert sids.extra_codes(codes).tolist() == counted(codes)
    wide = np.where(codes > 0, codes + TOO_WIDE, 0)
    assert sids.extra_codes(wide).tolist() == counted(codes)


@given(CODES)
def test_the_order_is_that_of_python_both_where_rows_can_be_packed_and_where_not(codes):
    expected = sorted(range(len(codes)), key=lambda row: tuple(codes[row]))
    for given_codes in (codes, codes * TOO_WIDE):
        order, opens = sids.in_order(given_codes)
        assert order.tolist() == expected
        ordered = codes[order].tolist()
        assert opens.tolist() == [row == 0 or ordered[row] != ordered[row - 1] for row in range(len(codes))]


def test_codes_and_row_number_that_fill_an_integer_are_packed_and_one_bit_more_is_sorted_all_the_same():
    for top in ((1 << 61) - 1, (1 << 62) - 1, (1 << 63) - 1):
        assert sids.in_order(np.array([[top], [0], [top]]))[0].tolist() == [1, 0, 2]


def test_a_million_equal_rows_are_numbered():
    extra = sids.extra_codes(np.zeros((1_000_000, 1), np.int32))
    assert (extra == np.arange(1_000_000)).all()


def test_a_clustered_million_keeps_its_largest_group_of_275():
    generator = np.random.default_rng(0)
    codes = generator.integers(1, 1024, (1_000_000, 4), dtype=np.int32)
    crowded = generator.permutation(1_000_000)[:290_000]
    codes[crowded] = codes[crowded[np.arange(290_000) // 2]]  # 29 % share their codes with others
    codes[crowded[:275]] = 0
    extra = sids.extra_codes(codes)
    assert extra.max() == 274
    assert sorted(extra[(codes == 0).all(axis=1)].tolist()) == list(range(275))
    every = np.column_stack([codes, extra])
    assert sids.in_order(every)[1].all()


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match="codes holds -3, but codes are 0 or more"):
        sids.extra_codes(np.array([[1], [-3]]))


def test_names_are_those_of_the_paper():
    assert sids.name([51, 10, 67, 93, 0]) == "<a_51> <b_10> <c_67> <d_93> <e_0>"
    assert sids.display([51, 10, 67, 93, 0]) == "<a_51, b_10, c_67, d_93, e_0>"
    assert sids.token_names([1, 2]) == ["<a_0>", "<b_0>", "<b_1>"]


@given(CODES)
def test_all_names_at_once_are_those_of_one_by_one_and_can_be_read_back(codes):
    rows = codes.tolist()
    named = sids.names(codes.astype(np.int32)).to_list()
    assert named == [sids.name(row) for row in rows]
    num_codes = [4] * codes.shape[1]
    assert [sids.parse(text, num_codes) for text in named] == rows
    assert [sids.parse(sids.display(row), num_codes) for row in rows] == rows


@pytest.mark.parametrize("text", ["<b_0>", "<a_>", "<a_-1>", "<a_1x>", "<a_٣>", "a", "<a_4>", "<a_0> <a_0>"])
def test_a_token_that_is_none_of_its_level_is_told(text):
    with pytest.raises(ValueError, match=r"is no token number [12] of an S-ID: these are <[ab]_0> to <[ab]_[37]>"):
        sids.parse(text, [4, 8])


def test_too_many_tokens_are_told():
    with pytest.raises(ValueError, match="has 3 tokens, but an S-ID of this catalog has 2"):
        sids.parse("<a_0> <b_0> <c_0>", [4, 8])


def test_the_last_letter_is_z():
    assert sids.level_letter(25) == "z"
    with pytest.raises(ValueError, match=r"level is 26, .* use at most 26 levels"):
        sids.level_letter(26)

"""Prompts in Parquet files, read a few at a time."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leadre import tables
from leadre.generation import users as reading
from leadre.generation.users import RowGroup, check_users, read, row_groups, user_ids


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve users in files of five, none and seven, in row groups of two."""
    folder = tmp_path_factory.mktemp("prompts")
    users = [f"u{number:02d}" for number in range(12)]
    for name, some in (("a", users[:5]), ("b", []), ("c", users[5:])):
        rows = [{"user_id": user, "head": [], "lead": [], "behaviors": [], "tail": []} for user in some]
        pl.DataFrame(rows, schema=tables.PROMPTS.schema).write_parquet(folder / f"{name}.parquet", row_group_size=2)
    return [folder / f"{name}.parquet" for name in "abc"]


def test_row_groups_count_users_over_all_files(files):
    found = [(group.path.stem, group.number, group.users) for group in row_groups(files) if group.users]
    assert found[:3] == [("a", 0, range(2)), ("a", 1, range(2, 4)), ("a", 2, range(4, 5))]
    assert found[3:] == [("c", number, range(5 + 2 * number, min(12, 7 + 2 * number))) for number in range(4)]


@given(st.integers(0, 12), st.integers(0, 12))
def test_any_range_of_users_is_read_in_order(files, start, stop):
    expected = [f"u{number:02d}" for number in range(start, stop)]
    assert user_ids(row_groups(files), range(start, stop)).to_list() == expected


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_number_of_rows_read_at_a_time_changes_nothing(files, monkeypatch, rows):
    monkeypatch.setattr(reading, "ROWS", rows)
    assert user_ids(row_groups(files), range(3, 9)).to_list() == [f"u{number:02d}" for number in range(3, 9)]


def test_only_the_row_groups_of_the_users_are_opened(files):
    groups = row_groups(files)
    missing = [RowGroup(group.path.with_name("gone"), group.number, group.users) for group in groups]
    (batch,) = read([*missing[:1], groups[1], *missing[2:]], range(2, 4), ["user_id"])
    assert batch.column("user_id").to_pylist() == ["u02", "u03"]


@pytest.mark.parametrize("hashes", [1, 5, 100])
def test_a_user_twice_is_found_wherever_the_two_stand(files, tmp_path, monkeypatch, hashes):
    monkeypatch.setattr(reading, "HASHES", hashes)
    check_users(row_groups([*files[1:], files[0]]))
    with pytest.raises(ValueError, match="has the user 'u00' 2 times: a user gets one list; keep one prompt a user"):
        check_users([*row_groups(files), RowGroup(files[0], 0, range(12, 14))])


def test_users_that_rise_strictly_are_read_once_and_not_hashed(files, monkeypatch):
    monkeypatch.setattr(reading, "_hashes", None)
    opened = []
    monkeypatch.setattr(reading, "read", lambda groups, *rest: (opened.append(len(groups)), read(groups, *rest))[1])
    check_users(row_groups(files))
    assert opened == [1] * len(row_groups(files))  # each piece alone: not every piece for each


def test_equal_hashes_of_different_users_are_no_user_twice(files, monkeypatch):
    monkeypatch.setattr(pl.Series, "hash", lambda ids: pl.Series([7] * len(ids), dtype=pl.UInt64))
    check_users(row_groups([*files[1:], files[0]]))


def test_a_prompt_without_a_user_is_refused(tmp_path):
    schema = tables.PAIRS.schema
    row = {"user_id": None, "ad_id": "a", "head": [], "lead": [], "behaviors": [], "tail": [], "following": []}
    pl.DataFrame([row], schema=schema).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet has 1 prompts without a user_id: .*; leave them out"):
        check_users(row_groups([tmp_path / "x.parquet"]))


def test_no_users_are_no_fault():
    check_users([])
    assert user_ids([], range(0)).to_list() == []

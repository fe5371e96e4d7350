import polars as pl
import pytest

from leadre import tables


def seen(*rows):
    return pl.DataFrame(rows, schema=tables.SEEN.schema, orient="row")


def test_a_folder_of_parts_is_read_in_the_order_of_their_names(tmp_path):
    for name, row in (("part-00001", ("v", "b")), ("part-00000", ("u", "a")), ("part-00010", ("w", "c"))):
        tables.write(tables.SEEN, seen(row), tmp_path / f"{name}.parquet")
    (tmp_path / "part-00002.parquet.77").write_text("of a killed run")
    assert tables.read(tables.SEEN, tmp_path).rows() == [("u", "a"), ("v", "b"), ("w", "c")]


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(
        tables.TableError, match=r"is no seen table: the folder holds no \.parquet file; make its parts"
    ):
        tables.read(tables.SEEN, tmp_path)


def test_a_part_that_is_no_such_table_is_named(tmp_path):
    tables.write(tables.SEEN, seen(("u", "a")), tmp_path / "part-00000.parquet")
    pl.DataFrame({"user_id": ["u"], "extra": [1]}).write_parquet(tmp_path / "part-00001.parquet")
    with pytest.raises(
        tables.TableError,
        match=r"part-00001\.parquet is no seen table: .*'ad_id' is missing; .*'extra' is not declared",
    ):
        tables.read(tables.SEEN, tmp_path)


def test_all_faults_of_a_frame_are_told_at_once_and_nothing_is_written(tmp_path):
    frame = pl.DataFrame({"user_id": [None, "u"], "ad_id": [1, 2]})
    with pytest.raises(tables.TableError, match=r"'ad_id' is Int64, must be String; column 'user_id' has 1 nulls"):
        tables.write(tables.SEEN, frame, tmp_path / "seen.parquet")
    assert not list(tmp_path.iterdir())


def test_a_table_is_scanned_for_its_own_columns_and_their_types(tmp_path):
    path = tmp_path / "seen.parquet"
    pl.DataFrame({"more": [1], "ad_id": ["a"], "user_id": ["u"]}).write_parquet(path)
    assert tables.scan(tables.SEEN, path).collect().equals(seen(("u", "a")))
    pl.DataFrame({"user_id": [7]}).write_parquet(path)
    with pytest.raises(tables.TableError, match=r"'user_id' is Int64, must be String; column 'ad_id' is missing"):
        tables.scan(tables.SEEN, path)


def test_a_prompt_has_the_columns_of_a_pair_without_its_response():
    assert [*tables.PROMPTS.columns, "ad_id", "following"] == [
        name for name in tables.PAIRS.columns if name not in ("ad_id", "following")
    ] + ["ad_id", "following"]
    assert list(tables.PAIRS.columns)[-1] == "following"

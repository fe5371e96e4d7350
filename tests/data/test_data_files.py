import gzip
import json
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from leadre import tables
from leadre.data import check, files

HEADER = "user_id,item_id,domain,action,time"


def read_text(tmp_path, name, text, table=tables.BEHAVIORS):
    path = tmp_path / name
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return files.read(path, table)


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz"])
def test_csv_is_read_with_the_lines_of_the_file(tmp_path, name):
    rows = read_text(tmp_path, name, f'{HEADER}\nu,a,ad,click,5\n\n"u,2",a,ad,"say ""x""",7\n')
    assert rows.frame.drop("file").rows() == [(2, "u", "a", "ad", "click", 5), (4, "u,2", "a", "ad", 'say "x"', 7)]
    assert rows.total == 2


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path):
    rows = read_text(tmp_path, "b.csv", b"\xef\xbb\xbf" + f"{HEADER}\r\nu,a,ad,click,5\r\n".encode())
    assert rows.frame["action"].to_list() == ["click"]
    assert rows.refused.is_empty()


@pytest.mark.parametrize("name", ["b.jsonl", "b.jsonl.gz"])
def test_json_lines_take_whole_numbers_as_ids(tmp_path, name):
    line = {"time": 5, "user_id": 7, "item_id": "a", "domain": "ad", "action": "click"}
    rows = read_text(tmp_path, name, json.dumps(line))
    assert rows.frame.drop("file", "line").rows() == [("7", "a", "ad", "click", 5)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u,a,ad,click", "the line has 4 fields where the header has 5"),
        ("u,a,ad,click,5,6", "the line has 6 fields where the header has 5"),
        ('u,a,ad,"cli"ck,5', "',' expected after '\"'"),
        ('u,a,ad,"click,5', "unexpected end of data"),
        ("u,a,ad,click,soon", "time is no whole number"),
        ("u,a,ad,click,5.0", "time is no whole number"),
        ("u,a,ad,click,99999999999999999999", "time is no whole number"),
    ],
)
def test_a_broken_csv_line_is_refused_alone(tmp_path, line, reason):
    rows = read_text(tmp_path, "b.csv", f"{HEADER}\nu,a,ad,click,1\n{line}\nu,a,ad,click,2\n")
    assert rows.refused.select("file", "line", "reason").rows() == [("b.csv", 3, reason)]
    assert rows.frame["time"].to_list() == [1, 2]
    assert rows.total == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"user_id": "u",', "broken JSON"),
        ("[1, 2]", "the line is no JSON object"),
        ("[" * 100_000, "nested too deep"),
        ('{"user_id": {"x": 1}}', "user_id holds dict where one value must stand"),
        ('{"user_id": ["x"]}', "user_id holds list where one value must stand"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"time": "soon"}', "time is no whole number"),
        ('{"time": 1.5}', "time is no whole number"),
        ('{"time": true}', "time is no whole number"),
    ],
)
def test_a_broken_json_line_is_refused_alone(tmp_path, line, reason):
    good = json.dumps({"user_id": "u", "item_id": "a", "domain": "ad", "action": "click", "time": 1}).encode()
    bad = line if isinstance(line, bytes) else line.encode()
    rows = read_text(tmp_path, "b.jsonl", good + b"\n" + bad + b"\n" + good)
    assert rows.refused.select("line", "reason").rows() == [(2, reason)]
    assert rows.frame["line"].to_list() == [1, 3]


def test_an_endless_line_is_refused_and_kept_short(tmp_path):
    text = f"{HEADER}\n{'x' * (3 * files.MAX_LINE_BYTES)}\nu,a,ad,click,2\n"
    rows = read_text(tmp_path, "b.csv.gz", text)
    assert rows.refused["reason"].to_list() == [f"the line is longer than {files.MAX_LINE_BYTES} bytes"]
    assert len(rows.refused["row"].item()) <= 2000
    assert rows.frame["line"].to_list() == [3]


def test_a_truncated_file_is_refused_whole(tmp_path):
    whole = tmp_path / "whole.parquet"
    pl.DataFrame({"user_id": ["u"] * 100}).write_parquet(whole)
    zipped = gzip.compress(f"{HEADER}\n{'u,a,ad,click,5' * 1000}\n".encode())
    for name, raw in (("b.parquet", whole.read_bytes()[:-20]), ("b.csv.gz", zipped[:-12]), ("c.csv.gz", b"no gzip")):
        (tmp_path / name).write_bytes(raw)
        rows = files.read(tmp_path / name, tables.BEHAVIORS)
        assert rows.refused["reason"].item().startswith("the file cannot be read")
        assert rows.frame.is_empty()
        assert rows.total == 1


def test_all_faults_of_the_columns_are_told_at_once(tmp_path):
    path = tmp_path / "behaviors.parquet"
    pl.DataFrame({"user_id": [1.5], "item": ["a"], "domain": ["ad"], "time": [True]}).write_parquet(path)
    with pytest.raises(tables.TableError) as told:
        files.read(path, tables.BEHAVIORS)
    for fault in (
        "'user_id' is Float64, must be String",
        "'item_id' is missing",
        "'action' is missing",
        "'time' is Boolean, must be Int64",
        "'item' is not one of user_id, item_id, domain, action, time",
    ):
        assert fault in str(told.value)


def test_a_header_with_a_doubled_column_is_told(tmp_path):
    with pytest.raises(tables.TableError, match="broken header: 'time' stands there twice"):
        read_text(tmp_path, "b.csv", f"{HEADER},time\n")


def test_a_header_that_is_no_csv_is_told(tmp_path):
    with pytest.raises(tables.TableError, match="broken header: unexpected end of data"):
        read_text(tmp_path, "b.csv", f'"{HEADER}\n')


def test_a_column_that_is_called_line_is_unknown_as_any_other(tmp_path):
    row = {"user_id": "u", "item_id": "a", "domain": "ad", "action": "x", "time": 1, "line": 3}
    pl.DataFrame([row]).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(tables.TableError, match="column 'line' is not one of"):
        files.read(tmp_path / "b.parquet", tables.BEHAVIORS)
    with pytest.raises(tables.TableError, match="column 'line' is not one of"):
        read_text(tmp_path, "b.jsonl", json.dumps(row))


def test_an_empty_json_lines_file_is_an_empty_table(tmp_path):
    assert read_text(tmp_path, "b.jsonl", "").frame.is_empty()


def test_an_empty_csv_file_lacks_its_header(tmp_path):
    with pytest.raises(tables.TableError, match="column 'user_id' is missing"):
        read_text(tmp_path, "b.csv", "")


def test_datetimes_become_utc_seconds_whatever_their_unit(tmp_path):
    path = tmp_path / "b.parquet"
    moment = datetime(2024, 11, 20, 12, tzinfo=UTC)
    for unit in ("ms", "us", "ns"):
        row = {"user_id": [1], "item_id": ["a"], "domain": ["ad"], "action": ["click"], "time": [moment]}
        pl.DataFrame(row, schema_overrides={"time": pl.Datetime(unit, "UTC")}).write_parquet(path)
        assert files.read(path, tables.BEHAVIORS).frame["time"].to_list() == [int(moment.timestamp())]


def test_attributes_are_lists_in_every_format(tmp_path):
    csv = read_text(tmp_path, "ads.csv", 'ad_id,attributes\na,x;y\nb,\nc,"[""x"", ""y;z""]"\nd,"[1]"\n', check.ADS)
    assert csv.frame["attributes"].to_list() == [["x", "y"], [], ["x", "y;z"]]
    assert csv.refused["reason"].to_list() == ["attributes is no list of text"]
    lines = read_text(tmp_path, "ads.jsonl", '{"ad_id": "a", "attributes": ["x", "y"]}\n{"ad_id": "b"}', check.ADS)
    assert lines.frame["attributes"].to_list() == [["x", "y"], []]


def test_truth_values_are_read_from_text(tmp_path):
    text = "user_id,ad_id,time,ecpm,pctr,clicked\nu,a,1,2,,True\nu,a,1,2.5,0.1,0\nu,a,1,1e3,,\nu,a,1,1,,maybe\n"
    rows = read_text(tmp_path, "impressions.csv", text, tables.IMPRESSIONS)
    assert rows.frame["clicked"].to_list() == [True, False, None]
    assert rows.frame["ecpm"].to_list() == [2.0, 2.5, 1000.0]
    assert rows.refused["reason"].to_list() == ["clicked is no truth value"]


@settings(deadline=None, max_examples=60)
@given(cells=st.lists(st.tuples(st.text(), st.integers(-5, 5)), max_size=8))
def test_any_text_comes_back_from_json_lines_or_is_refused(tmp_path_factory, cells):
    path = tmp_path_factory.getbasetemp() / "b.jsonl"
    rows = [{"user_id": text, "item_id": "a", "domain": "ad", "action": "x", "time": time} for text, time in cells]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = files.read(path, tables.BEHAVIORS)
    assert read.total == len(cells) == read.frame.height + read.refused.height
    assert read.frame.select("user_id", "time").rows() == cells


@settings(deadline=None, max_examples=60)
@given(raw=st.binary(max_size=200))
def test_no_bytes_crash_the_reader_and_no_line_is_lost(tmp_path_factory, raw):
    for name in ("b.jsonl", "b.csv"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes((HEADER.encode() + b"\n" if name == "b.csv" else b"") + raw)
        try:
            read = files.read(path, tables.BEHAVIORS)
        except tables.TableError:
            continue
        assert read.total == sum(bool(line.strip()) for line in raw.split(b"\n"))
        assert read.total == read.frame.height + read.refused.height


def test_the_three_formats_tell_the_same(tmp_path):
    frame = pl.DataFrame(
        {"user_id": ["u", "ü"], "item_id": ["a", "漢"], "domain": ["ad"] * 2, "action": ["x", "y"], "time": [1, 2]}
    )
    frame.write_parquet(tmp_path / "b.parquet")
    frame.write_csv(tmp_path / "b.csv")
    frame.write_ndjson(tmp_path / "b.jsonl")
    read = [files.read(tmp_path / f"b.{ending}", tables.BEHAVIORS).frame for ending in ("parquet", "csv", "jsonl")]
    for each in read:
        assert_frame_equal(each.drop("file", "line"), frame)


@pytest.mark.parametrize("attributes", [[["brand_X"], None], [None, None]])
def test_a_missing_list_of_a_parquet_file_is_empty(tmp_path, attributes):
    path = tmp_path / "ads.parquet"
    pl.DataFrame({"ad_id": ["a", "b"], "attributes": attributes}).write_parquet(path)
    rows = files.read(path, check.ADS)
    assert rows.frame["attributes"].to_list() == [each or [] for each in attributes]
    assert rows.refused.is_empty()

"""Reading of tables from outside: Parquet, CSV and JSON Lines, plain or gzipped; a bad line is refused, not fatal."""

import csv
import json
import zlib
from collections.abc import Iterator
from gzip import GzipFile
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.data import quarantine
from leadre.data.ad_text import paired_surrogates
from leadre.data.quarantine import FILE, LINE

MAX_LINE_BYTES = 1_000_000
"""A longer line is refused unread: a file of one endless line must not fill the memory."""

ENDINGS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
"""How the name of a table's file may end."""

Cells = dict[str, str | None]


class _Given(NamedTuple):
    """Cells as the file has them, and the line of each row."""

    lines: pl.Series
    cells: pl.DataFrame


class Rows(NamedTuple):
    """What a file held.

    Attributes:
        frame: The rows that could be read, in order; columns ``file`` and ``line`` (from 1) stand beside its own.
        refused: The rows that could not, as a quarantine table.
        total: The number of rows in the file, good and bad.
    """

    frame: pl.DataFrame
    refused: pl.DataFrame
    total: int


def read(path: Path, table: tables.Table, *, optional: frozenset[str] = frozenset()) -> Rows:
    """Read a file as a declared table; its columns may stand in any order.

    A nullable column and those of ``optional`` may be left out. Whole numbers serve as ids, dates with time as UTC
    seconds; in CSV a list of text is parted by ``;``. ``line`` is the line of a text file, the row of a Parquet file.

    Raises:
        TableError: If a column is missing, unknown or of a type that cannot be turned into the declared one; all
            faults at once.
    """
    given, refused = _given(path, table)
    _check_columns(path, given.cells.schema, table, optional)
    place = (pl.lit(path.name).alias(FILE), given.lines.alias(LINE))
    raw = given.cells.select(*place, *(name for name in table.columns if name in given.cells.columns))
    typed = given.cells.select(*place, *_casts(given.cells, table))
    reasons = quarantine.judge(typed, _misfits(raw, table))
    refused = pl.concat([refused, quarantine.tell(raw, reasons)])
    return Rows(typed.filter(reasons.is_null()), refused, typed.height + refused.height - reasons.count())


def read_text(path: Path) -> Rows:
    """Read a text file line by line, as columns ``file``, ``line`` and ``text``."""
    good: list[tuple[str, int, str]] = []
    refused: list[tuple[str, int, str, str]] = []
    try:
        for number, raw in _lines(path):
            try:
                good.append((path.name, number, _decoded(number, raw)))
            except ValueError as error:
                refused.append((path.name, number, _broken(error), _shown(raw)))
    except (OSError, EOFError, zlib.error) as error:
        good, refused = [], [_unreadable(path, error)]
    schema = {FILE: pl.String(), LINE: pl.Int64(), "text": pl.String()}
    return Rows(pl.DataFrame(good, schema=schema, orient="row"), quarantine.entries(refused), len(good) + len(refused))


def _given(path: Path, table: tables.Table) -> tuple[_Given, pl.DataFrame]:
    """What a file says, and the quarantine table of what cannot be read; a damaged file is refused whole."""
    nothing = _Given(pl.Series(dtype=pl.Int64()), pl.DataFrame(schema=table.schema))
    if path.name.endswith(".parquet"):
        try:
            cells = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            return nothing, quarantine.entries([_unreadable(path, error)])
        return _Given(pl.int_range(1, cells.height + 1, eager=True), cells), quarantine.EMPTY
    text = read_text(path)
    if not text.frame.is_empty():
        given, refused = _parsed(path, text.frame, table)
        return given, pl.concat([text.refused, refused])
    is_empty_table = ".jsonl" in path.name or not text.refused.is_empty()  # an empty CSV file lacks even its header
    return nothing if is_empty_table else nothing._replace(cells=pl.DataFrame()), text.refused


def _parsed(path: Path, text: pl.DataFrame, table: tables.Table) -> tuple[_Given, pl.DataFrame]:
    """The cells of CSV or JSON lines as text, and the quarantine table of broken lines."""
    lines = text.select(LINE, "text").iter_rows()
    header = None if ".jsonl" in path.name else _csv_header(path, next(lines)[1])
    names = dict.fromkeys(header or ())
    good: list[tuple[int, Cells]] = []
    refused: list[tuple[str, int, str, str]] = []
    for number, line in lines:
        try:
            row = _json_cells(line, table) if header is None else _csv_cells(line, header)
        except (ValueError, csv.Error, RecursionError) as error:
            refused.append((path.name, number, _broken(error), line))
            continue
        good.append((number, row))
        names |= dict.fromkeys(row)
    # Where no line could be parsed, none tells the names.
    columns = {name: [row.get(name) for _, row in good] for name in names or table.columns}
    cells = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String()))
    return _Given(pl.Series([number for number, _ in good], dtype=pl.Int64()), cells), quarantine.entries(refused)


def _misfits(raw: pl.DataFrame, table: tables.Table) -> dict[str, pl.Expr]:
    """Rules that hold for the cells that a cast to the declared type made null."""
    return {
        f"{name} is no {_word(column.dtype)}": pl.col(name).is_null() & pl.lit(raw[name].is_not_null())
        for name, column in table.columns.items()
        if name in raw.columns
    }


def _unreadable(path: Path, error: Exception) -> tuple[str, int, str, str]:
    return path.name, 0, f"the file cannot be read: {error}", ""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file that are not blank; one that is too long comes cut, a byte over the limit."""
    with _opened(path) as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            if raw.strip():
                yield number, raw


def _decoded(number: int, raw: bytes) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise ValueError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")


def _shown(raw: bytes) -> str:
    return raw[: quarantine.MAX_ROW_CHARACTERS].decode("utf-8", "backslashreplace")


def _opened(path: Path) -> GzipFile | BufferedReader:
    return GzipFile(path) if path.name.endswith(".gz") else path.open("rb")


def _csv_fields(text: str) -> list[str]:
    return next(csv.reader([text], strict=True))


def _csv_header(path: Path, text: str) -> list[str]:
    try:
        names = _csv_fields(text)
    except csv.Error as error:
        raise tables.TableError(f"{path} has a broken header: {error}") from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise tables.TableError(f"{path} has a broken header: {', '.join(map(repr, twice))} stands there twice")
    return names


def _csv_cells(text: str, header: list[str]) -> Cells:
    fields = _csv_fields(text)
    if len(fields) != len(header):
        raise ValueError(f"the line has {len(fields)} fields where the header has {len(header)}")
    return {name: field or None for name, field in zip(header, fields, strict=True)}


def _json_cells(text: str, table: tables.Table) -> Cells:
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("the line is no JSON object")
    return {paired_surrogates(name): _json_cell(name, value, table) for name, value in record.items()}


def _json_cell(name: str, value: object, table: tables.Table) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return paired_surrogates(value)
    is_list = name in table.columns and isinstance(table.columns[name].dtype, pl.List)
    if isinstance(value, dict) or (isinstance(value, list) and not is_list):
        raise ValueError(f"{name} holds {type(value).__name__} where one value must stand")
    return paired_surrogates(json.dumps(value, ensure_ascii=False))


def _broken(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return "broken JSON"
        case UnicodeDecodeError():
            return "not UTF-8"
        case RecursionError():
            return "nested too deep"
    return str(error)


def _check_columns(path: Path, given: pl.Schema, table: tables.Table, optional: frozenset[str]) -> None:
    faults = []
    for name, column in table.columns.items():
        if name not in given:
            if not column.nullable and name not in optional:
                faults.append(f"column {name!r} is missing")
        elif not _can_turn(given[name], column.dtype):
            faults.append(f"column {name!r} is {given[name]}, must be {column.dtype}")
    unknown = [name for name in given if name not in table.columns]
    faults += [f"column {name!r} is not one of {', '.join(table.columns)}" for name in unknown]
    if faults:
        raise tables.TableError(f"{path} is no {table.name} table: {'; '.join(faults)}")


def _can_turn(given: pl.DataType, wanted: pl.DataType) -> bool:
    if given in (wanted, pl.Null(), pl.String()):  # text is tried cell by cell
        return True
    match wanted:
        case pl.String():
            return given.is_integer() or given == pl.Categorical() or isinstance(given, pl.Enum)
        case pl.Int64():
            return given.is_integer() or isinstance(given, pl.Datetime)
        case pl.Float64():
            return given.is_numeric()
        case pl.List():
            return given == pl.List(pl.Null())
    return False


def _casts(frame: pl.DataFrame, table: tables.Table) -> list[pl.Expr | pl.Series]:
    return [
        _cast(frame[name], column.dtype)
        if name in frame.columns
        else pl.lit([] if isinstance(column.dtype, pl.List) else None, dtype=column.dtype).alias(name)
        for name, column in table.columns.items()
    ]


def _cast(cells: pl.Series, wanted: pl.DataType) -> pl.Series:
    """A column in the wanted type, null where a cell does not fit."""
    given = cells.dtype
    if isinstance(wanted, pl.List) and given == pl.String():
        return pl.Series(cells.name, [_as_list(cell) for cell in cells], dtype=wanted)
    if isinstance(wanted, pl.Boolean) and given == pl.String():
        truth = {"true": True, "false": False, "1": True, "0": False}
        return cells.str.to_lowercase().replace_strict(truth, default=None, return_dtype=pl.Boolean())
    if isinstance(wanted, pl.Int64) and isinstance(given, pl.Datetime):
        return cells.dt.epoch("s")  # a plain cast would give the datetime's own unit
    cast = cells.cast(wanted, strict=False)
    return cast.fill_null([]) if isinstance(wanted, pl.List) else cast  # a missing list is an empty one


def _as_list(cell: str | None) -> list[str] | None:
    """``["a", "b"]`` as JSON, or ``a;b``; a missing list is empty, a list of anything but text is None."""
    if cell is None:
        return []
    if not cell.startswith("["):
        return cell.split(";")
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        return None
    return [str(each) for each in found] if all(isinstance(each, str) for each in found) else None


def _word(dtype: pl.DataType) -> str:
    words = {pl.Int64(): "whole number", pl.Float64(): "number", pl.Boolean(): "truth value", pl.String(): "text"}
    return words.get(dtype, "list of text")

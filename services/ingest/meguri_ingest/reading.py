"""What arrives, as rows: inline records, or the bytes of a file.

Nothing is judged here but whether it can be read at all; `checks.py` holds the rows against their dataset.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import polars as pl
from pydantic_core import from_json, to_json

from meguri_contracts.errors import Malformed
from meguri_contracts.formats import FORMATS
from meguri_contracts.spec import MAX_COLUMNS
from meguri_ingest.unpacking import MEMORY, REFUSED

UNPACK_SECONDS = 300
EXACT = 2**53
"""Every integer up to here, and its negative, is also a float."""

_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")


@dataclass(frozen=True)
class Raw:
    """Rows as they came. A column whose values are of several kinds, or of no simple one, has the type pl.Object."""

    frame: pl.DataFrame
    text: bool = False
    """Whether all values are text that may stand for a number, as in CSV."""


def read_records(records: Sequence[Mapping[str, Any]]) -> Raw:
    """Return `records` as rows; a key that a record lacks is null there.

    Types are kept: true is no number and neither is "5". Raises Malformed for text that is no Unicode, and for records
    that hardly share a column, whose table would be many times their size.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    present = sum(len(record) for record in records)
    if len(names) > MAX_COLUMNS or len(records) * len(names) > 1_000_000 + 100 * present:
        raise Malformed(
            f"{len(records)} records name {len(names)} different columns; all records of a batch have the same"
        )
    try:
        return Raw(pl.DataFrame({name: _series(name, [record.get(name) for record in records]) for name in names}))
    except UnicodeEncodeError as error:
        raise Malformed(f"records: {error.object[:100]!r} is not valid Unicode") from error


def read_bytes(data: bytes, format: str) -> Raw:
    """Return the rows of a file in one of the formats csv, jsonl, parquet and arrow. Raises Malformed if it is none."""
    match format:
        case "csv":
            return Raw(_read_csv(data), text=True)
        case "jsonl":
            return read_records(list(_json_lines(data)))
        case "parquet" | "arrow":
            return Raw(_unpacked(data, format))
    raise Malformed(f"format {format!r} is not known; known are {', '.join(dict.fromkeys(FORMATS.values()))}")


def format_of(uri: str, given: str | None) -> str:
    """Return `given`, or else the format that the ending of `uri` stands for. Raises Malformed when it is not known."""
    ending = uri.rpartition(".")[2].lower()
    if given is None and ending not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise Malformed(f"{uri!r} does not end in one of {known}; rename the file or give its format")
    return given or FORMATS[ending]


# --- records ----------------------------------------------------------------------------------------------------------


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = set(map(type, values)) - {NoneType}
    if kinds == {int, float} and not any(type(v) is int and abs(v) > EXACT for v in values):
        kinds = {float}
    dtypes: dict[type, type[pl.DataType]] = {bool: pl.Boolean, int: pl.Int64, float: pl.Float64, str: pl.String}
    if not kinds:
        return pl.Series(name, values, pl.Null)
    if len(kinds) == 1 and (dtype := dtypes.get(kinds.pop())) is not None:
        try:
            return pl.Series(name, values, dtype)
        except (TypeError, OverflowError):  # an integer of more than 64 bits
            pass
    try:
        to_json(values)
    except ValueError as error:
        raise Malformed(f"{name}: a value cannot be written as JSON: {error}") from error
    return pl.Series(name, values, pl.Object)


def _json_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            record = from_json(line)
        except ValueError as error:
            raise Malformed(f"line {number}: {str(error).partition(' at line')[0]}") from error
        if not isinstance(record, dict):
            raise Malformed(f"line {number}: not a JSON object but {line.strip()[:60].decode(errors='replace')}")
        yield record


# --- files ------------------------------------------------------------------------------------------------------------


def _read_csv(data: bytes) -> pl.DataFrame:
    if data.startswith(_COMPRESSED):
        raise Malformed("csv: the file is compressed; send it unpacked")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Malformed(f"csv: line {line}: byte 0x{data[error.start]:02x} is not UTF-8") from error
    names = _header(text)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise Malformed(f"csv: line 1: the column {twice[0]!r} stands there twice")
    try:
        return pl.read_csv(data.rstrip(b"\r\n"), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise Malformed(f"csv: {_first_odd_line(text, len(names)) or _first_line(error)}") from error


def _header(text: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text.lstrip("\r\n"))), [])
    except csv.Error as error:
        raise Malformed(f"csv: line 1: {error}") from error


def _first_odd_line(text: str, width: int) -> str | None:
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        for row in lines:
            if len(row) > width:
                return f"line {lines.line_num}: {len(row)} fields, but the header names {width}"
    except csv.Error as error:
        return f"line {lines.line_num}: {error}"
    return None


def _unpacked(data: bytes, kind: str) -> pl.DataFrame:
    command = [sys.executable, "-m", "meguri_ingest.unpacking", kind, str(MEMORY)]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=UNPACK_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise Malformed(f"{kind}: cannot be read within {UNPACK_SECONDS} s") from error
    if child.returncode == REFUSED:
        raise Malformed(f"{kind}: {_first_line(child.stdout.decode(errors='replace'))}")
    if child.returncode:
        raise Malformed(f"{kind}: cannot be read: damaged, or larger than {MEMORY / 1024**3:g} GiB when unpacked")
    return pl.read_ipc_stream(io.BytesIO(child.stdout))


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0][:300]

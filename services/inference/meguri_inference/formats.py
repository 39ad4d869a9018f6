"""Files of rows in four formats, read batch by batch, and what of them fits a model."""

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from meguri_contracts.errors import Invalid
from meguri_contracts.events import Signature
from meguri_contracts.formats import FORMATS

PIECE_ROWS = 16_384
"""Rows that are read, predicted and written at a time. Part of what a digest rests on: another number, other bytes."""

TYPES = {"FP32": pa.float32(), "FP64": pa.float64(), "INT64": pa.int64(), "BOOL": pa.bool_(), "BYTES": pa.string()}
_BUFFER = 1024 * 1024
"""Bytes of each column of a Parquet file that are read at a time, instead of a whole row group."""
_TEXTS = (pa.types.is_string, pa.types.is_large_string)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
_TAKEN = {
    "FP32": _NUMBERS,
    "FP64": _NUMBERS,
    "INT64": (pa.types.is_integer,),
    "BOOL": (pa.types.is_boolean,),
    "BYTES": _TEXTS,
}
"""By the datatype of an input, what kinds of columns may fill it."""
_EXACT = {"FP32": 2**24, "FP64": 2**53, "INT64": 2**63 - 1, "BOOL": 1}
"""The largest integer that survives in a datatype, as the protocol of single requests has it."""


class BadRows(Invalid):
    """A file that cannot be read as rows, or whose rows a model cannot answer."""


def format_of(uri: str) -> str:
    """Return the format that the ending of `uri` stands for. Raises BadRows when it is not known."""
    ending = uri.rpartition(".")[2].lower()
    if ending not in FORMATS:
        raise BadRows(f"{uri!r} does not end in one of {', '.join(f'.{name}' for name in FORMATS)}; rename the file")
    return FORMATS[ending]


def datatypes(signature: Signature) -> dict[str, str]:
    """Return the datatype of every feature of a model, in the order of its features."""
    if signature.inputs:
        return {tensor.name: tensor.datatype for tensor in signature.inputs}
    return dict.fromkeys(signature.features, signature.input.datatype)


def read(
    path: Path, format: str, signature: Signature, *, first: int = 0, all_columns: bool = True
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield the rows of a file, all columns or those that the model takes, in the file's order, each batch with the number
    of its first row. What can be left out without reading it is left out before row `first`.

    Columns that the model does not take are text, if the format knows no types. Raises BadRows, and what pyarrow raises.
    """
    if format == "parquet":
        yield from _parquet(path, signature, all_columns, first)
        return
    at = 0
    for batch in _READERS[format](path, signature, all_columns):
        yield at, batch
        at += batch.num_rows


def _wanted(names: Sequence[str], signature: Signature, all_columns: bool) -> list[str]:
    """Return the columns to read of those that a file has. Raises BadRows when the model's are not all among them."""
    if missing := [name for name in signature.features if name not in names]:
        raise BadRows(f"column {missing[0]!r} is missing in the input; it has {', '.join(names[:20]) or 'none'}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadRows(f"the column {twice[0]!r} stands in the input twice")
    return list(names) if all_columns else list(signature.features)


def _require_types(schema: pa.Schema, signature: Signature) -> None:
    for name, datatype in datatypes(signature).items():
        if not any(known(schema.field(name).type) for known in _TAKEN[datatype]):
            raise BadRows(f"column {name!r} is {schema.field(name).type} in the input, the model takes {datatype}")


def _parquet(path: Path, signature: Signature, all_columns: bool, first: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        wanted = _wanted(file.schema_arrow.names, signature, all_columns)
        _require_types(_plain(file.schema_arrow), signature)
        begins = list(accumulate((file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)), initial=0))
        groups = [number for number in range(file.num_row_groups) if begins[number + 1] > first]
        at = begins[groups[0]] if groups else 0
        for batch in file.iter_batches(PIECE_ROWS, row_groups=groups, columns=wanted):
            yield at, _without_dictionaries(batch.select(wanted))
            at += batch.num_rows


def _arrow(path: Path, signature: Signature, all_columns: bool) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as file:
        if file.read(6) == b"ARROW1":
            opened = pa.ipc.open_file(file)
            batches: Iterator[pa.RecordBatch] = map(opened.get_batch, range(opened.num_record_batches))
        else:
            file.seek(0)
            batches = opened = pa.ipc.open_stream(file)
        wanted = _wanted(opened.schema.names, signature, all_columns)
        _require_types(_plain(opened.schema), signature)
        for batch in batches:
            yield _without_dictionaries(batch.select(wanted))


def _csv(path: Path, signature: Signature, all_columns: bool) -> Iterator[pa.RecordBatch]:
    names = _header(path)
    wanted = _wanted(names, signature, all_columns)
    types = dict.fromkeys(names, pa.string()) | {name: _parsed(kind) for name, kind in datatypes(signature).items()}
    try:
        yield from pa.csv.open_csv(
            path,
            # In one thread it says in which line it found what.
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=wanted),
        )
    except pa.ArrowInvalid as error:
        _refuse_csv(error, wanted)


def _parsed(datatype: str) -> pa.DataType:
    # As JSON's numbers are read, and made single afterwards.
    return pa.float64() if datatype == "FP32" else TYPES[datatype]


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as text:
        return next(csv.reader(line for line in text if line.strip()), [])


_CONVERSION = re.compile(r"In CSV column #(\d+): Row #(\d+): .*invalid value '(.*)'")


def _refuse_csv(error: pa.ArrowInvalid, names: Sequence[str]) -> NoReturn:
    if found := _CONVERSION.search(str(error)):
        column, line, value = names[int(found[1])], found[2], found[3]
        raise BadRows(f"csv: line {line}: column {column!r} is {value[:60]!r}, which has the wrong type") from error
    raise error


def _jsonl(path: Path, signature: Signature, all_columns: bool) -> Iterator[pa.RecordBatch]:
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        head = next(lines, None)
        if head is None:
            raise BadRows("jsonl: the file is empty")
        names = list(_record(*head))
        wanted = _wanted(names, signature, all_columns)
        file.seek(0)
        again = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        while some := list(islice(again, PIECE_ROWS)):
            yield _of_records([(number, _record(number, line)) for number, line in some], names, wanted, signature)


def _record(number: int, line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except ValueError as error:
        raise BadRows(f"jsonl: line {number}: {error}") from error
    if not isinstance(record, dict):
        raise BadRows(f"jsonl: line {number} is no object")
    return record


def _of_records(
    records: Sequence[tuple[int, dict[str, Any]]], names: Sequence[str], wanted: Sequence[str], signature: Signature
) -> pa.RecordBatch:
    known, types = set(names), datatypes(signature)
    for number, record in records:
        if more := record.keys() - known:
            raise BadRows(f"jsonl: line {number} has {min(more)!r}, which the first line does not have")
    columns = [
        _known(records, name, types[name])
        if name in types
        else pa.array([_text(r.get(name)) for _, r in records], pa.string())
        for name in wanted
    ]
    return pa.RecordBatch.from_arrays(columns, names=list(wanted))


def _known(records: Sequence[tuple[int, dict[str, Any]]], name: str, datatype: str) -> pa.Array:
    kinds = {"BYTES": (str,), "BOOL": (bool,), "INT64": (int,)}.get(datatype, (int, float))
    for number, record in records:
        value = record.get(name)
        # true is a number to Python, and to a model of numbers; an integer it is not.
        wrong = not isinstance(value, kinds) or (datatype == "INT64" and isinstance(value, bool))
        if value is not None and (wrong or (isinstance(value, int) and abs(value) > _EXACT[datatype])):
            raise BadRows(f"jsonl: line {number}: column {name!r} is {str(value)[:60]!r}, the model takes {datatype}")
    values = [record.get(name) for _, record in records]
    if datatype in ("FP32", "FP64"):
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, _parsed(datatype))


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema])


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same with plain values, and without what a writer noted beside: neither belongs to the rows."""
    plain = [pa.field(field.name, _plain_type(field.type)) for field in batch.schema]
    columns = [
        column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(plain))


_READERS = {"csv": _csv, "jsonl": _jsonl, "arrow": _arrow}

"""A message of predictions, unfolded: every row says all that is known of it.

What messages look like stands in `meguri_contracts.predictions`.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from meguri_contracts.errors import Malformed
from meguri_contracts.predictions import FEATURES, HEAD, PER_ROW, PredictionsHead

Array = np.ndarray

_TEXT = (pa.null(), pa.string())
_KINDS = ((pa.timestamp("us", "UTC"),), (pa.int32(),), (pa.int32(),), _TEXT, _TEXT, _TEXT, (pa.int64(),))
"""Types that the columns of PER_ROW may have."""


def head_of(schema: pa.Schema) -> PredictionsHead | None:
    """Return what a message says of all its rows; None for one of a release that said it of each row. Raises Malformed."""
    said = (schema.metadata or {}).get(HEAD)
    try:
        return None if said is None else PredictionsHead.model_validate_json(said)
    except ValidationError as error:
        raise Malformed(f"the head of a message of predictions is wrong: {error}") from error


def unfold(table: pa.Table, head: PredictionsHead) -> list[pl.Series]:
    """Return the rows of a message in the columns that they are kept in, those of the features and the answer as sent.

    Raises Malformed.
    """
    _check(table, head)
    rows = table.num_rows
    time, number, row, latency = (_numbers(table, at) for at in (0, 1, 2, 6))
    producer, trace_id, entity = (_texts(table, at) for at in (3, 4, 5))
    ids, derived = _ids(time, number, row, head)
    columns: dict[str, pl.Series | Array] = {
        "prediction_id": ids,
        "time": pl.Series(time).cast(pl.Datetime("us", "UTC")),
        "model": _all(head.model, rows),
        "version": np.full(rows, head.version),
        "producer": _all(head.producer, rows) if producer is None else producer,
        "trace_id": derived if trace_id is None else derived.zip_with((trace_id == "").fill_null(True), trace_id),
        "_entity": _all(None, rows) if entity is None else entity,
        "_role": _all(head.role, rows),
        "_latency": latency,
    }
    return [pl.Series(name, values) for name, values in columns.items()] + _rest(table, head)


def _check(table: pa.Table, head: PredictionsHead) -> None:
    names = tuple(table.column_names[: len(PER_ROW)])
    if names != PER_ROW:
        raise Malformed(
            f"a message of predictions begins with the columns {', '.join(PER_ROW)}, not {', '.join(names)}"
        )
    for name, kinds, column in zip(PER_ROW, _KINDS, table.columns[: len(PER_ROW)], strict=True):
        if column.type not in kinds:
            raise Malformed(f"{name!r} is {column.type} in predictions, not {kinds[-1]}")
        if kinds is not _TEXT and column.null_count:
            raise Malformed(f"{name!r} is empty in {column.null_count} predictions")
    if head.features:
        _check_features(table.schema.field(len(PER_ROW)), table.column(len(PER_ROW)), len(head.features))


def _check_features(field: pa.Field, values: pa.ChunkedArray, width: int) -> None:
    if field.name != FEATURES or not pa.types.is_fixed_size_list(field.type) or field.type.list_size != width:
        raise Malformed(f"{FEATURES!r} has the {width} features of each prediction, not {field}")
    if values.null_count:
        raise Malformed(f"{FEATURES!r} is empty in {values.null_count} predictions")


def _rest(table: pa.Table, head: PredictionsHead) -> list[pl.Series]:
    """Return features and answer."""
    at = len(PER_ROW)
    series: list[pl.Series] = []
    if head.features:
        values = table.column(at).combine_chunks().flatten().to_numpy(zero_copy_only=False)
        columns = np.asarray(values.reshape(-1, len(head.features)).T, np.float64, order="C")
        series = [pl.Series(name, column) for name, column in zip(head.features, columns, strict=True)]
        at += 1
    return series + [
        pl.Series(name, table.column(place)) for place, name in enumerate(table.column_names) if place >= at
    ]


def _ids(time: Array, number: Array, row: Array, head: PredictionsHead) -> tuple[pl.Series, pl.Series]:
    """Return the prediction ids and the trace ids that follow from them."""
    several = row >= 0
    if not several.any():
        return _of_requests(time, number, head)
    begins = np.ones(len(row), bool)
    begins[1:] = (time[1:] != time[:-1]) | (number[1:] != number[:-1])
    owner = np.cumsum(begins) - 1
    ids, trace_ids = (one.gather(owner) for one in _of_requests(time[begins], number[begins], head))
    numbered = ids + ":" + pl.Series(row).cast(pl.String)
    return numbered if several.all() else numbered.zip_with(pl.Series(several), ids), trace_ids.alias("")


def _of_requests(time: Array, number: Array, head: PredictionsHead) -> tuple[pl.Series, pl.Series]:
    ids = np.hstack([_hex(time, ">i8", 14), _repeated(head.process, len(time)), _hex(number, ">i4", 6)])
    return _series(ids), _series(np.hstack([ids, _repeated(head.trace_suffix, len(time))]))


def _hex(values: Array, kind: str, digits: int) -> Array:
    """Return the last hex digits of numbers in ASCII, of shape (values, digits)."""
    wide = values.astype(kind)
    characters = np.frombuffer(wide.tobytes().hex().encode(), np.uint8)
    return characters.reshape(len(values), 2 * wide.itemsize)[:, -digits:]


def _repeated(text: str, times: int) -> Array:
    return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (times, len(text)))


def _series(characters: Array) -> pl.Series:
    """Return texts of equal length, given in ASCII."""
    rows, length = characters.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * length
    return pl.Series(pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(characters)))


def _numbers(table: pa.Table, at: int) -> Array:
    """Return a column of numbers; moments as microseconds since 1970."""
    values = table.column(at).to_numpy()
    return values.view(np.int64) if values.dtype.kind == "M" else values


def _texts(table: pa.Table, at: int) -> pl.Series | None:
    """Return a column of texts, None where there is none."""
    column = table.column(at)
    return None if pa.types.is_null(column.type) else pl.Series(column)


def _all(text: str | None, rows: int) -> pl.Series:
    return pl.Series([text], dtype=pl.String).new_from_index(0, rows)

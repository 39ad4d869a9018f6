"""Predictions as an Arrow table, column by column: nothing here is done once per row in Python where it can be helped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meguri_contracts.events import Signature
from meguri_inference.tensors import Array

if TYPE_CHECKING:
    from meguri_inference.prediction_log import Logged

MAX_NUMBER = 0xFFFFFF
"""Of a prediction in its process, after which it counts from 0."""

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_TYPES = {"BYTES": pa.string(), "INT64": pa.int64(), "BOOL": pa.bool_(), "FP32": pa.float32(), "FP64": pa.float64()}


def of(
    name: str, version: int, signature: Signature, entries: "Sequence[Logged]", process: str, trace_suffix: str
) -> pa.Table:
    """Return all rows of `entries`, which are of one version. `process` and `trace_suffix` are parts of their ids."""
    requests = np.array([len(entry.numbers) for entry in entries])
    counts = np.concatenate([_counts(entry) for entry in entries])
    total = int(counts.sum())
    # Which request a row belongs to; None when each has one.
    owner = None if total == len(counts) else np.repeat(np.arange(len(counts)), counts)

    def per_row(values: Array) -> Array:
        return values if owner is None else values[owner]

    def names_per_row(names: Sequence[str]) -> pa.Array:
        if len(set(names)) == 1:
            return _same(names[0], total)
        return pa.array(names, pa.string()) if owner is None else pa.array(names, pa.string()).take(_numbers(owner))

    times = np.repeat(np.array([entry.microseconds for entry in entries], np.int64), requests)
    numbers = np.concatenate([_numbered(entry.numbers) for entry in entries])
    ids = _characters(_hex(times, 14), process, _hex(numbers, 6))
    columns = {
        "prediction_id": _texts(ids) if owner is None else _row_ids(ids[owner], counts),
        "time": _numbers(per_row(times)).cast(pa.timestamp("us", tz="UTC")),
        "model": _same(name, total),
        "version": _numbers(np.full(total, version, np.int64)),
        "producer": names_per_row([producer for entry in entries for producer in entry.producers]),
        "trace_id": _trace_ids(entries, _texts(per_row(_characters(ids, trace_suffix))), owner),
        "_entity": _entities(entries, total, owner),
        "_role": names_per_row([entry.role for entry in entries for _ in entry.numbers]),
        "_latency": _numbers(per_row(np.concatenate([np.array(entry.latencies, np.int64) for entry in entries]))),
    }
    x = np.concatenate([entry.batch.x if entry.rows is None else entry.batch.x[entry.rows] for entry in entries])
    columns.update(zip(signature.features, _features(signature, x), strict=True))
    columns.update(_answers(signature, entries))
    return pa.table(columns)


def row_ids(prediction_id: str, rows: int) -> list[str]:
    """Return the id of each row of a request: the prediction's own, or with `:<row>` when there are several."""
    return [prediction_id] if rows == 1 else [f"{prediction_id}:{row}" for row in range(rows)]


def _numbered(numbers: Sequence[int]) -> Array:
    return np.arange(numbers.start, numbers.stop) if isinstance(numbers, range) else np.array(numbers, np.int64)


def _counts(entry: "Logged") -> Array:
    return np.ones(len(entry.numbers), np.int64) if entry.counts is None else np.array(entry.counts, np.int64)


def _row_ids(ids: Array, counts: Array) -> pa.Array:
    """Return the ids of all rows: those of their requests, with `:<row>` behind them where there are several."""
    ends = np.cumsum(counts)
    row = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    digits = len(str(int(counts.max()) - 1))
    width = np.where(np.repeat(counts, counts) == 1, 0, 1 + _digits(row))
    decimal = ((row[:, None] // 10 ** np.arange(digits - 1, -1, -1)) % 10 + ord("0")).astype(np.uint8)
    characters = _characters(ids, ":", decimal)
    # The number stands to the right; what is before it is left out, and so is all of it where it is not wanted.
    before = ids.shape[1]
    place = np.arange(digits)
    wanted = np.ones(characters.shape, bool)
    wanted[:, before] = width > 0
    wanted[:, before + 1 :] = (width[:, None] > 0) & (place >= digits - (width[:, None] - 1))
    offsets = np.concatenate([[0], np.cumsum(before + width)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(row), pa.py_buffer(offsets), pa.py_buffer(characters[wanted]))


def _digits(numbers: Array) -> Array:
    """How many decimal digits numbers from 0 on have."""
    return np.searchsorted(10 ** np.arange(1, 19), numbers, side="right") + 1


def _trace_ids(entries: "Sequence[Logged]", derived: pa.Array, owner: Array | None) -> pa.Array:
    if all(entry.trace_ids is None for entry in entries):
        return derived
    own = pa.array([one for entry in entries for one in (entry.trace_ids or [None] * len(entry.numbers))], pa.string())
    return pc.coalesce(own if owner is None else own.take(_numbers(owner)), derived)


def _entities(entries: "Sequence[Logged]", total: int, owner: Array | None) -> pa.Array:
    if all(entry.entities is None for entry in entries):
        return pa.nulls(total, pa.string())
    own = pa.array([one for e in entries for one in (e.entities or [None] * len(e.numbers))], pa.string())
    return own if owner is None else own.take(_numbers(owner))


def _features(signature: Signature, x: Array) -> list[pa.Array]:
    if not signature.inputs:
        return [_numbers(column) for column in np.ascontiguousarray(x.T)]
    return [
        pa.array(column.tolist(), _TYPES[tensor.datatype]) for column, tensor in zip(x.T, signature.inputs, strict=True)
    ]


def _answers(signature: Signature, entries: "Sequence[Logged]") -> dict[str, pa.Array]:
    """Column `prediction`, or `label` (text or integer) and `probability`, the row's largest, null if unknown, or `score`."""
    answers = {tensor.name: _output(entries, at) for at, tensor in enumerate(signature.outputs)}
    if "prediction" in answers:
        return {"prediction": _numbers(answers["prediction"].reshape(-1).astype(np.float64))}
    label = answers["label"].reshape(-1)
    text = label.dtype == object
    columns = {"label": pa.array(label.tolist(), pa.string()) if text else _numbers(label.astype(np.int64))}
    if "score" in answers:
        columns["score"] = _numbers(answers["score"].reshape(-1).astype(np.float64))
    elif "probabilities" in answers:
        columns["probability"] = _numbers(answers["probabilities"].max(axis=1).astype(np.float64))
    else:
        columns["probability"] = pa.nulls(len(label), pa.float64())
    return columns


def _output(entries: "Sequence[Logged]", at: int) -> Array:
    outputs = [e.batch.outputs[at] if e.rows is None else e.batch.outputs[at][e.rows] for e in entries]
    return np.concatenate(outputs)


def _hex(values: Array, digits: int) -> Array:
    """Return numbers as hex digits in ASCII, of shape (values, digits)."""
    return _HEX[(values[:, None] >> (4 * np.arange(digits - 1, -1, -1))) & 15]


def _numbers(values: Array) -> pa.Array:
    """Return contiguous numbers as Arrow has them: where they are. `pa.array` looks for pandas in all folders every time."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _same(text: str, rows: int) -> pa.Array:
    """Return one text for all rows."""
    characters = np.frombuffer(text.encode(), np.uint8)
    return _texts(np.broadcast_to(characters, (rows, len(characters))))


def _characters(*parts: Array | str) -> Array:
    """Return texts of equal length in ASCII, of shape (texts, characters), made of parts; a part may be the same in all."""
    rows = next(len(part) for part in parts if not isinstance(part, str))
    arrays = [
        np.broadcast_to(np.frombuffer(part.encode(), np.uint8), (rows, len(part))) if isinstance(part, str) else part
        for part in parts
    ]
    return np.concatenate(arrays, axis=1)


def _texts(characters: Array) -> pa.Array:
    """Return texts of equal length as Arrow keeps them."""
    rows, length = characters.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * length
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(characters)))

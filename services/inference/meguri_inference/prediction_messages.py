"""Predictions as messages: column by column out of the arrays that were computed, nothing once per row in Python.

What they look like stands in `meguri_contracts.predictions`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa

from meguri_contracts.events import Role, Signature
from meguri_contracts.predictions import FEATURES, HEAD, PER_ROW, PredictionsHead
from meguri_inference.prediction_ids import PredictionIds
from meguri_inference.tensors import Array

if TYPE_CHECKING:
    from meguri_inference.predicting import LoadedModel

MAX_MESSAGE_BYTES = 1000 * 1024
MAX_MESSAGE_ROWS = 10_000
"""Rows that are put together without letting the loop go on, unless a single request has more."""

_TYPES = {"BYTES": pa.string(), "INT64": pa.int64(), "BOOL": pa.bool_(), "FP32": pa.float32(), "FP64": pa.float64()}
_FRAME_BYTES, _PER_ROW_BYTES = 4096, 40
"""Of a message beside its columns, and of a row beside its features and texts, at most about."""
_REQUEST_BYTES, _ENTRY_BYTES, _OBJECT_BYTES = 64, 1024, 64
"""About what a request, requests answered together, and a Python object take in memory while they wait."""


class Logged(msgspec.Struct, frozen=True, gc=False):
    """Requests that were computed together by one version. Sequences have an item per request, arrays a row per row."""

    model: "LoadedModel"
    role: Role
    x: Array
    outputs: Sequence[Array]
    """As the signature of the model names them."""
    counts: Sequence[int] | None
    """Rows of each request; None for one each."""
    microseconds: int
    """Since 1970, when they were answered."""
    numbers: Sequence[int]
    """Of their prediction ids."""
    producers: Sequence[str]
    entities: Sequence[str | None] | None
    trace_ids: Mapping[int, str]
    """By place among the requests, where it does not follow from the prediction id."""
    seconds: Array
    """From each request's head to its answer."""
    then: Callable[[bool], None] | None = None
    """Is told whether these are safe: on the broker's disk, or lost. What it is told first holds."""

    @property
    def memory(self) -> int:
        """About what this takes in memory, in bytes, while it waits."""
        objects = self.x.size * _OBJECT_BYTES if self.x.dtype == object else 0
        return len(self.x) * int(self.x.strides[0]) + objects + len(self.numbers) * _REQUEST_BYTES + _ENTRY_BYTES


def parts(entries: Sequence[Logged]) -> Iterator[list[Logged]]:
    """Yield entries of one version, in their order, in parts that fill a message each."""
    most = _most_rows(entries[0].model.signature)
    part: list[Logged] = []
    rows = 0
    for entry in entries:
        if part and rows + len(entry.x) > most:
            yield part
            part, rows = [], 0
        part.append(entry)
        rows += len(entry.x)
    yield part


def messages(entries: Sequence[Logged], ids: PredictionIds) -> Iterator[tuple[bytes, int]]:
    """Yield messages that hold all rows of a part, each with its number of rows.

    None is larger than MAX_MESSAGE_BYTES, but for a single row that is.
    """
    table = _table(entries, ids)
    most = _most_rows(entries[0].model.signature)
    for start in range(0, table.num_rows, most):
        yield from _fitting(table.slice(start, most))


def _fitting(table: pa.RecordBatch) -> Iterator[tuple[bytes, int]]:
    body = b"".join((table.schema.serialize(), table.serialize()))
    half = table.num_rows // 2
    if len(body) <= MAX_MESSAGE_BYTES or not half:
        yield body, table.num_rows
    else:
        yield from _fitting(table.slice(0, half))
        yield from _fitting(table.slice(half))


def _most_rows(signature: Signature) -> int:
    """How many rows go into a message, unless they have long texts."""
    row = _PER_ROW_BYTES + len(signature.features) * (4 if signature.input.datatype == "FP32" else 8)
    return max(min(MAX_MESSAGE_ROWS, (MAX_MESSAGE_BYTES - _FRAME_BYTES) // row), 1)


def _table(entries: Sequence[Logged], ids: PredictionIds) -> pa.RecordBatch:
    model = entries[0].model
    producers = set(chain.from_iterable(entry.producers for entry in entries))
    x = np.concatenate([entry.x for entry in entries])
    head = PredictionsHead(
        model=model.name,
        version=model.version,
        role=entries[0].role,
        process=ids.process,
        trace_suffix=ids.trace_suffix,
        producer=producers.pop() if len(producers) == 1 else None,
        features=() if model.signature.inputs else model.signature.features,
    )
    features = _features(model.signature, x)
    answers = _answers(entries)
    return pa.RecordBatch.from_arrays(
        [*_per_row(entries, len(x), named=head.producer is not None), *features.values(), *answers.values()],
        names=[*PER_ROW, *features, *answers],
        metadata={HEAD: head.model_dump_json()},
    )


def _per_row(entries: Sequence[Logged], rows: int, *, named: bool) -> list[pa.Array]:
    """Return the columns of PER_ROW; `named` if the head of the message has the producer."""
    requests = np.array([len(entry.numbers) for entry in entries])
    time = np.repeat(np.array([entry.microseconds for entry in entries]), requests)
    number = np.concatenate([_numbered(entry.numbers) for entry in entries])
    latency = (np.concatenate([entry.seconds for entry in entries]) * 1e6).astype(np.int64)
    texts = [None if named else _producers(entries), _trace_ids(entries, len(time)), _entities(entries)]
    row = np.full(len(time), -1, np.int32)
    if any(entry.counts for entry in entries):
        counts = np.concatenate([_counts(entry) for entry in entries])
        owner, row = np.repeat(np.arange(len(counts)), counts), _rows(counts)
        time, number, latency = time[owner], number[owner], latency[owner]
        texts = [None if text is None else text.take(_numbers(owner)) for text in texts]
    return [
        _numbers(time, pa.timestamp("us", "UTC")),
        _numbers(number),
        _numbers(row),
        *(pa.nulls(rows) if text is None else text for text in texts),
        _numbers(latency),
    ]


def _numbered(numbers: Sequence[int]) -> Array:
    if isinstance(numbers, range):
        return np.arange(numbers.start, numbers.stop, dtype=np.int32)
    return np.array(numbers, np.int32)


def _counts(entry: Logged) -> Array:
    return np.ones(len(entry.numbers), np.int64) if entry.counts is None else np.array(entry.counts, np.int64)


def _rows(counts: Array) -> Array:
    """Return the number of each row in its request, -1 where it is alone."""
    ends = np.cumsum(counts)
    row = (np.arange(ends[-1]) - np.repeat(ends - counts, counts)).astype(np.int32)
    row[ends[counts == 1] - 1] = -1
    return row


def _producers(entries: Sequence[Logged]) -> pa.Array:
    return pa.array([one for entry in entries for one in entry.producers], pa.string())


def _trace_ids(entries: Sequence[Logged], requests: int) -> pa.Array | None:
    """Return the few trace ids that there are, empty texts between them."""
    if not any(entry.trace_ids for entry in entries):
        return None
    lengths = np.zeros(requests + 1, np.int32)
    texts: list[bytes] = []
    start = 0
    for entry in entries:
        for at, trace_id in sorted(entry.trace_ids.items()):
            texts.append(trace_id.encode())
            lengths[start + at + 1] = len(texts[-1])
        start += len(entry.numbers)
    offsets = np.cumsum(lengths, dtype=np.int32)
    return pa.StringArray.from_buffers(requests, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)))


def _entities(entries: Sequence[Logged]) -> pa.Array | None:
    if all(entry.entities is None for entry in entries):
        return None
    return pa.array([one for e in entries for one in (e.entities or [None] * len(e.numbers))], pa.string())


def _features(signature: Signature, x: Array) -> dict[str, pa.Array]:
    if not signature.inputs:
        return {FEATURES: pa.FixedSizeListArray.from_arrays(_numbers(x.reshape(-1)), x.shape[1])}
    return {
        tensor.name: pa.array(column.tolist(), _TYPES[tensor.datatype])
        for column, tensor in zip(x.T, signature.inputs, strict=True)
    }


def _answers(entries: Sequence[Logged]) -> dict[str, pa.Array]:
    """Column `prediction`, or `label` (text or integer) and `probability`, the row's largest, null if unknown, or `score`."""
    outputs = enumerate(entries[0].model.signature.outputs)
    answers = {tensor.name: np.concatenate([entry.outputs[at] for entry in entries]) for at, tensor in outputs}
    if "prediction" in answers:
        return {"prediction": _numbers(answers["prediction"].reshape(-1))}
    label = answers["label"].reshape(-1)
    text = label.dtype == object
    columns = {"label": pa.array(label.tolist(), pa.string()) if text else _numbers(label.astype(np.int64))}
    if "score" in answers:
        columns["score"] = _numbers(answers["score"].reshape(-1))
    elif "probabilities" in answers:
        columns["probability"] = _numbers(np.ascontiguousarray(answers["probabilities"].T).max(axis=0))
    else:
        columns["probability"] = pa.nulls(len(label), pa.float64())
    return columns


def _numbers(values: Array, kind: pa.DataType | None = None) -> pa.Array:
    """Return contiguous numbers as Arrow has them: where they are. `pa.array` looks for pandas in all folders every time."""
    kind = kind or pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

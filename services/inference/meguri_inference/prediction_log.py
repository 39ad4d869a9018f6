"""What was predicted, for whom and from what: collected off the hot path, published as Arrow batches."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa

from meguri_contracts.errors import PermanentError
from meguri_inference.protocol import Answer, Array, Batch

if TYPE_CHECKING:
    from meguri_inference.predicting import LoadedModel

logger = logging.getLogger(__name__)

Publish = Callable[[str, bytes], Awaitable[None]]
"""Takes the model's name and one Arrow IPC stream; returns when it is safe."""

MAX_MESSAGE_BYTES = 512 * 1024
MAX_MESSAGE_ROWS = 1000
"""Rows that are put together without letting the loop go on."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bound of what waits while the broker is away; beyond it the oldest predictions are dropped and counted."""
MAX_RETRY_SECONDS = 5.0
RESERVED_COLUMNS = frozenset(
    ("prediction_id", "time", "model", "version", "producer", "trace_id", "label", "probability", "prediction")
)
"""Columns of the log that are no features."""

_ENTRY_BYTES = 1024
"""About what one request takes in memory beside its input: ids, views of the outputs, the entry."""


class PredictionIds:
    """Ids of 28 characters: microseconds, this process, a counter, all in hex. They sort by time."""

    def __init__(self) -> None:
        self._process = os.urandom(4).hex()
        self._counter = count()

    def next(self, microseconds: int) -> str:
        """Return a new id for a prediction made at `microseconds` since 1970."""
        return f"{microseconds:014x}{self._process}{next(self._counter) & 0xFFFFFF:06x}"


class _Entry(msgspec.Struct, frozen=True, gc=False):
    model: "LoadedModel"
    prediction_id: str
    microseconds: int
    producer: str
    trace_id: str
    answer: Answer


class PredictionLog:
    """Publishes predictions `linger` seconds after the first pending one, or as soon as `max_rows` are pending.

    What cannot be published is tried again for as long as there is room. `dropped` counts the rows that were lost.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        max_rows: int = 5000,
        linger: float = 0.1,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        retry: float = 0.1,
    ) -> None:
        """`linger` and `retry` in seconds; the wait between tries doubles from `retry` to MAX_RETRY_SECONDS."""
        self.dropped = 0
        self._publish = publish
        self._max_rows = max_rows
        self._linger = linger
        self._max_pending_bytes = max_pending_bytes
        self._retry = retry
        self._pending: deque[_Entry] = deque()
        self._rows = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._due = False
        self._closing = False
        self._in_hand = 0

    def add(
        self,
        model: "LoadedModel",
        *,
        prediction_id: str,
        microseconds: int,
        producer: str,
        trace_id: str,
        answer: Answer,
    ) -> None:
        """Note an answer given at `microseconds` since 1970."""
        entry = _Entry(model, prediction_id, microseconds, producer, trace_id, answer)
        self._pending.append(entry)
        self._rows += answer.rows
        self._bytes += _memory(entry)
        if self._bytes > self._max_pending_bytes:
            self._drop_oldest()
        if self._rows >= self._max_rows:
            self._send_soon()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._linger, self._send_soon)

    async def close(self, patience: float = 10.0) -> None:
        """Publish everything pending; give up after `patience` seconds and count what is left as dropped."""
        self._closing = True
        if self._pending:
            self._send_soon()
        if sender := self._sender:
            await asyncio.wait({sender}, timeout=patience)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        if lost := self._in_hand + self._rows:
            self._drop(lost, f"not published within {patience} s of shutdown")

    def _send_soon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = True
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._due:
                async with asyncio.TaskGroup() as deliveries:
                    for model, entries in self._take().items():
                        for body, rows in _messages(model, entries):
                            deliveries.create_task(self._deliver(model.name, body, rows))
                            if self._rows < self._max_rows:
                                await asyncio.sleep(0)  # others come first, unless this falls behind
        except Exception as error:
            # These could not be written at all; those that come after them can.
            self._drop(self._in_hand, repr(error))
            self._in_hand = 0
            raise
        finally:
            self._sender = None
            if self._pending and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._linger, self._send_soon)

    def _take(self) -> "dict[LoadedModel, list[_Entry]]":
        """Take the oldest entries, about `max_rows` rows, into hand; the rest waits for company unless it is plenty."""
        taken: dict[LoadedModel, list[_Entry]] = {}
        while self._pending and self._in_hand < self._max_rows:
            entry = self._forget_oldest()
            self._in_hand += entry.answer.rows
            taken.setdefault(entry.model, []).append(entry)
        self._due = self._rows >= self._max_rows or (self._closing and bool(self._pending))
        return taken

    def _forget_oldest(self) -> _Entry:
        entry = self._pending.popleft()
        self._rows -= entry.answer.rows
        self._bytes -= _memory(entry)
        return entry

    async def _deliver(self, model: str, body: bytes, rows: int) -> None:
        wait = self._retry
        while True:
            try:
                await self._publish(model, body)
                break
            except PermanentError as error:
                self._drop(rows, str(error))
                break
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises; nothing is lost by it
                logger.warning("predictions of %s not published, next try in %.1f s: %s", model, wait, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)
        self._in_hand -= rows

    def _drop_oldest(self) -> None:
        lost = 0
        # A tenth at a time, so that a full log does not warn with every prediction.
        while self._pending and self._bytes > 0.9 * self._max_pending_bytes:
            lost += self._forget_oldest().answer.rows
        self._drop(lost, f"more than {self._max_pending_bytes} bytes are waiting")

    def _drop(self, rows: int, reason: str) -> None:
        self.dropped += rows
        logger.error("%d predictions dropped from the prediction log (%d so far): %s", rows, self.dropped, reason)


def read_batch(body: bytes) -> pa.Table:
    """Return the rows of a published message."""
    return pa.ipc.open_stream(body).read_all()


def _messages(model: "LoadedModel", entries: list[_Entry]) -> Iterator[tuple[bytes, int]]:
    """Yield messages that hold all rows of `entries`, each with its number of rows and one record batch.

    None is larger than MAX_MESSAGE_BYTES, but for a single row that is. The work for each is done when it is asked for.
    """
    per_message = min(MAX_MESSAGE_BYTES // _row_bytes(model, entries[0]) + 1, MAX_MESSAGE_ROWS)
    chunk: list[_Entry] = []
    rows = 0
    for entry in entries:
        chunk.append(entry)
        rows += entry.answer.rows
        if rows >= per_message or entry is entries[-1]:
            table = _table(model, chunk)
            for start in range(0, rows, per_message):
                yield from _fitting(table.slice(start, per_message))
            chunk, rows = [], 0


def _fitting(table: pa.Table) -> Iterator[tuple[bytes, int]]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    half = table.num_rows // 2
    if len(body) <= MAX_MESSAGE_BYTES or not half:
        yield body, table.num_rows
    else:
        yield from _fitting(table.slice(0, half))
        yield from _fitting(table.slice(half))


def _memory(entry: _Entry) -> int:
    """About what an entry takes in memory, in bytes, while it waits."""
    x = entry.answer.batch.x
    return entry.answer.rows * int(x.strides[0]) + _ENTRY_BYTES


def _row_bytes(model: "LoadedModel", entry: _Entry) -> int:
    """About what a row takes in a message."""
    return int(entry.answer.batch.x.strides[0]) + len(model.name) + len(entry.producer) + 128


def _table(model: "LoadedModel", entries: list[_Entry]) -> pa.Table:
    counts = [entry.answer.rows for entry in entries]
    total = sum(counts)

    def per_row(values: list[str]) -> pa.Array:
        column = pa.array(values, pa.string())
        return column if total == len(entries) else column.take(pa.array(np.repeat(np.arange(len(values)), counts)))

    times = np.repeat(np.array([entry.microseconds for entry in entries], np.int64), counts)
    ids = [entry.prediction_id for entry in entries]
    if total > len(entries):
        ids = [row for each, rows in zip(ids, counts, strict=True) for row in row_ids(each, rows)]
    columns = {
        "prediction_id": pa.array(ids, pa.string()),
        "time": pa.array(times).cast(pa.timestamp("us", tz="UTC")),
        "model": pa.repeat(pa.scalar(model.name), total),
        "version": pa.repeat(pa.scalar(model.version, pa.int64()), total),
        "producer": per_row([entry.producer for entry in entries]),
        "trace_id": per_row([entry.trace_id for entry in entries]),
    }
    batches, index = _batches(entries)
    features = np.ascontiguousarray(np.concatenate([batch.x for batch in batches])[index].T)
    columns.update(zip(model.signature.features, map(pa.array, features), strict=True))
    columns.update(_answers(model, batches, index))
    return pa.table(columns)


def row_ids(prediction_id: str, rows: int) -> list[str]:
    """Return the id of each row of a request: the prediction's own, or with `:<row>` when there are several."""
    return [prediction_id] if rows == 1 else [f"{prediction_id}:{row}" for row in range(rows)]


def _batches(entries: list[_Entry]) -> tuple[list[Batch], Array]:
    """Return the batches that the entries are part of, and where their rows stand in all the batches' rows."""
    batches: dict[int, Batch] = {}
    offsets: dict[int, int] = {}
    end = 0
    starts = []
    for entry in entries:
        batch = entry.answer.batch
        if id(batch) not in batches:
            batches[id(batch)] = batch
            offsets[id(batch)] = end
            end += len(batch.x)
        starts.append(offsets[id(batch)] + entry.answer.start)
    counts = np.array([entry.answer.rows for entry in entries])
    ends = np.cumsum(counts)
    return list(batches.values()), np.repeat(np.array(starts) - (ends - counts), counts) + np.arange(ends[-1])


def _answers(model: "LoadedModel", batches: list[Batch], index: Array) -> dict[str, pa.Array]:
    """Column `prediction`, or `label` (text or integer) and `probability`: the row's largest, null if unknown."""
    answers = {
        tensor.name: np.concatenate([batch.outputs[at] for batch in batches])[index]
        for at, tensor in enumerate(model.signature.outputs)
    }
    if "prediction" in answers:
        return {"prediction": pa.array(answers["prediction"].reshape(-1).astype(np.float64))}
    label = answers["label"].reshape(-1)
    text = label.dtype == object
    columns = {"label": pa.array(label.tolist(), pa.string()) if text else pa.array(label.astype(np.int64))}
    if "probabilities" in answers:
        columns["probability"] = pa.array(answers["probabilities"].max(axis=1).astype(np.float64))
    else:
        columns["probability"] = pa.nulls(len(label), pa.float64())
    return columns

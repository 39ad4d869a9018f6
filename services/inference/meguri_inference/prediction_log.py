"""What was predicted, for whom and from what: collected off the hot path, published as Arrow batches."""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Role
from meguri_contracts.spec import PREDICTION_COLUMNS
from meguri_inference import prediction_table
from meguri_inference.protocol import Batch
from meguri_inference.tensors import Array

if TYPE_CHECKING:
    from meguri_inference.predicting import LoadedModel

logger = logging.getLogger(__name__)

Publish = Callable[[str, str, bytes], Awaitable[None]]
"""Takes the model's name, an id of the message, and one Arrow IPC stream; returns when it is safe."""

MAX_MESSAGE_BYTES = 512 * 1024
MAX_MESSAGE_ROWS = 1000
"""Rows that are put together without letting the loop go on."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bound of what waits while the broker is away; beyond it the oldest predictions are dropped and counted."""
MAX_AT_ONCE = 100_000
"""Requests that are answered together at most."""
MAX_RETRY_SECONDS = 5.0
RESERVED_COLUMNS = PREDICTION_COLUMNS - {"sequence"}
"""Columns of the log that are no features."""

_REQUEST_BYTES = 512
"""About what one request takes in memory beside its rows: ids, names, a share of the entry."""


class PredictionIds:
    """Ids of 28 characters: microseconds, this process, a counter, all in hex. They sort by time.

    Each also stands for a trace id, for the many requests that are not sampled: its own characters and four more.
    """

    def __init__(self) -> None:
        self.process = os.urandom(4).hex()
        self.trace_suffix = os.urandom(2).hex()
        self._next = 0

    def take(self, requests: int) -> range:
        """Return the numbers of the next predictions of this process."""
        numbers = range(self._next, self._next + requests)
        # Six hex digits, so that those of one batch do not go over the edge.
        self._next = numbers.stop if numbers.stop < prediction_table.MAX_NUMBER - MAX_AT_ONCE else 0
        return numbers

    def prefix(self, microseconds: int) -> str:
        """Return how the ids of predictions made at `microseconds` since 1970 begin; their numbers in 6 hex digits follow."""
        return f"{microseconds:014x}{self.process}"


class Logged(msgspec.Struct, frozen=True, gc=False):
    """Requests that were computed together by one version. Sequences have an item per request."""

    model: "LoadedModel"
    role: Role
    batch: Batch
    rows: Array | None
    """Which rows of the batch are these requests', in their order; None for all of them."""
    counts: Sequence[int] | None
    """Rows of each request; None for one each."""
    microseconds: int
    """Since 1970, when they were answered."""
    numbers: Sequence[int]
    """Of their prediction ids."""
    producers: Sequence[str]
    entities: Sequence[str | None] | None
    trace_ids: Sequence[str | None] | None
    """None where it follows from the prediction id."""
    latencies: Sequence[int]
    """Microseconds from the request's head to its answer."""
    then: Callable[[bool], None] | None = None
    """Is told whether these are safe: on the broker's disk, or lost. What it is told first holds."""

    @property
    def size(self) -> int:
        """How many rows these are."""
        return sum(self.counts) if self.counts is not None else len(self.numbers)

    @property
    def memory(self) -> int:
        """About what this takes in memory, in bytes, while it waits."""
        return len(self.batch.x) * int(self.batch.x.strides[0]) + len(self.numbers) * _REQUEST_BYTES


class PredictionLog:
    """Publishes predictions `linger` seconds after the first pending one, or as soon as `max_rows` are pending.

    What cannot be published is tried again for as long as there is room. `dropped` counts the rows that were lost.
    """

    def __init__(
        self,
        publish: Publish,
        ids: PredictionIds,
        *,
        max_rows: int = 5000,
        linger: float = 0.1,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        retry: float = 0.1,
    ) -> None:
        """`linger` and `retry` in seconds; the wait between tries doubles from `retry` to MAX_RETRY_SECONDS."""
        self.dropped = 0
        self._publish = publish
        self._ids = ids
        self._max_rows = max_rows
        self._linger = linger
        self._max_pending_bytes = max_pending_bytes
        self._retry = retry
        self._numbers = count()
        self._pending: deque[Logged] = deque()
        self._rows = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sender: asyncio.Task[None] | None = None
        self._due = False
        self._closing = False
        self._in_hand = 0

    def add(self, logged: Logged) -> None:
        """Note what was answered."""
        self._pending.append(logged)
        self._rows += logged.size
        self._bytes += logged.memory
        if self._bytes > self._max_pending_bytes:
            self._drop_oldest()
        if self._rows >= self._max_rows or logged.then is not None:
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
        taken: dict[LoadedModel, list[Logged]] = {}
        try:
            while self._due:
                taken = self._take()
                async with asyncio.TaskGroup() as deliveries:
                    for model, entries in taken.items():
                        for part in _parts(model, entries):
                            messages = _messages(model, part, self._ids)
                            delivered = _Delivered(part, len(messages))
                            for body, rows in messages:
                                deliveries.create_task(self._deliver(model.name, body, rows, delivered))
                                if self._rows < self._max_rows:
                                    await asyncio.sleep(0)  # others come first, unless this falls behind
        except Exception as error:
            # These could not be written at all; those that come after them can.
            self._drop(self._in_hand, repr(error))
            self._in_hand = 0
            for entry in chain.from_iterable(taken.values()):
                if entry.then:
                    entry.then(False)
            raise
        finally:
            self._sender = None
            if self._pending and self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._linger, self._send_soon)

    def _take(self) -> "dict[LoadedModel, list[Logged]]":
        """Take the oldest entries, about `max_rows` rows, into hand; the rest waits for company unless it is plenty."""
        taken: dict[LoadedModel, list[Logged]] = {}
        while self._pending and self._in_hand < self._max_rows:
            entry = self._forget_oldest()
            self._in_hand += entry.size
            taken.setdefault(entry.model, []).append(entry)
        urgent = any(entry.then for entry in self._pending)
        self._due = urgent or self._rows >= self._max_rows or (self._closing and bool(self._pending))
        return taken

    def _forget_oldest(self) -> Logged:
        entry = self._pending.popleft()
        self._rows -= entry.size
        self._bytes -= entry.memory
        return entry

    async def _deliver(self, model: str, body: bytes, rows: int, delivered: "_Delivered") -> None:
        wait, safe = self._retry, True
        id_ = f"{self._ids.process}{self._ids.trace_suffix}-{next(self._numbers)}"
        while True:
            try:
                await self._publish(model, id_, body)
                break
            except PermanentError as error:
                self._drop(rows, str(error))
                safe = False
                break
            except Exception as error:  # noqa: BLE001 - whatever the broker's client raises; nothing is lost by it
                logger.warning("predictions of %s not published, next try in %.1f s: %s", model, wait, error)
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)
        self._in_hand -= rows
        delivered.one(safe)

    def _drop_oldest(self) -> None:
        lost = 0
        # A tenth at a time, so that a full log does not warn with every prediction.
        while self._pending and self._bytes > 0.9 * self._max_pending_bytes:
            entry = self._forget_oldest()
            lost += entry.size
            if entry.then:
                entry.then(False)
        self._drop(lost, f"more than {self._max_pending_bytes} bytes are waiting")

    def _drop(self, rows: int, reason: str) -> None:
        self.dropped += rows
        logger.error("%d predictions dropped from the prediction log (%d so far): %s", rows, self.dropped, reason)


class _Delivered:
    """Tells those who wait for it when all messages that hold their rows have arrived."""

    def __init__(self, entries: Sequence[Logged], messages: int) -> None:
        self._messages = messages
        self._waiting = [entry.then for entry in entries if entry.then]
        self._safe = True

    def one(self, safe: bool) -> None:
        self._messages -= 1
        self._safe = self._safe and safe
        if not self._messages:
            for then in self._waiting:
                then(self._safe)


def read_batch(body: bytes) -> pa.Table:
    """Return the rows of a published message."""
    return pa.ipc.open_stream(body).read_all()


def _parts(model: "LoadedModel", entries: list[Logged]) -> Iterator[list[Logged]]:
    """Yield the entries in parts that fill a message each."""
    per_message = _rows_per_message(model, entries[0])
    part: list[Logged] = []
    rows = 0
    for entry in entries:
        part.append(entry)
        rows += entry.size
        if rows >= per_message or entry is entries[-1]:
            yield part
            part, rows = [], 0


def _messages(model: "LoadedModel", entries: list[Logged], ids: PredictionIds) -> list[tuple[bytes, int]]:
    """Return messages that hold all rows of `entries`, each with its number of rows and one record batch.

    None is larger than MAX_MESSAGE_BYTES, but for a single row that is.
    """
    table = prediction_table.of(model.name, model.version, model.signature, entries, ids.process, ids.trace_suffix)
    per_message = _rows_per_message(model, entries[0])
    starts = range(0, table.num_rows, per_message)
    return [message for start in starts for message in _fitting(table.slice(start, per_message))]


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


def _rows_per_message(model: "LoadedModel", entry: Logged) -> int:
    """About how many rows go into a message."""
    row = int(entry.batch.x.strides[0]) + len(model.name) + len(entry.producers[0]) + 160
    return min(MAX_MESSAGE_BYTES // row + 1, MAX_MESSAGE_ROWS)

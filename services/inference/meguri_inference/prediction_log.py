"""What was predicted, for whom and from what: collected off the hot path, published as Arrow batches."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING

from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Role
from meguri_contracts.spec import PREDICTION_COLUMNS
from meguri_inference.prediction_ids import PredictionIds
from meguri_inference.prediction_messages import Logged, messages, parts

if TYPE_CHECKING:
    from meguri_inference.predicting import LoadedModel

logger = logging.getLogger(__name__)

Publish = Callable[[str, str, bytes], Awaitable[None]]
"""Takes the model's name, an id of the message, and the message; returns when it is safe."""

MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Bound of what waits while the broker is away; beyond it the oldest predictions are dropped and counted."""
MAX_RETRY_SECONDS = 5.0
RESERVED_COLUMNS = PREDICTION_COLUMNS - {"sequence"}
"""Columns of the log that are no features."""

_Taken = dict[tuple["LoadedModel", Role], list[Logged]]
"""What can share messages."""


class PredictionLog:
    """Publishes predictions `linger` seconds after the first pending one, or as soon as `max_rows` are pending.

    What cannot be published is tried again for as long as there is room. `dropped` counts the rows that were lost.
    """

    def __init__(
        self,
        publish: Publish,
        ids: PredictionIds,
        *,
        max_rows: int = 10_000,
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
        self._rows += len(logged.x)
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
        taken: _Taken = {}
        try:
            while self._due:
                taken = self._take()
                async with asyncio.TaskGroup() as deliveries:
                    for part in chain.from_iterable(map(parts, taken.values())):
                        made = list(messages(part, self._ids))
                        delivered = _Delivered(part, len(made))
                        for body, rows in made:
                            deliveries.create_task(self._deliver(part[0].model.name, body, rows, delivered))
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

    def _take(self) -> _Taken:
        """Take the oldest entries, about `max_rows` rows, into hand; the rest waits for company unless it is plenty."""
        taken: _Taken = {}
        while self._pending and self._in_hand < self._max_rows:
            entry = self._forget_oldest()
            self._in_hand += len(entry.x)
            taken.setdefault((entry.model, entry.role), []).append(entry)
        urgent = any(entry.then for entry in self._pending)
        self._due = urgent or self._rows >= self._max_rows or (self._closing and bool(self._pending))
        return taken

    def _forget_oldest(self) -> Logged:
        entry = self._pending.popleft()
        self._rows -= len(entry.x)
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
            lost += len(entry.x)
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

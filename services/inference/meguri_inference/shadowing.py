"""Candidates that are asked beside the one who answers: off the answer's way, in a thread, skipped when they are too slow."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meguri_contracts.events import Signature
from meguri_inference.batching import MAX_BATCHED_ROWS
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.protocol import Batch
from meguri_inference.tensors import Array

if TYPE_CHECKING:
    from meguri_inference.answering import Made
    from meguri_inference.models import Seat, Served
    from meguri_inference.predicting import LoadedModel

logger = logging.getLogger(__name__)

MAX_PENDING_ROWS = 20_000
"""Rows that may wait for a shadow; what comes beyond them it is not asked."""
TOLERANCE = 1e-3
"""Predictions that differ by no more agree."""


@dataclass(frozen=True)
class _Pair:
    """Rows that were answered, and which of them a shadow shall answer too."""

    made: "Made"
    rows: Array | None
    chosen: Sequence[int]

    @property
    def size(self) -> int:
        return len(self.made.batch.x) if self.rows is None else len(self.rows)

    def by_request(self) -> "list[_Pair]":
        return [_Pair(self.made, self.made.rows([at]), [at]) for at in self.chosen]

    def of(self, values: Array) -> Array:
        return values if self.rows is None else values[self.rows]


class Shadowing:
    """Asks shadows, compares, counts, and logs what they said under the ids of the answers that were given."""

    def __init__(self, log: PredictionLog) -> None:
        self._log = log
        self._pending: dict[Seat, deque[_Pair]] = {}
        self._rows: dict[Seat, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def watch(self, served: "Served", answered: "Seat", made: "Made") -> None:
        """Have the shadows of a plan asked what `answered` was asked."""
        for share, seat in served.shadows:
            if seat.batcher is None or not seat.codec.same_features(answered.codec):
                seat.tally.skipped += len(made.batch.x)
                continue
            chosen = [at for at in range(len(made.asks)) if share >= 1 or random.random() < share]  # noqa: S311
            if chosen:
                rows = None if len(chosen) == len(made.asks) else made.rows(chosen)
                self._queue(seat, _Pair(made, rows, chosen))

    def _queue(self, seat: "Seat", pair: _Pair) -> None:
        if self._rows.get(seat, 0) + pair.size > MAX_PENDING_ROWS:
            seat.tally.skipped += pair.size
            return
        self._rows[seat] = self._rows.get(seat, 0) + pair.size
        if seat in self._pending:
            self._pending[seat].append(pair)
            return
        self._pending[seat] = deque([pair])
        task = asyncio.create_task(self._work(seat))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, seat: "Seat") -> None:
        pending = self._pending[seat]
        try:
            while pending:
                pairs = _taken(pending)
                self._rows[seat] -= sum(pair.size for pair in pairs)
                if seat.batcher is not None:
                    await self._compare(seat, seat.batcher.model, pairs)
        finally:
            del self._pending[seat], self._rows[seat]

    async def _compare(self, seat: "Seat", model: "LoadedModel", pairs: Sequence[_Pair]) -> None:
        xs = [seat.codec.cast(pair.of(pair.made.batch.x)) for pair in pairs]
        began = time.perf_counter()
        try:
            batch = await asyncio.to_thread(model.compute, xs)
        except Exception as error:  # noqa: BLE001 - a shadow that fails is counted and harms nobody
            smaller = pairs if len(pairs) > 1 else pairs[0].by_request()
            if len(smaller) > 1:
                for pair in smaller:
                    await self._compare(seat, model, [pair])
                return
            logger.debug("shadow %s version %d has no answer: %s", seat.name, seat.version, error)
            seat.tally.failed()
            return
        took = time.perf_counter() - began
        start = 0
        for pair in pairs:
            self._keep(seat, model, pair, _part(batch, start, pair.size))
            for at in pair.chosen:
                seat.tally.answered(took, pair.made.counts[at])
            start += pair.size

    def _keep(self, seat: "Seat", model: "LoadedModel", pair: _Pair, said: Batch) -> None:
        given = [pair.of(values) for values in pair.made.batch.outputs]
        disagreed, difference = compare(pair.made.model.signature, given, model.signature, said.outputs)
        seat.tally.compared(pair.size, disagreed, difference)
        if logged := pair.made.shadowed(model, said, pair.chosen):
            self._log.add(logged)


def compare(one: Signature, given: Sequence[Array], other: Signature, said: Sequence[Array]) -> tuple[int, float]:
    """Return on how many rows two versions disagree, and the sum of the absolute differences.

    They disagree where labels differ, or predictions by more than TOLERANCE; the difference is that of the predictions or of
    the largest probabilities.
    """
    a, b = (_by_name(signature, values) for signature, values in ((one, given), (other, said)))
    if ("prediction" in a) != ("prediction" in b):
        return len(given[0]), 0.0
    if "prediction" in a:
        apart = np.abs(a["prediction"].reshape(-1).astype(np.float64) - b["prediction"].reshape(-1).astype(np.float64))
        return int((apart > TOLERANCE).sum()), float(apart.sum())
    disagreed = int((a["label"].reshape(-1) != b["label"].reshape(-1)).sum())
    if "probabilities" not in a or "probabilities" not in b:
        return disagreed, 0.0
    first, second = (values["probabilities"].max(axis=1).astype(np.float64) for values in (a, b))
    return disagreed, float(np.abs(first - second).sum())


def _by_name(signature: Signature, values: Sequence[Array]) -> dict[str, Array]:
    return {tensor.name: array for tensor, array in zip(signature.outputs, values, strict=True)}


def _taken(pending: deque[_Pair]) -> list[_Pair]:
    """Take the oldest pairs, up to MAX_BATCHED_ROWS rows."""
    pairs = [pending.popleft()]
    rows = pairs[0].size
    while pending and rows + pending[0].size <= MAX_BATCHED_ROWS:
        rows += pending[0].size
        pairs.append(pending.popleft())
    return pairs


def _part(batch: Batch, start: int, rows: int) -> Batch:
    end = start + rows
    return Batch(batch.x[start:end], [values[start:end] for values in batch.outputs])

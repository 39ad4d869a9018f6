"""What arrives in one turn of the event loop is computed together; nothing ever waits for company."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from meguri_inference.predicting import LoadedModel
from meguri_inference.protocol import Batch
from meguri_inference.tensors import Array

MAX_BATCHED_ROWS = 256
"""Rows computed in one call. A request with more gains nothing from company and goes by itself."""
MAX_LOOP_SECONDS = 0.001
"""A call that is expected to take longer goes to a thread, so that the loop goes on accepting and answering."""


class Waiting(Protocol):
    """Rows that wait to be computed."""

    @property
    def x(self) -> Array: ...


One = TypeVar("One", bound=Waiting)


class Batcher(Generic[One]):
    """The queue before one model. Belongs to the event loop that calls `submit`.

    `answered` gets those that were computed together with their rows in the batch, one behind the other; `failed` gets one by
    itself: who shares a call with rows that have no answer does not pay for them.
    """

    def __init__(
        self,
        model: LoadedModel,
        answered: Callable[[Batch, Sequence[One]], None],
        failed: Callable[[One, Exception], None],
    ) -> None:
        self.model = model
        self._answered = answered
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._waiting: list[One] = []
        self._rows = 0
        self._turning = False

    def submit(self, one: One) -> None:
        """Have it computed in this turn of the loop or as soon as the call before it has come back."""
        rows = len(one.x)
        if rows > MAX_BATCHED_ROWS:
            self._in_thread([one])
            return
        self._waiting.append(one)
        self._rows += rows
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        batch = self._take()
        if self.model.seconds(sum(len(one.x) for one in batch)) > MAX_LOOP_SECONDS:
            # One call at a time: what arrives meanwhile makes the next one.
            self._in_thread(batch).add_done_callback(self._next)
            return
        try:
            self._settle(batch, _compute(self.model, batch))
        finally:
            self._next()

    def _take(self) -> list[One]:
        """Take those that waited longest, up to MAX_BATCHED_ROWS rows."""
        waiting = self._waiting
        if self._rows <= MAX_BATCHED_ROWS:
            self._waiting, self._rows = [], 0
            return waiting
        rows = count = 0
        while count < len(waiting) and (rows + len(waiting[count].x) <= MAX_BATCHED_ROWS or not count):
            rows += len(waiting[count].x)
            count += 1
        self._waiting = waiting[count:]
        self._rows -= rows
        return waiting[:count]

    def _next(self, _: object = None) -> None:
        # Others have their turn first: connections are accepted and answers sent between two calls.
        if self._waiting:
            self._loop.call_soon(self._turn)
        else:
            self._turning = False

    def _in_thread(self, batch: list[One]) -> "asyncio.Future[_Computed]":
        work = self._loop.run_in_executor(None, _compute, self.model, batch)
        work.add_done_callback(lambda done: self._settle(batch, done.result()))
        return work

    def _settle(self, batch: list[One], computed: "_Computed") -> None:
        if isinstance(computed, Batch):
            self._answered(computed, batch)
            return
        for one, outcome in zip(batch, computed, strict=True):
            if isinstance(outcome, Batch):
                self._answered(outcome, [one])
            else:
                self._failed(one, outcome)


_Computed = Batch | list[Batch | Exception]
"""All together, or each by itself."""


def _compute(model: LoadedModel, batch: Sequence[Waiting]) -> _Computed:
    try:
        return model.compute([one.x for one in batch])
    except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
        if len(batch) == 1:
            return [error]
    outcomes: list[Batch | Exception] = []
    for one in batch:
        try:
            outcomes.append(model.compute([one.x]))
        except Exception as error:  # noqa: BLE001 - see above
            outcomes.append(error)
    return outcomes

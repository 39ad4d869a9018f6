"""From a request's bytes to the bytes of its answer: the one way of every prediction, whatever it came by.

Nothing here awaits: a request is decoded, gets a seat in the traffic plan and waits in the seat's batcher; what was computed
together is answered together. Belongs to the event loop.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec
import numpy as np
import orjson

from meguri_contracts.errors import Busy, MeguriError, NotFound, PermanentError, TemporaryError, TooLarge
from meguri_contracts.events import Role, Signature
from meguri_inference.batching import Batcher
from meguri_inference.models import Models, Seat, Served
from meguri_inference.predicting import LoadedModel
from meguri_inference.prediction_ids import PredictionIds
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.prediction_messages import Logged
from meguri_inference.protocol import UNKNOWN_PRODUCER, Answer, Batch, Request, share_out
from meguri_inference.shadowing import Shadowing
from meguri_inference.tallies import Tallies
from meguri_inference.tensors import Array

logger = logging.getLogger(__name__)

Finish = Callable[[int, dict[str, str | int]], None]
"""Ends a span: HTTP status, and its attributes by name."""
Trace = Callable[[Mapping[str, str] | None], tuple[str, Finish | None]]
"""Takes the headers of a request that comes in a trace; returns a trace id in hex, and what ends the span if there is one."""

DURABLE_PATIENCE = 10.0
"""Seconds that an answer waits until its prediction is on the broker's disk, if the spec wants that."""
_STATUS: tuple[tuple[type[MeguriError], int], ...] = (
    (NotFound, 404),
    (TooLarge, 413),
    (PermanentError, 400),
    (Busy, 503),
    (TemporaryError, 503),
)
"""V2 knows neither 422 nor 429."""


class NotDurable(TemporaryError):
    def __init__(self) -> None:
        super().__init__(
            "the prediction could not be written to the log, and the model's spec has `log: durable`; try again later"
        )


class TooManyWaiting(Busy):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests wait for an answer already; send fewer at once, or add replicas", 1)


class Head(msgspec.Struct, frozen=True, gc=False):
    """What is said of a request beside its body."""

    model: str
    version: str | None = None
    length: int | None = None
    """Bytes of the body, if announced."""
    producer: str = ""
    entity: str | None = None
    header_length: int | None = None
    """Bytes of JSON before binary tensors, if there are any."""
    encoding: str = ""
    """How the body is compressed."""
    context: Mapping[str, str] | None = None
    """The headers of a request that comes in a trace."""


OK = 200


class Reply(msgspec.Struct, frozen=True, gc=False):
    """What is sent back. `header_length` is the JSON before binary tensors, if there are any."""

    status: int
    body: bytes
    header_length: int | None = None


class Told(msgspec.Struct, frozen=True, gc=False):
    """An answer for who writes it himself."""

    model: LoadedModel
    request: Request
    answer: Answer
    prediction_id: str
    trace_id: str


class Sink(Protocol):
    """Where the reply to a request goes."""

    def owe(self, ask: "Ask") -> None:
        """Expect a reply to this one."""

    def reply(self, ask: "Ask", reply: Reply) -> None: ...


class Ask:
    """One request on its way to its answer."""

    __slots__ = (
        "began",
        "finish",
        "first",
        "head",
        "kept",
        "owner",
        "prediction_id",
        "request",
        "seat",
        "sink",
        "told",
        "trace_id",
        "x",
    )

    request: Request
    x: Array

    def __init__(self, owner: "Answering", head: Head, sink: Sink) -> None:
        self.owner = owner
        self.head = head
        self.sink = sink
        self.began = time.perf_counter()
        self.seat: Seat | None = None
        self.trace_id = ""
        """In hex; empty where it follows from the prediction id."""
        self.finish: Finish | None = None
        self.told: Callable[[Told], object] | None = None
        """Takes the answer of who writes it himself."""
        self.prediction_id = ""
        """Of a request with a span."""
        self.first: Request | None = None
        """As the champion reads it, where a challenger reads it otherwise."""
        self.kept: Reply | None = None
        """For a sink that must answer others first."""

    @property
    def entity(self) -> str | None:
        return self.head.entity if self.request.entity is None else self.request.entity

    def fail(self, seat: Seat, error: Exception) -> None:
        """Have it answered otherwise, since `seat` will not: by the champion, or by why there is no answer."""
        self.owner.failed(seat, self, error)


@dataclass
class Limits:
    max_body_bytes: int
    max_rows: int
    max_waiting: int


class Answering:
    """Answers requests by the traffic plans of `models`, logs what it answered, and counts."""

    def __init__(
        self,
        models: Models,
        log: PredictionLog,
        ids: PredictionIds,
        tallies: Tallies,
        shadowing: Shadowing,
        *,
        trace: Trace,
        limits: Limits,
    ) -> None:
        self.models = models
        self.limits = limits
        self._log = log
        self._ids = ids
        self._tallies = tallies
        self._shadowing = shadowing
        self._trace = trace
        self._under_way = 0
        models.seated = self._seated

    def ask(self, head: Head, body: bytes, sink: Sink) -> None:
        """Have a request of V2 answered; `sink` gets the reply, perhaps before this returns."""
        ask = Ask(self, head, sink)
        sink.owe(ask)
        try:
            ask.trace_id, ask.finish = self._trace(head.context)
            served = self.models.get(head.model)
            ask.seat = seat = served.champion if head.version is None else served.version(head.version)
            ask.request = request = self._read(seat, head, body)
            ask.x = request.x
            if served.challengers and head.version is None:
                self._choose(ask, served, lambda other: self._read(other, head, body))
            self._submit(ask, ask.seat)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            self._refuse(ask, error)

    async def answer(self, head: Head, body: bytes) -> Reply:
        """Return the reply to a request of V2."""
        waiting = _Waiting()
        self.ask(head, body, waiting)
        return await waiting.future

    async def tell(self, head: Head, read: Callable[[Signature], Request]) -> "Told | Reply":
        """Return the answer to a request that `read` reads, in a thread, as the model's signature says; or the refusal."""
        waiting = _Waiting()
        ask = Ask(self, head, waiting)
        told: list[Told] = []
        ask.told = told.append
        try:
            ask.trace_id, ask.finish = self._trace(head.context)
            served = self.models.get(head.model)
            ask.seat = served.champion
            ask.request = await asyncio.to_thread(read, ask.seat.deployed.signature)
            ask.x = ask.request.x
            if served.challengers:
                self._choose(ask, served, lambda other: read(other.deployed.signature))
            self._submit(ask, ask.seat)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            self._refuse(ask, error)
        reply = await waiting.future
        return told[0] if reply.status == OK else reply

    def refusal(self, error: MeguriError) -> Reply:
        """Return the reply to a request whose head or body cannot be taken."""
        status, text = _explained(error)
        self._tallies.count("", status)
        return Reply(status, orjson.dumps({"error": text}))

    def refuse(self, ask: Ask, error: Exception) -> None:
        """Answer a request that waited with the error."""
        self._under_way -= 1
        self._refuse(ask, error)

    def _seated(self, seat: Seat, model: LoadedModel) -> None:
        """Give a seat whose model was loaded its batcher."""
        seat.batcher = Batcher(model, partial(self._answered, seat, model), partial(self.failed, seat))

    # --- in

    def _read(self, seat: Seat, head: Head, body: bytes) -> Request:
        return seat.codec.decode(body, max_rows=self.limits.max_rows, header_length=head.header_length)

    def _choose(self, ask: Ask, served: Served, read: Callable[[Seat], Request]) -> None:
        seat = served.choose(ask.entity)
        if seat is ask.seat:
            return
        if not seat.reads_alike:
            try:
                request = read(seat)
            except MeguriError:
                # The champion can read it, and answers.
                seat.tally.failed()
                return
            ask.first, ask.request, ask.x = ask.request, request, request.x
        ask.seat = seat

    def _submit(self, ask: Ask, seat: Seat) -> None:
        if self._under_way >= self.limits.max_waiting:
            raise TooManyWaiting(self.limits.max_waiting)
        if seat.batcher is None:
            self.models.bring(seat, ask)
        else:
            seat.batcher.submit(ask)
        self._under_way += 1

    # --- out

    def _answered(self, seat: Seat, model: LoadedModel, batch: Batch, asks: Sequence[Ask]) -> None:
        """Answer those that were computed together."""
        try:
            made = Made(seat.role, model, batch, asks, self._ids, time.perf_counter())
            replies = self._encode(seat, made)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            for ask in asks:
                self.refuse(ask, error)
            return
        self.models.used(seat)
        served = self.models.get(seat.name)
        logged = made.logged(served.logging.sampled)
        if logged and served.logging.durable:
            self._when_safe(logged, seat, asks, replies)
        else:
            if logged:
                self._log.add(logged)
            self._reply(seat, asks, replies)
        if served.shadows and seat.role != "shadow":
            self._shadowing.watch(served, seat, made)

    def _reply(self, seat: Seat, asks: Sequence[Ask], replies: Sequence[Reply]) -> None:
        self._under_way -= len(asks)
        self._tallies.count(seat.name, 200, len(asks))
        for ask, reply in zip(asks, replies, strict=True):
            ask.sink.reply(ask, reply)
            if ask.finish:
                ask.finish(200, _about(ask) | {"prediction_id": ask.prediction_id})

    def _encode(self, seat: Seat, made: "Made") -> list[Reply]:
        """Return the replies to those who were answered, and count them."""
        tally, encode, ended, suffix = seat.tally, seat.codec.encode, made.ended, self._ids.trace_suffix
        replies = []
        for ask, number, answer in zip(made.asks, made.numbers, made.answers, strict=True):
            id_ = f"{made.prefix}{number:06x}"
            trace_id = ask.trace_id or id_ + suffix
            if ask.told:
                ask.told(Told(made.model, ask.request, answer, id_, trace_id))
                replies.append(Reply(OK, b""))
            else:
                body, header_length = encode(answer, ask.request, prediction_id=id_, trace_id=trace_id)
                replies.append(Reply(OK, body, header_length))
            tally.answered(ended - ask.began, answer.rows)
            if ask.finish:
                tally.traced(ended - ask.began, trace_id)
                ask.prediction_id = id_
        return replies

    def failed(self, seat: Seat, ask: Ask, error: Exception) -> None:
        """Count it; where a challenger has no answer the champion is asked, so that nobody suffers from a trial."""
        seat.tally.failed()
        if seat.instead is None or ask.head.version is not None:
            self.refuse(ask, error)
            return
        self._under_way -= 1
        if ask.first is not None:
            ask.request, ask.x = ask.first, ask.first.x
        ask.seat = seat.instead
        try:
            self._submit(ask, seat.instead)
        except Exception as error_of_champion:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            self._refuse(ask, error_of_champion)

    def _when_safe(self, logged: Logged, seat: Seat, asks: Sequence[Ask], replies: Sequence[Reply]) -> None:
        """Reply once the predictions are on the broker's disk, or that they are not."""
        settled = False

        def settle(safe: bool) -> None:
            nonlocal settled
            if settled:
                return
            settled = True
            patience.cancel()
            if safe:
                self._reply(seat, asks, replies)
                return
            for ask in asks:
                self.refuse(ask, NotDurable())

        patience = asyncio.get_running_loop().call_later(DURABLE_PATIENCE, settle, False)
        self._log.add(msgspec.structs.replace(logged, then=settle))

    def _refuse(self, ask: Ask, error: Exception) -> None:
        status, text = _explained(error)
        self._tallies.count(ask.seat.name if ask.seat else "", status)
        if ask.finish:
            ask.finish(status, _about(ask) | {"error": text})
        ask.sink.reply(ask, Reply(status, orjson.dumps({"error": text})))


class Made:
    """Answers that were made together, before they are anybody's."""

    def __init__(
        self, role: Role, model: LoadedModel, batch: Batch, asks: Sequence[Ask], ids: PredictionIds, ended: float
    ) -> None:
        self.role: Role = role
        self.model = model
        self.batch = batch
        self.asks = asks
        self.ended = ended
        self.microseconds = time.time_ns() // 1000
        self.prefix = ids.prefix(self.microseconds)
        self.numbers = ids.take(len(asks))
        self._kept: frozenset[int] | None = None
        """Places of the requests that are logged; None for all of them."""
        self.counts = [len(ask.x) for ask in asks]
        self.answers = share_out(batch, self.counts)
        self.traced = bool([ask for ask in asks if ask.trace_id])
        self.anybody = bool([ask for ask in asks if ask.head.entity is not None or ask.request.entity is not None])

    def logged(self, share: float) -> Logged | None:
        """Choose which of the requests are kept, a share of them, and return these; None for none."""
        if share < 1:
            self._kept = frozenset(at for at in range(len(self.asks)) if random.random() < share)  # noqa: S311 - no secret
            chosen = sorted(self._kept)
            return self._logged(self.batch, self.rows(chosen), chosen) if chosen else None
        return self._logged(self.batch, None, range(len(self.asks)))

    def shadowed(self, model: LoadedModel, said: Batch, asked: Sequence[int]) -> Logged | None:
        """Return what a shadow said to those of the requests that are kept, under the ids of the answers that were given."""
        starts = np.cumsum([0, *(self.counts[at] for at in asked)])
        rows = [
            np.arange(start, start + self.counts[at])
            for start, at in zip(starts, asked, strict=False)
            if self._keeps(at)
        ]
        if not rows:
            return None
        logged = self._logged(said, np.concatenate(rows), [at for at in asked if self._keeps(at)])
        return msgspec.structs.replace(logged, model=model, role="shadow")

    def _keeps(self, at: int) -> bool:
        return self._kept is None or at in self._kept

    def rows(self, chosen: Sequence[int]) -> Array:
        """Return where in the batch the rows of some of the requests are."""
        ends = np.cumsum(self.counts)
        return np.concatenate([np.arange(ends[at] - self.counts[at], ends[at]) for at in chosen])

    def _logged(self, batch: Batch, rows: Array | None, chosen: Sequence[int]) -> Logged:
        whole = len(chosen) == len(self.asks)
        asks = self.asks if whole else [self.asks[at] for at in chosen]
        single = len(self.batch.x) == len(self.asks)
        entities = [ask.entity for ask in asks] if self.anybody else None
        return Logged(
            model=self.model,
            role=self.role,
            x=batch.x if rows is None else batch.x[rows],
            outputs=batch.outputs if rows is None else [values[rows] for values in batch.outputs],
            counts=None if single else [self.counts[at] for at in chosen],
            microseconds=self.microseconds,
            numbers=self.numbers if whole else [self.numbers[at] for at in chosen],
            producers=[ask.request.producer or ask.head.producer or UNKNOWN_PRODUCER for ask in asks],
            entities=entities,
            trace_ids={at: ask.trace_id for at, ask in enumerate(asks) if ask.trace_id} if self.traced else {},
            seconds=self.ended - np.array([ask.began for ask in asks]),
        )


class _Waiting:
    """A sink for who awaits the reply."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    def owe(self, ask: Ask) -> None:
        """It does, all the time."""

    def reply(self, _: Ask, reply: Reply) -> None:
        if not self.future.done():
            self.future.set_result(reply)


def _explained(error: Exception) -> tuple[int, str]:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        logger.error("a prediction failed", exc_info=error)
        return status, "the prediction failed; the log of inference says why"
    return status, str(error)


def _about(ask: Ask) -> dict[str, str | int]:
    seat = ask.seat
    about: dict[str, str | int] = {
        "model": seat.name if seat else ask.head.model,
        "version": seat.version if seat else 0,
    }
    return about | {"rows": len(ask.x) if hasattr(ask, "x") else 0, "role": seat.role if seat else ""}

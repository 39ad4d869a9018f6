"""Messages to handlers: what is decided is appended, what fails comes back, what cannot succeed is set aside, nothing is lost.

A handler is one of two kinds. A plain `def` decides: it gets the event and a session on the service's tables, and returns
events. An `async def` acts: it gets the event and the message, and sees to its effects itself. The message is acknowledged
last, so after a crash anywhere it comes again and gets the same answer.
"""

import asyncio
import inspect
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, PullSub
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from meguri_chassis import telemetry
from meguri_chassis.dead_letters import DeadLetters, Undeliverable
from meguri_chassis.deciding import Decider
from meguri_chassis.log import Message
from meguri_contracts.errors import Newer, PermanentError, TemporaryError
from meguri_contracts.events import Event
from meguri_contracts.topology import LOG, Consumer

logger = logging.getLogger(__name__)

Refuse = Callable[[Message, PermanentError], Awaitable[None]]
H = TypeVar("H", bound=Callable[..., Any])

RETRY_DELAYS = (1.0, 5.0, 15.0, 60.0)
"""Seconds before the second, third … delivery. After these an unexpected error sets the message aside; a TemporaryError,
whose reason lies outside of the message, goes on at the last delay until the reason is gone."""
FETCH_EXPIRES = 2.0
"""Seconds a pull request lingers; after a broker restart a consumer is deaf for at most this long."""


def hears(*events: type[Event]) -> Callable[[H], H]:
    """Mark a handler with the events that it hears."""

    def mark(handler: H) -> H:
        handler.hears = events  # type: ignore[attr-defined]
        return handler

    return mark


@dataclass(frozen=True)
class Hearing:
    """A durable consumer and who handles what it delivers, each kind by the one handler marked with it.

    `refuse` answers a message that cannot be read or whose handler raised a PermanentError, or raises it again; without it
    such a message is parked as a dead letter. Up to `together` messages are in hand at a time; handlers that decide see those
    of one key one after the other, in log order.
    """

    consumer: Consumer
    handlers: Sequence[Callable[..., Any]]
    refuse: Refuse | None = None
    together: int = 1

    def handler(self, event: Event) -> Callable[..., Any]:
        return next(handler for handler in self.handlers if type(event) in handler.hears)  # type: ignore[attr-defined]


class _Keys:
    """Lets those who come for one key go one after the other, first come first served."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._coming: Counter[str] = Counter()

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._coming[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._coming[key] -= 1
            if not self._coming[key]:
                del self._locks[key], self._coming[key]


class Bus:
    """Delivers what the service hears."""

    def __init__(
        self,
        hearings: Sequence[Hearing],
        *,
        dead_letters: DeadLetters,
        decider: Decider | None,
        continue_trace_max_age: float,
    ) -> None:
        self._hearings = hearings
        self._dead_letters = dead_letters
        self._decider = decider
        self._max_age = continue_trace_max_age
        self._keys = _Keys()
        self._in_hand: set[asyncio.Task[None]] = set()

    def subscribe(self, broker: NatsBroker) -> None:
        """Bind every hearing to its durable consumer; the broker delivers from its start on."""
        for hearing in self._hearings:
            self._subscribe(broker, hearing)

    async def stop(self, broker: NatsBroker, *, patience: float) -> None:
        """Ask for nothing more, and give what is in hand so many seconds to be done; what is not is delivered again."""
        until = time.monotonic() + patience
        for stopped in await asyncio.gather(*(one.stop() for one in broker.subscribers), return_exceptions=True):
            if isinstance(stopped, NatsError):
                logger.warning("the broker was away at the end: %r", stopped)
            elif stopped:
                raise stopped
        if self._in_hand:
            _, undone = await asyncio.wait(self._in_hand, timeout=max(0, until - time.monotonic()))
            for task in undone:
                task.cancel()

    def _subscribe(self, broker: NatsBroker, hearing: Hearing) -> None:
        hands = asyncio.Semaphore(hearing.together)

        @broker.subscriber(
            hearing.consumer.subjects[0],
            stream=JStream(LOG, declare=False),
            durable=hearing.consumer.name,
            # One message a request: the client keeps a request for more open until it expires, now and then, although
            # messages have come (nats-py 2.16), and each of them would wait for that.
            pull_sub=PullSub(batch_size=1, timeout=FETCH_EXPIRES),
            ack_policy=AckPolicy.MANUAL,
            decoder=_as_it_is,
            title=hearing.consumer.name,
        )
        async def deliver(msg: Any) -> None:
            await hands.acquire()
            task = asyncio.create_task(self._deliver(hearing, msg))
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)
            task.add_done_callback(lambda _: hands.release())
            # The next one is asked for when there is a hand for it: one that only waits would give no sign of life.
            async with hands:
                pass

    async def _deliver(self, hearing: Hearing, msg: Msg) -> None:
        message, began = Message.read(msg), time.perf_counter()
        attributes = {
            "messaging.consumer.group.name": hearing.consumer.name,
            "nats.stream.sequence": message.sequence,
            "nats.deliveries": message.deliveries,
            "meguri.event.source": message.source,
        }
        async with sign_of_life(msg, hearing.consumer.ack_wait / 3):
            with telemetry.processing(
                message.kind,
                [message.context],
                journey=message.journey,
                event_id=message.id,
                prompt=message.deliveries == 1 and message.age() <= self._max_age,
                attributes=attributes,
            ) as span:
                try:
                    result = await self._handle(hearing, message)
                    await msg.ack_sync(timeout=5)
                except Exception as error:  # noqa: BLE001 - each is answered: later again, or set aside and said so
                    telemetry.failed(span, error)
                    result = await self._answer_failure(hearing, msg, message, error)
        telemetry.HANDLED.labels(hearing.consumer.name, message.kind, result).inc()
        telemetry.HANDLING.labels(hearing.consumer.name, message.kind).observe(time.perf_counter() - began)

    async def _handle(self, hearing: Hearing, message: Message) -> str:
        try:
            event = message.event
            handler = hearing.handler(event)
            if inspect.iscoroutinefunction(handler):
                await handler(event, message)
            else:
                await self._carry_out(handler, event, message)
        except PermanentError as error:
            if hearing.refuse is None and isinstance(error, Newer):
                # What is new is said beside the old as long as somebody knows only the old.
                logger.warning("left %s alone: %s", message.id, error)
                return "ignored"
            if hearing.refuse is None:
                raise
            logger.info("refused %s: %s", message.id, error)
            await hearing.refuse(message, error)
            return "refused"
        return "done"

    async def _carry_out(self, handler: Callable[..., Any], event: Event, message: Message) -> None:
        if self._decider is None:
            raise TypeError(f"{handler} decides, but the service has no tables to decide on")
        async with self._keys.alone(message.key):
            await self._decider.carry_out(
                lambda session: handler(event, session),
                cause=message.id,
                journey=message.journey,
                after=message.sequence,
                hops=message.hops,
            )

    async def _answer_failure(self, hearing: Hearing, msg: Msg, message: Message, error: Exception) -> str:
        patient = isinstance(error, TemporaryError | NatsError)
        retry = not isinstance(error, PermanentError) and (patient or message.deliveries <= len(RETRY_DELAYS))
        if not retry:
            return await self._park(hearing, msg, message, error)
        delay = RETRY_DELAYS[min(message.deliveries, len(RETRY_DELAYS)) - 1]
        log = logger.warning if patient else logger.exception
        log("%s of %s failed, again in %.0f s: %s", message.kind, message.id, delay, error)
        await _settle(msg.nak(delay=delay), message)
        return "retried"

    async def _park(self, hearing: Hearing, msg: Msg, message: Message, error: Exception) -> str:
        try:
            await self._dead_letters.park(hearing.consumer.name, Undeliverable.of(msg), error)
        except TemporaryError:
            logger.exception("%s could not be parked, trying again", message.id)
            await _settle(msg.nak(delay=RETRY_DELAYS[-1]), message)
            return "retried"
        await _settle(msg.ack(), message)
        return "parked"


async def _settle(answer: Awaitable[None], message: Message) -> None:
    try:
        await answer
    except NatsError as error:
        # The broker hears nothing and delivers again after ack_wait; every effect is idempotent.
        logger.warning("no answer for %s reached the broker: %r", message.id, error)


async def _as_it_is(message: Any) -> Any:
    """The message of the client; `Message` reads it, knows the three forms of a CloudEvent, and says what is wrong with it.

    As the argument of the subscriber, because FastStream would resolve an annotated one in a thread: out of order.
    """
    return message.raw_message


@asynccontextmanager
async def sign_of_life(msg: Msg, every: float) -> AsyncIterator[None]:
    """Tell the broker every so many seconds that the message is being worked on."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(every)
            try:
                await msg.in_progress()
            except NatsError as error:
                logger.warning("no sign of life reached the broker: %r", error)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()

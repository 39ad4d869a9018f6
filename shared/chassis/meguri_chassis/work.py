"""Work that any replica may do: small messages of a stream that tell what is to be done, shared by whoever is there.

A task whose replica died is given to another after the consumer's `ack_wait`, so doing it again must change nothing. One that
fails comes again once and is then set down: at the broker only so many may be in hand at a time, and those that cannot be done
must not keep the others waiting. So who puts a task must be able to tell again what is not done.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError

from meguri_chassis.bus import RETRY_DELAYS, sign_of_life
from meguri_contracts.errors import MeguriError, TemporaryError
from meguri_contracts.topology import Consumer

logger = logging.getLogger(__name__)

EXPIRES = 5.0
"""Seconds that a request for work lingers at the broker."""
TRIES = 2
"""How often a task is delivered that fails."""
PAUSE = 0.5
"""Seconds to wait after the broker could not be asked."""


class WorkQueue:
    """Tasks on the stream of a durable consumer without events."""

    def __init__(self, js: Callable[[], JetStreamContext], consumer: Consumer) -> None:
        self._jetstream = js
        self._consumer = consumer
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """Why work is not done at the moment, in words for an operator."""
        return self._trouble

    async def put(self, subject: str, body: bytes, headers: dict[str, str]) -> int:
        """Tell what is to be done; return the task's sequence. Raises TemporaryError while the broker does not take it."""
        try:
            ack = await self._jetstream().publish(subject, body, stream=self._consumer.stream, headers=headers)
            return int(ack.seq)
        except (NatsError, APIError, OSError) as error:
            raise TemporaryError(f"the broker takes no work: {error!r}") from error

    async def last(self) -> int:
        """Return the sequence of the last task. Raises TemporaryError without the broker."""
        try:
            return int((await self._jetstream().stream_info(self._consumer.stream)).state.last_seq)
        except (NatsError, APIError, OSError) as error:
            raise TemporaryError(f"the broker does not tell of work: {error!r}") from error

    async def is_done_up_to(self, sequence: int) -> bool:
        """Whether all tasks up to one are done or set down. Raises TemporaryError without the broker."""
        try:
            known = await self._jetstream().consumer_info(self._consumer.stream, self._consumer.name)
        except (NatsError, APIError, OSError) as error:
            raise TemporaryError(f"the broker does not tell of work: {error!r}") from error
        nothing_left = not known.num_pending and not known.num_ack_pending
        return nothing_left or (known.ack_floor is not None and known.ack_floor.stream_seq >= sequence)

    async def work(self, do: Callable[[Msg], Awaitable[None]]) -> None:
        """Do what there is, one task after the other, for ever. A task that fails comes again, up to TRIES times."""
        while True:
            try:
                subscription = await self._jetstream().pull_subscribe_bind(
                    durable=self._consumer.name, stream=self._consumer.stream
                )
                try:
                    while True:
                        with suppress(TimeoutError):
                            [msg] = await subscription.fetch(1, timeout=EXPIRES)
                            await self._do(do, msg)
                finally:
                    with suppress(NatsError):
                        await subscription.unsubscribe()
            except (NatsError, APIError, OSError) as error:
                logger.warning("asking for work of %s failed, trying again: %r", self._consumer.name, error)
                await asyncio.sleep(PAUSE)

    async def _do(self, do: Callable[[Msg], Awaitable[None]], msg: Msg) -> None:
        try:
            async with sign_of_life(msg, self._consumer.ack_wait / 3):
                await do(msg)
        except Exception as error:
            self._trouble = f"work of {self._consumer.name} cannot be done: {error}"
            level = logging.WARNING if isinstance(error, MeguriError) else logging.ERROR
            logger.log(level, self._trouble, exc_info=error)
            await (msg.nak(delay=RETRY_DELAYS[0]) if msg.metadata.num_delivered < TRIES else msg.ack())
        else:
            self._trouble = None
            await msg.ack()

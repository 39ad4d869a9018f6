"""Reads a stream in order from a position on, without acknowledgements: the position is the reader's own."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError

from meguri_chassis import telemetry

logger = logging.getLogger(__name__)

BATCH = 256
"""Messages taken at most at once."""
BATCH_BYTES = 16 * 1024 * 1024
"""About how many bytes of messages are taken at most at once."""
EXPIRES = 5.0
"""Seconds that a pull request lingers at the broker when there is nothing to read."""
PAUSE = 0.25
"""Seconds to wait after an error, so that a broker that is away costs no processor time."""
INACTIVE_THRESHOLD = 60.0
"""Seconds after which the broker forgets a reader that has gone."""


class Reader:
    """Follows `subjects` of a stream. Survives the broker: after any error it begins again where it was.

    `before` is awaited each time it begins; what it raises as a NatsError keeps it from beginning, until it no longer does.
    """

    def __init__(
        self,
        js: Callable[[], JetStreamContext],
        stream: str,
        subjects: Sequence[str],
        name: str,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.jetstream = js
        self._before = before
        self._stream = stream
        self._subjects = list(subjects)
        self._name = name
        self._moved = asyncio.Event()

    def again(self) -> None:
        """Begin again at the present position: after a reconnect, when the lingering request may be lost."""
        self._moved.set()

    async def after(self, position: Callable[[], int]) -> AsyncGenerator[list[Msg], None]:
        """Yield batches in stream order, from the sequence after `position()` on, for ever."""
        while True:
            async for batch in self._follow(lambda: _from(position())):
                yield batch

    async def present_and_after(self) -> AsyncGenerator[list[Msg], None]:
        """Yield the last message of every subject, then every later one; again from the present after an error."""
        while True:
            async for batch in self._follow(lambda: ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT)):
                yield batch

    async def _follow(self, configured: Callable[[], ConsumerConfig]) -> AsyncGenerator[list[Msg], None]:
        self._moved.clear()
        try:
            if self._before:
                await self._before()
            config = configured()
            config.ack_policy = AckPolicy.NONE
            config.filter_subjects = self._subjects
            config.inactive_threshold = INACTIVE_THRESHOLD
            config.mem_storage = True
            subscription = await self.jetstream().pull_subscribe(self._subjects[0], stream=self._stream, config=config)
            delivered = 0
            try:
                while not self._moved.is_set():
                    try:
                        batch = await self._fetch(subscription)
                    except TimeoutError:
                        continue
                    # A request that the broker ends early gives an empty batch.
                    if batch:
                        delivered = _in_a_row(batch, delivered)
                        yield batch
            finally:
                # Without a connection there is nothing to unsubscribe from; a cancellation must not be lost over it.
                with suppress(NatsError):
                    await subscription.unsubscribe()
        except (NatsError, APIError, OSError) as error:
            telemetry.READ_ERRORS.labels(self._name).inc()
            logger.warning("reading %s for %s failed, trying again: %r", self._stream, self._name, error)
            await asyncio.sleep(PAUSE)

    async def _fetch(self, subscription: JetStreamContext.PullSubscription) -> list[Msg]:
        """Fetch what there is, waiting for the first message, but give up as soon as `again` is called."""
        fetching = asyncio.ensure_future(_what_there_is(subscription))
        moved = asyncio.ensure_future(self._moved.wait())
        try:
            await asyncio.wait((fetching, moved), return_when=asyncio.FIRST_COMPLETED)
            if fetching.done():
                return fetching.result()
            raise TimeoutError
        finally:
            moved.cancel()
            fetching.cancel()


def _from(position: int) -> ConsumerConfig:
    return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=position + 1)


async def _what_there_is(subscription: JetStreamContext.PullSubscription) -> list[Msg]:
    # A request for more than there is would now and then be kept open until it expires (nats-py 2.16): ask for the first,
    # which tells how many are behind it.
    [first] = await subscription.fetch(1, timeout=EXPIRES)
    like_it = BATCH_BYTES // max(len(first.data), 1)
    behind = min(first.metadata.num_pending, BATCH - 1, like_it)
    return [first, *(await subscription.fetch(behind, timeout=EXPIRES))] if behind else [first]


def _in_a_row(batch: Sequence[Msg], delivered: int) -> int:
    """Return how many messages were delivered so far. Raises NatsError when one was lost on the way."""
    for msg in batch:
        delivered += 1
        if msg.metadata.sequence.consumer != delivered:
            raise NatsError(f"delivery {msg.metadata.sequence.consumer} came where {delivered} was due")
    return delivered

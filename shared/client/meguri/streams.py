"""Reads streams of the broker: up to the present, or on for ever."""

import base64
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig
from nats.js.errors import APIError, NotFoundError

from meguri.client import ONCE, MeguriClientError, Unreachable, broker
from meguri_contracts.topology import CONSUMERS, FULL, MAKE_ROOM, Consumer

PATIENCE = 10.0
"""Seconds to wait for an answer of the broker, or for a message that it has."""


class BrokerRefused(MeguriClientError):
    """The broker answers, and will not do as asked."""


class _Client(Client):  # type: ignore[misc] # nats-py has no types
    """Delivers what any sender can put into a stream; of itself two kinds of message would end all reading."""

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        # A header of this name is taken for the broker's word, and the message skipped.
        if headers and reply.startswith(b"$JS.ACK."):
            headers.pop("Status", None)
        # A subject that is no UTF-8 ends the loop that reads from the connection.
        return super()._build_message(sid, subject.decode(errors="replace").encode(), reply, data, headers)


@asynccontextmanager
async def connected(*, for_ever: bool = False) -> AsyncIterator[JetStreamContext]:
    """A connection to the broker, which is taken up again `for_ever` if asked for. Raises Unreachable, BrokerRefused."""
    client = _Client()
    tries = {"max_reconnect_attempts": -1} if for_ever else ONCE
    try:
        await client.connect(broker().split(","), connect_timeout=5, error_cb=_passed_over, **tries)
        try:
            yield client.jetstream(timeout=PATIENCE)
        finally:
            await client.close()
    except NotFoundError as error:
        what = f"{error.description}: run `meguri provision`, or `meguri restore-log` if the log was lost"
        raise BrokerRefused(f"the broker at {broker()}: {what}") from error
    except APIError as error:
        what = f"{error.description}{f': {MAKE_ROOM}' if error.err_code in FULL else ''}"
        raise BrokerRefused(f"the broker at {broker()}: {what}") from error
    except (NatsError, OSError, TimeoutError) as error:
        raise Unreachable(f"the broker at {broker()} does not answer: {error or type(error).__name__}") from error


async def messages(
    js: JetStreamContext, stream: str, subject: str, config: ConsumerConfig, *, for_ever: bool = False
) -> AsyncGenerator[Msg, None]:
    """Yield the messages of a stream in its order: those that it has, or `for_ever` also every later one."""
    subscription = await js.subscribe(subject, stream=stream, ordered_consumer=True, config=config)
    try:
        if for_ever:
            async for message in subscription.messages:
                yield message
        info = await subscription.consumer_info()
        for _ in range(info.num_pending + info.delivered.consumer_seq):
            yield await subscription.next_msg(timeout=PATIENCE)
    finally:
        # Without a connection there is nothing to unsubscribe from.
        with suppress(NatsError):
            await subscription.unsubscribe()


@dataclass(frozen=True)
class Stored:
    """A message as a stream keeps it."""

    subject: str
    sequence: int
    time: datetime
    headers: dict[str, str]
    body: bytes


async def stored(
    js: JetStreamContext, stream: str, *, sequence: int | None = None, subject: str | None = None
) -> Stored | None:
    """Return the message at a sequence, or the last one of a subject; None if the stream has none."""
    try:
        found = await js.get_msg(stream, sequence, subject=subject)
    except NotFoundError:
        return None
    return Stored(found.subject, found.seq, found.time, _headers(found.hdrs), found.data or b"")


def _headers(block: str | None) -> dict[str, str]:
    # The client's own reading gives no text for a header with other than ASCII in it (nats-py 2.16).
    lines = base64.b64decode(block or "").decode(errors="replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def lag() -> list[dict[str, Any]]:
    """Return for each durable consumer what it has still to hear, has in hand, and has in hand again after a failure."""
    async with connected() as js:
        return [await _lag(js, consumer) for consumer in CONSUMERS]


async def _lag(js: JetStreamContext, consumer: Consumer) -> dict[str, Any]:
    try:
        info = await js.consumer_info(consumer.stream, consumer.name)
    except NotFoundError:
        return {"consumer": consumer.name, "missing": True}
    return {
        "consumer": consumer.name,
        "missing": False,
        "waiting": info.num_pending,
        "in_hand": info.num_ack_pending,
        "again": info.num_redelivered,
    }


async def _passed_over(error: Exception) -> None:
    """What matters is raised where it is waited for; the rest the client puts right by itself."""

"""Dead letters: what no consumer could handle is kept with the reason, once, and said, so that somebody puts it right.

`meguri dead` lists them, `meguri redrive` sends one back: it appends the message to its stream again and marks the letter.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import unquote

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from meguri_chassis import telemetry
from meguri_chassis.log import EventLog, Message, MovedOn, ce_value, publish
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import MessageParked
from meguri_contracts.names import derived_id
from meguri_contracts.topology import CONSUMERS, DEAD, LOG, MONITORING_ADVISORIES, dead_subject

logger = logging.getLogger(__name__)

HEADERS, HEADER_BYTES, BODY_BYTES = 100, 4096, 4 * 1024 * 1024
"""Headers of a message, bytes of each, and bytes of its body that a dead letter keeps; its stream has it whole."""
REASON_LENGTH = 2000
EXPIRES = 5.0
"""Seconds that a request for advisories lingers."""
PAUSE = 1.0
"""Seconds after an error before advisories are asked for again."""


@dataclass(frozen=True)
class Undeliverable:
    """A message of any stream as it was found."""

    stream: str
    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    deliveries: int

    @classmethod
    def of(cls, msg: Msg) -> Self:
        metadata = msg.metadata
        return cls(
            metadata.stream,
            metadata.sequence.stream,
            msg.subject,
            msg.headers or {},
            msg.data,
            metadata.num_delivered or 1,
        )


class DeadLetters:
    """Parks messages of this service's consumers."""

    def __init__(self, js: Callable[[], JetStreamContext], log: EventLog) -> None:
        self._js = js
        self._log = log

    async def park(self, consumer: str, message: Undeliverable, why: Exception | str) -> None:
        """Keep a message as a dead letter of `consumer` and say so in the log; both once. Raises LogUnavailable."""
        reason = (why if isinstance(why, str) else f"{type(why).__name__}: {why}")[:REASON_LENGTH]
        event, producer, journey = await asyncio.to_thread(_attributes, message)
        headers = _kept(message) | {
            "Nats-Msg-Id": f"{consumer}:{message.stream}:{message.sequence}",
            # One letter for each message, however often it is tried and whenever.
            "Nats-Expected-Last-Subject-Sequence": "0",
            "meguri-consumer": consumer,
            "meguri-stream": message.stream,
            "meguri-sequence": str(message.sequence),
            "meguri-subject": ce_value(message.subject),
            "meguri-deliveries": str(message.deliveries),
            "meguri-event": ce_value(event),
            "meguri-producer": ce_value(producer),
            "meguri-reason": ce_value(reason),
        }
        if len(message.body) > BODY_BYTES:
            headers["meguri-cut"] = f"the first {BODY_BYTES} of {len(message.body)} bytes"
        subject = dead_subject(consumer, message.stream, message.sequence)
        try:
            await publish(self._js(), DEAD, subject, message.body[:BODY_BYTES], headers)
        except MovedOn:
            logger.info("message %d of %s was parked before", message.sequence, message.stream)
        else:
            telemetry.PARKED.labels(consumer).inc()
        logger.error("message %d on %s parked: %s", message.sequence, message.subject, reason)
        parked = MessageParked(
            consumer=consumer,
            stream=message.stream,
            sequence=message.sequence,
            subject=_clean(message.subject),
            event=event,
            producer=producer,
            deliveries=message.deliveries,
            reason=_clean(reason),
        )
        id_ = derived_id(message.stream, str(message.sequence), parked.type, consumer)
        await self._log.append(parked, id=id_, cause=event, journey=journey, hops=1)

    async def follow_advisories(self) -> None:
        """Park what the broker itself gives up on, whoever's consumer it was; for ever."""
        while True:
            try:
                js = self._js()
                advisories = await js.pull_subscribe_bind(
                    MONITORING_ADVISORIES.name, stream=MONITORING_ADVISORIES.stream
                )
                try:
                    while True:
                        try:
                            [advisory] = await advisories.fetch(1, timeout=EXPIRES)
                        except TimeoutError:
                            continue
                        await self._park_given_up(js, advisory)
                        await advisory.ack()
                finally:
                    await advisories.unsubscribe()
            except (NatsError, APIError, OSError, TemporaryError, ValueError) as error:
                logger.warning("advisories of the broker cannot be read, trying again: %r", error)
                await asyncio.sleep(PAUSE)

    async def _park_given_up(self, js: JetStreamContext, advisory: Msg) -> None:
        try:
            said: dict[str, Any] = json.loads(advisory.data)
            stream, consumer, sequence = said["stream"], said["consumer"], int(said["stream_seq"])
        except (ValueError, KeyError, TypeError):
            logger.exception("an advisory cannot be read and is passed over: %s", advisory.data[:500])
            return
        if not any((one.stream, one.name) == (stream, consumer) for one in CONSUMERS):
            logger.warning(
                "the broker gave up on message %s of %s for %s, which is not ours", sequence, stream, consumer
            )
            return
        try:
            lost = await js.get_msg(stream, sequence)
        except NotFoundError:
            logger.error("the broker gave up on message %s of %s, which is no longer kept", sequence, stream)
            return
        reason = f"the broker gave up: {said.get('reason') or 'delivered too often'}"
        found = Undeliverable(
            stream, sequence, lost.subject or "", lost.headers or {}, lost.data or b"", int(said.get("deliveries", 0))
        )
        await self.park(consumer, found, reason)


def _kept(message: Undeliverable) -> dict[str, str]:
    # What is added must not make the letter larger than the broker takes.
    kept = {name: value for name, value in message.headers.items() if len(value) <= HEADER_BYTES}
    return {name: value for name, value in list(kept.items())[:HEADERS] if not name.startswith("Nats-")}


def _attributes(message: Undeliverable) -> tuple[str, str, str]:
    """Id, producer and journey: of an event as it says, of any other message by its place."""
    if message.stream != LOG:
        id_ = unquote(message.headers.get("Nats-Msg-Id", "")) or f"{message.stream.lower()}-{message.sequence}"
        return _clean(id_), "unknown", id_
    read = Message.of(message.subject, message.headers, message.body, message.sequence, datetime.now(UTC))
    return read.id, read.source, read.journey


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")

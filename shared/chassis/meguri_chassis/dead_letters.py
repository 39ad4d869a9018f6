"""Dead letters: what no consumer could handle is kept with the reason, once, and said, so that somebody puts it right.

`meguri dead` lists them, `meguri redrive` sends one back: it appends the message to its stream again and marks the letter.
"""

import asyncio
import base64
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import unquote

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import APIError, NotFoundError

from meguri_chassis import telemetry
from meguri_chassis.log import EventLog, LogUnavailable, Message, MovedOn, ce_value, publish
from meguri_contracts.errors import PermanentError, TemporaryError
from meguri_contracts.events import MessageParked
from meguri_contracts.names import derived_id
from meguri_contracts.topology import CONSUMERS, DEAD, LOG, MONITORING_ADVISORIES, dead_subject, subject

logger = logging.getLogger(__name__)

HEADERS, HEADER_BYTES, BODY_BYTES = 100, 4096, 4 * 1024 * 1024
"""Headers of a message, bytes of each, and bytes of its body that a dead letter keeps; its stream has it whole."""
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""Names that the client sends; it reads others, too."""
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


@dataclass(frozen=True)
class GivenUp:
    """A message that the broker delivers no more, as its advisory says."""

    stream: str
    consumer: str
    sequence: int
    deliveries: int
    reason: str

    def __str__(self) -> str:
        return f"the broker gave up on message {self.sequence} of {self.stream}"

    @classmethod
    def read(cls, advisory: bytes) -> Self | None:
        """None if it cannot be read: anybody may publish there."""
        try:
            said: dict[str, Any] = json.loads(advisory)
            sequence, deliveries = int(said["stream_seq"]), int(said.get("deliveries", 0))
            if not 0 < sequence < 1 << 63:
                raise ValueError(f"there is no message {sequence}")
            reason = str(said.get("reason") or "delivered too often")
            return cls(str(said["stream"]), str(said["consumer"]), sequence, deliveries, reason)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("an advisory cannot be read and is passed over: %r: %s", error, advisory[:500])
            return None


class DeadLetters:
    """Parks messages of this service's consumers."""

    def __init__(self, js: Callable[[], JetStreamContext], log: EventLog) -> None:
        self._js = js
        self._log = log

    async def park(self, consumer: str, message: Undeliverable, why: Exception | str) -> None:
        """Keep a message as a dead letter of `consumer` and say so in the log; both once. Raises LogUnavailable."""
        reason = _clean(why if isinstance(why, str) else f"{type(why).__name__}: {why}")[:REASON_LENGTH]
        event, producer, journey = await asyncio.to_thread(_attributes, message)
        parked = MessageParked(
            consumer=consumer,
            stream=message.stream,
            sequence=message.sequence,
            subject=_clean(message.subject),
            event=event,
            producer=producer,
            deliveries=message.deliveries,
            reason=reason,
        )
        id_ = derived_id(message.stream, str(message.sequence), parked.type, consumer)
        if await self._keep(parked, message):
            telemetry.PARKED.labels(consumer).inc()
            logger.error("message %d on %s parked: %s", message.sequence, message.subject, reason)
        elif await self._was_said(parked, id_):
            logger.info("message %d of %s was parked before", message.sequence, message.stream)
            return
        await self._log.append(parked, id=id_, cause=event, journey=journey, hops=1)

    async def _keep(self, parked: MessageParked, message: Undeliverable) -> bool:
        """Write the letter; return whether there was none before."""
        headers = _kept(message) | {
            "Nats-Msg-Id": f"{parked.consumer}:{message.stream}:{message.sequence}",
            # One letter for each message, however often it is tried and whenever.
            "Nats-Expected-Last-Subject-Sequence": "0",
            "meguri-consumer": parked.consumer,
            "meguri-stream": message.stream,
            "meguri-sequence": str(message.sequence),
            "meguri-subject": ce_value(message.subject),
            "meguri-deliveries": str(message.deliveries),
            "meguri-event": ce_value(parked.event),
            "meguri-producer": ce_value(parked.producer),
            "meguri-reason": ce_value(parked.reason),
            "meguri-log": str(await self._log.last_sequence()),
        }
        if message.stream == LOG and not await asyncio.to_thread(_can_be_read, message):
            headers["meguri-unread"] = "yes"
        if len(message.body) > BODY_BYTES:
            headers["meguri-cut"] = f"the first {BODY_BYTES} of {len(message.body)} bytes"
        letter = dead_subject(parked.consumer, message.stream, message.sequence)
        try:
            ack = await publish(self._js(), DEAD, letter, message.body[:BODY_BYTES], headers)
        except MovedOn:
            return False
        return not ack.duplicate

    async def _was_said(self, parked: MessageParked, id: str) -> bool:
        """Whether the event about a letter is in the log: it is not, if whoever wrote the letter died in between."""
        js = self._js()
        said = subject(parked.kind(), parked.consumer)
        try:
            letter = await js.get_last_msg(DEAD, dead_subject(parked.consumer, parked.stream, parked.sequence))
            after = int((letter.headers or {}).get("meguri-log", "0"))
            while True:
                found = await js.get_msg(LOG, after + 1, subject=said, next=True)
                if (found.headers or {}).get("ce-id") == id:
                    return True
                after = found.seq or after + 1
        except NotFoundError:
            return False
        except (NatsError, APIError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"the log does not answer: {error!r}") from error

    async def follow_advisories(self) -> None:
        """Park what the broker itself gives up on, whoever's consumer it was; for ever."""
        while True:
            try:
                await self._follow(self._js())
            except (NatsError, APIError, OSError, TemporaryError) as error:
                logger.warning("advisories of the broker cannot be followed, trying again: %r", error)
                await asyncio.sleep(PAUSE)

    async def _follow(self, js: JetStreamContext) -> None:
        stream, durable = MONITORING_ADVISORIES.stream, MONITORING_ADVISORIES.name
        advisories = await js.pull_subscribe_bind(durable, stream=stream)
        try:
            while True:
                try:
                    batch = await advisories.fetch(1, timeout=EXPIRES)
                except TimeoutError:
                    continue
                # A request that the broker ends early gives an empty batch.
                for advisory in batch:
                    if given_up := GivenUp.read(advisory.data):
                        await self._park_given_up(js, given_up)
                    await advisory.ack()
        finally:
            # Without a connection there is nothing to unsubscribe from.
            with suppress(NatsError):
                await advisories.unsubscribe()

    async def _park_given_up(self, js: JetStreamContext, lost: GivenUp) -> None:
        if not any((one.stream, one.name) == (lost.stream, lost.consumer) for one in CONSUMERS):
            logger.warning("%s for %s, which is not ours", lost, lost.consumer)
            return
        try:
            kept = await js.get_msg(lost.stream, lost.sequence)
        except NotFoundError:
            logger.error("%s for %s, which is no longer kept", lost, lost.consumer)
            return
        found = Undeliverable(
            lost.stream, lost.sequence, kept.subject or "", _headers(kept), kept.data or b"", lost.deliveries
        )
        await self.park(lost.consumer, found, f"the broker gave up: {lost.reason}")


def _headers(kept: RawStreamMsg) -> dict[str, str]:
    # The client's own reading gives no text for a header with other than ASCII in it (nats-py 2.16).
    _, _, lines = base64.b64decode(kept.hdrs or "").partition(b"\r\n")
    return Client._parse_header_lines(lines)


def _kept(message: Undeliverable) -> dict[str, str]:
    # What is added must not make the letter larger than the broker takes; and what only this platform says, no sender may.
    kept = {
        name: value
        for name, value in message.headers.items()
        if _HEADER_NAME.fullmatch(name)
        and not name.startswith(("Nats-", "meguri-"))
        and len(name) + len(value.encode(errors="replace")) <= HEADER_BYTES
    }
    return dict(list(kept.items())[:HEADERS])


def _attributes(message: Undeliverable) -> tuple[str, str, str]:
    """Id, producer and journey: of an event as it says, of any other message by its place."""
    if message.stream != LOG:
        id_ = unquote(message.headers.get("Nats-Msg-Id", "")) or f"{message.stream.lower()}-{message.sequence}"
        return _clean(id_), "unknown", id_
    read = _as_message(message)
    return read.id, read.source, read.journey


def _can_be_read(message: Undeliverable) -> bool:
    try:
        return bool(_as_message(message).event)
    except PermanentError:
        return False


def _as_message(message: Undeliverable) -> Message:
    return Message.of(message.subject, message.headers, message.body, message.sequence, datetime.now(UTC))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")

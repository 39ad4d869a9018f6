"""The event log: how events stand on the wire (CloudEvents 1.0 over NATS) and how they are appended.

Binary mode is written; binary, structured and bare JSON are read (CloudEvents NATS protocol binding).
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self
from urllib.parse import quote, unquote
from uuid import uuid4

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import PubAck
from nats.js.errors import APIError
from opentelemetry import propagate
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from meguri_chassis import telemetry
from meguri_contracts.errors import Invalid, Malformed, Newer, TemporaryError, TooLarge
from meguri_contracts.events import BY_KIND, BY_TYPE, Event
from meguri_contracts.names import MAX_ID_LENGTH, NAME_PATTERN, derived_id, is_name
from meguri_contracts.topology import (
    EVENT_PREFIX,
    FORMER_TRACE,
    FULL,
    LOG,
    MAKE_ROOM,
    MAX_INLINE_BYTES,
    STORED,
    key_subjects,
    subject,
)

logger = logging.getLogger(__name__)

_PLAIN = {"extra_forbidden": "there is no such field"}
"""By type of error: plainer words than those of pydantic."""
APPEND_TIMEOUT = 5.0
"""Seconds to wait for the broker's word that an event is on disk."""
APPEND_PATIENCE = 30.0
"""Seconds over which an append is tried again, with the same id, before it is given up as a TemporaryError."""
WRONG_LAST_SEQUENCE = 10071
"""The broker's error code for an append that expected another last sequence."""
WRONG_LAST_ID = 10070
"""The broker's error code for an append that expected another last message id."""
_CE_SAFE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class LogUnavailable(TemporaryError):
    """The log took no append for a while."""


class LogFull(LogUnavailable):
    """The log has reached the limit of its stream or of its disk."""


class MovedOn(TemporaryError):
    """The key has events newer than the state that was decided on: decide again."""


_build_message = Client._build_message


def _build_any_message(
    client: Client, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
) -> Msg:
    """Let the client deliver what any sender can put into the log; of itself two kinds of message would stop every reader."""
    # A header of this name is taken for the broker's word, and the message skipped.
    if headers and reply.startswith(b"$JS.ACK."):
        headers.pop("Status", None)
    # A subject that is no UTF-8 ends the loop that reads from the connection.
    return _build_message(client, sid, subject.decode(errors="replace").encode(), reply, data, headers)


Client._build_message = _build_any_message


@dataclass(frozen=True)
class Message:
    """One message of the log as it was read: attributes first, the event when asked for."""

    sequence: int
    kind: str
    key: str
    id: str
    source: str
    time: datetime
    journey: str
    hops: int
    """How many reactions lie between this and what came from outside."""
    headers: Mapping[str, str]
    body: bytes
    deliveries: int = 1
    cause: str = ""
    """Id of the event that this is a reaction to, if the sender said so."""

    @classmethod
    def read(cls, msg: Msg) -> Self:
        """Read the attributes off a JetStream message. What is missing is filled in, so this never fails."""
        metadata = msg.metadata
        return cls.of(
            msg.subject,
            msg.headers or {},
            msg.data,
            metadata.sequence.stream,
            metadata.timestamp,
            metadata.num_delivered,
        )

    @classmethod
    def of(
        cls, subject: str, headers: Mapping[str, str], body: bytes, sequence: int, time: datetime, deliveries: int = 1
    ) -> Self:
        kind, _, key = subject.removeprefix(f"{EVENT_PREFIX}.").partition(".")
        attributes = _attributes(headers, body)
        id_ = attributes.get("id") or _storable(headers.get("Nats-Msg-Id", "")) or _filled_in_id(sequence)
        if len(id_) > MAX_ID_LENGTH:
            id_ = derived_id(id_)
        return cls(
            sequence=sequence,
            kind=kind,
            key=key,
            id=id_,
            source=attributes.get("source") or _producer(body) or "unknown",
            time=_time(attributes.get("time")) or _time(headers.get(STORED)) or time,
            journey=attributes.get("journeyid") or id_,
            hops=_hops(attributes.get("hops")),
            headers=headers,
            body=body,
            deliveries=deliveries,
            cause=attributes.get("causeid", ""),
        )

    @property
    def has_own_id(self) -> bool:
        """Whether the sender gave the event its id."""
        return self.id != _filled_in_id(self.sequence)

    @cached_property
    def event(self) -> Event:
        """The event. Raises Malformed or TooLarge with the reason."""
        if not is_name(self.key):
            raise Malformed(f"the subject ends in {self.key!r}, which is no name: it must match {NAME_PATTERN}")
        expected = BY_KIND.get(self.kind)
        if expected is None:
            raise Malformed(f"{self.kind!r} is no kind of event; known are {', '.join(sorted(BY_KIND))}")
        _check_size(self.body)
        stated = _attributes(self.headers, self.body).get("type")
        if stated and BY_TYPE.get(stated) is not expected:
            wrong = f"type {stated!r} is not known for subject {self.kind!r}; expected {expected.type!r}"
            raise (
                Newer(f"{wrong}: a newer version of meguri said it")
                if _is_newer(stated, expected)
                else Malformed(wrong)
            )
        return _event(expected, self.key, self.body)

    def age(self) -> float:
        """Seconds since the event was said."""
        return (datetime.now(UTC) - self.time).total_seconds()

    @property
    def context(self) -> dict[str, str]:
        """The W3C trace context that came with the message, and the one that it had before it was sent back."""
        names = ("traceparent", "tracestate", FORMER_TRACE)
        return {name: self.headers[name] for name in names if name in self.headers}


def _as_bytes(event: Event) -> bytes:
    try:
        return event.model_dump_json().encode()
    except PydanticSerializationError as error:
        raise Invalid(f"the event cannot be written: {error}") from error


def _check_size(body: bytes) -> None:
    if len(body) > MAX_INLINE_BYTES:
        raise TooLarge(
            f"the event has {len(body):,} bytes, at most {MAX_INLINE_BYTES:,} are allowed: "
            "put the rows into a file and send its uri"
        )


def _filled_in_id(sequence: int) -> str:
    return f"{LOG.lower()}-{sequence}"


def _event(expected: type[Event], key: str, body: bytes) -> Event:
    data = _json_object(body)
    if "specversion" in data:
        if not isinstance(data.get("data"), dict):
            raise Malformed("the structured CloudEvent has no object in 'data'")
        data = data["data"]
    if data.setdefault(expected.key_field, key) != key:
        raise Malformed(f"{expected.key_field} is {data[expected.key_field]!r} in the body but {key!r} in the subject")
    try:
        return expected.model_validate(data)
    except ValidationError as error:
        raise Malformed(explain(error)) from error


def explain(error: ValidationError, whole: str = "body: ") -> str:
    """Say in a line which fields break which rules; the first five. `whole` begins what is about no field alone."""
    found = error.errors(include_url=False, include_context=False)
    plain = [_PLAIN.get(e["type"], e["msg"].removeprefix("Value error, ")) for e in found]
    places = [".".join(map(str, e["loc"])) for e in found]
    said = [f"{place}: {text}" if place else f"{whole}{text}" for place, text in zip(places, plain, strict=True)]
    return "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "")


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise Malformed(f"the body is a JSON {type(data).__name__}, an object is expected")
    return data


def _attributes(headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """CloudEvents attributes, from the headers (binary) or from the body (structured)."""
    binary = {
        name.lower()[3:]: _storable(unquote(value))
        for name, value in headers.items()
        if name.lower().startswith("ce-") and value
    }
    if binary or len(body) > MAX_INLINE_BYTES:
        return binary
    if b'"specversion"' in body:
        try:
            return {name: _storable(value) for name, value in _json_object(body).items() if isinstance(value, str)}
        except Malformed:
            return {}
    return {}


def _producer(body: bytes) -> str | None:
    if b'"producer"' not in body or len(body) > MAX_INLINE_BYTES:
        return None
    try:
        producer = _json_object(body).get("producer")
    except Malformed:
        return None
    return _storable(producer) if isinstance(producer, str) else None


def _storable(text: str) -> str:
    """Replace what no database takes, lone surrogates and NUL: an attribute may be odd, but must not stop a projection."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
        # In UTC, because SQLite forgets the zone.
        return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


def _hops(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 9 else 0


def _is_newer(stated: str, expected: type[Event]) -> bool:
    known, _, version = expected.type.rpartition(".v")
    name, _, number = stated.rpartition(".v")
    return name == known and number.isascii() and number.isdigit() and int(number[:9]) > int(version)


class EventLog:
    """Appends to the log, and knows how: PubAck, same id on every try, trace context of the moment."""

    def __init__(self, js: Callable[[], JetStreamContext], source: str) -> None:
        self._js = js
        self._source = source
        self.closed: Callable[[], str | None] = lambda: None
        """Why nothing may be appended at the moment, in words for an operator; None while all is well."""
        self.full: str | None = None
        """Why the last append was refused for want of room, in words for an operator; None once there is room."""

    async def append(
        self,
        event: Event,
        *,
        id: str,
        cause: str,
        journey: str,
        hops: int = 0,
        causes: Sequence[Mapping[str, str]] = (),
        expected: int | None = None,
        source: str | None = None,
    ) -> int:
        """Append an event and return its stream sequence, once it is on disk.

        `source` is who says so, this service if not given. `causes` are trace contexts to link to. `expected` is the last
        sequence that the event's key may have; MovedOn is raised if it has a later one. An id that was appended before is
        not appended again; its sequence is returned. Raises TooLarge or Invalid for what no reader would take, LogUnavailable.
        """
        if why := self.closed():
            raise LogUnavailable(why)
        body = _as_bytes(event)
        _check_size(body)
        with telemetry.publishing(event, id=id, cause=cause, journey=journey, causes=causes) as (span, own_journey):
            headers = ce_headers(event, id=id, source=source or self._source, time=datetime.now(UTC))
            headers |= {"ce-journeyid": ce_value(own_journey), "ce-causeid": ce_value(cause)}
            if hops > 0:
                headers["ce-hops"] = str(hops)
            if expected is not None:
                headers["Nats-Expected-Last-Subject-Sequence"] = str(expected)
                headers["Nats-Expected-Last-Subject-Sequence-Subject"] = key_subjects(event.key)
            propagate.inject(headers)
            ack = await self._publish(subject(event.kind(), event.key), body, headers)
            span.set_attribute("nats.stream.sequence", ack.seq)
        telemetry.APPENDED.labels(event.kind()).inc()
        return int(ack.seq)

    async def last_sequence(self) -> int:
        """Return the sequence of the last event of the log, 0 when it is empty."""
        try:
            return int((await self._js().stream_info(LOG)).state.last_seq)
        except (NatsError, APIError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"the log does not answer: {error!r}") from error

    async def keys(self, kind: str) -> set[str]:
        """Return the keys that the log has events of a kind for."""
        try:
            info = await self._js().stream_info(LOG, subjects_filter=subject(kind, "*"))
        except (NatsError, APIError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"the log does not answer: {error!r}") from error
        return {name.rpartition(".")[2] for name in info.state.subjects or {}}

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> PubAck:
        try:
            ack = await publish(self._js(), LOG, subject, body, headers)
        except LogFull as error:
            self.full = str(error)
            raise
        self.full = None
        return ack


def ce_headers(event: Event, *, id: str, source: str, time: datetime) -> dict[str, str]:
    """The CloudEvents attributes of an event as NATS headers (binary mode), with the id that the broker deduplicates by."""
    return {
        "Nats-Msg-Id": ce_value(id),
        "ce-id": ce_value(id),
        "ce-source": ce_value(source),
        "ce-specversion": "1.0",
        "ce-type": event.type,
        "ce-subject": ce_value(event.key),
        "ce-time": time.isoformat().replace("+00:00", "Z"),
        "ce-datacontenttype": "application/json",
        "content-type": "application/json",
    }


def ce_value(value: str) -> str:
    """Percent-encode a header value as the CloudEvents NATS binding asks."""
    return quote(value, safe=_CE_SAFE)


def _unless_new(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers that get the sequence of a message whose id the broker knows, and append nothing if it does not."""
    unexpecting = {name: value for name, value in headers.items() if not name.startswith("Nats-Expected-")}
    return unexpecting | {"Nats-Expected-Last-Msg-Id": str(uuid4())}


async def publish(
    js: JetStreamContext, stream: str, subject: str, body: bytes, headers: dict[str, str] | None
) -> PubAck:
    """Publish until the broker says that it is on disk, always with the same headers and so the same id.

    Raises MovedOn when the expected last sequence is not the last one, LogUnavailable after APPEND_PATIENCE seconds.
    """
    patience, pause = asyncio.get_running_loop().time() + APPEND_PATIENCE, 0.05
    while True:
        try:
            return await js.publish(subject, body, timeout=APPEND_TIMEOUT, stream=stream, headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE and headers:
                # The broker looks at the sequence first; the later event may be this one, whose answer was lost.
                headers = _unless_new(headers)
                continue
            if error.err_code == WRONG_LAST_ID:
                raise MovedOn(f"{subject}: the key has a later event than the decision rests on") from error
            if error.err_code in FULL:
                raise LogFull(
                    f"{stream} is full, the event was not accepted: {error.description}; {MAKE_ROOM}"
                ) from error
            reason: Exception = error
        except (NatsError, OSError, TimeoutError) as error:
            # The publish may still have arrived; the same id makes the next try harmless.
            reason = error
        if asyncio.get_running_loop().time() > patience:
            raise LogUnavailable(f"no append to {stream} for {APPEND_PATIENCE:.0f} s: {reason!r}") from reason
        logger.warning("append to %s failed, trying again: %r", stream, reason)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 2.0)

"""Messages read out of a stream and put into another one, verbatim and at the sequences that they had.

A stream that is being filled is closed to everyone else: it listens on a subject of its own, which the broker turns into the
messages' true subjects. Provisioning opens it.
"""

import asyncio
import base64
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import nats
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig, StreamInfo, SubjectTransform
from nats.js.errors import NotFoundError
from nats.protocol.command import hpub_cmd, pub_cmd

from meguri.client import MeguriClientError, broker
from meguri.provisioning import BrokerAway
from meguri_contracts.topology import EVENT_PREFIX, STORED

TIMEOUT = 30.0
"""Seconds to wait for the broker's answer."""
READ_AT_ONCE = 32
MESSAGES_IN_FLIGHT, BYTES_IN_FLIGHT = 1000, 16 * 1024 * 1024
DUPLICATE_WINDOW = 0.1
"""Seconds, the broker's shortest: two messages of a log may have one id, if enough time lay between them."""
REMEMBERED = 60.0
"""Seconds after which an id that was sent is surely forgotten by the broker."""
_NO_MESSAGE = 10037
"""The broker's error code for a sequence that holds no message."""


class CannotCopy(MeguriClientError):
    """A message did not get the place that it had."""


@dataclass(frozen=True)
class Stored:
    """A message as a stream, a journal or a backup has it. `time` is when the broker first had it, ISO 8601."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    time: str

    def is_as(self, other: Self) -> bool:
        """Whether both are the same message, wherever they stand."""
        return (self.subject, self.body, self.lasting) == (other.subject, other.body, other.lasting)

    @property
    def lasting(self) -> dict[str, str]:
        """The headers that journals keep: without what was for the broker at the append, or added by a restore."""
        passing = ("Nats-Expected-", STORED, "Status")
        return {name: value for name, value in self.headers.items() if not name.startswith(passing)}

    def restorable(self) -> Self:
        """The message as it is sent again: its conditions were met once; its time is said if it does not say it itself."""
        headers = self.lasting
        if self.subject.startswith(EVENT_PREFIX) and not _says_its_time(headers):
            headers[STORED] = self.headers.get(STORED, self.time)
        return replace(self, headers=headers)

    def as_line(self) -> dict[str, Any]:
        return vars(self) | {"headers": dict(self.headers), "body": base64.b64encode(self.body).decode()}

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Self:
        return cls(line["sequence"], line["subject"], line["headers"], base64.b64decode(line["body"]), line["time"])


def _says_its_time(headers: Mapping[str, str]) -> bool:
    said = next((value for name, value in headers.items() if name.lower() == "ce-time"), "")
    try:
        datetime.fromisoformat(said)
    except ValueError:
        return False
    return True


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Client, JetStreamContext]]:
    """A connection to the broker that does not come back once it is lost. Raises BrokerAway for whatever goes wrong with it."""
    try:
        client = await nats.connect(broker().split(","), connect_timeout=5, allow_reconnect=False, error_cb=_is_raised)
        try:
            yield client, client.jetstream(timeout=TIMEOUT)
        finally:
            await client.close()
    except (NatsError, NoServersError, TimeoutError, ConnectionError) as error:
        raise BrokerAway(f"the broker at {broker()} does not do as asked: {error or type(error).__name__}") from error


async def _is_raised(_: Exception) -> None:
    """What the client meets is raised where it is waited for."""


async def info(js: JetStreamContext, stream: str) -> StreamInfo | None:
    try:
        return await js.stream_info(stream)
    except NotFoundError:
        return None


# --- reading ----------------------------------------------------------------------------------------------------------


async def read(client: Client, stream: str, first: int, last: int) -> AsyncIterator[Stored]:
    """Yield the messages from `first` to `last`, both included; where none is, nothing."""
    # An empty stream says that it begins at 0.
    for start in range(max(first, 1), last + 1, READ_AT_ONCE):
        sequences = range(start, min(start + READ_AT_ONCE, last + 1))
        for message in await asyncio.gather(*(_get(client, stream, sequence) for sequence in sequences)):
            if message is not None:
                yield message


async def _get(client: Client, stream: str, sequence: int) -> Stored | None:
    # By the broker's API, not by a consumer: it gives the message as it is, with headers that would deafen the client.
    request = json.dumps({"seq": sequence}).encode()
    answer = json.loads((await client.request(f"$JS.API.STREAM.MSG.GET.{stream}", request, timeout=TIMEOUT)).data)
    if error := answer.get("error"):
        if error["err_code"] == _NO_MESSAGE:
            return None
        raise NatsError(f"message {sequence} of {stream} cannot be read: {error['description']}")
    message = answer["message"]
    _, _, lines = base64.b64decode(message.get("hdrs", "")).partition(b"\r\n")
    headers = Client._parse_header_lines(lines)
    body = base64.b64decode(message.get("data", ""))
    return Stored(sequence, message["subject"], headers, body, _as_journaled(message["time"]))


def _as_journaled(time: str) -> str:
    """The broker's time as the services read it off a delivery: in microseconds, over a floating point number."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    nanoseconds = seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))
    return datetime.fromtimestamp(nanoseconds / 1_000_000_000.0, UTC).isoformat()


# --- writing ----------------------------------------------------------------------------------------------------------


def is_closed(stream: StreamInfo) -> bool:
    """Whether a stream is in the making: its maker has not yet opened it."""
    return stream.config.subjects == [f"{_gate(stream.config.name)}.>"]


async def create_closed(js: JetStreamContext, stream: str, first: int = 1) -> None:
    """Make a stream that only an Appender can fill. Its first message gets the sequence `first`."""
    source = f"{_gate(stream)}.>"
    await js.add_stream(
        StreamConfig(
            name=stream,
            subjects=[source],
            subject_transform=SubjectTransform(src=source, dest=">"),
            storage=StorageType.FILE,
            duplicate_window=DUPLICATE_WINDOW,
            first_seq=first,
        )
    )


def _gate(stream: str | None) -> str:
    return f"restoring.{stream}"


class Appender:
    """Fills a closed stream in order, with many messages in flight; each must get the sequence that it has."""

    def __init__(self, client: Client, stream: str) -> None:
        self._client, self._stream = client, stream
        self._inbox = client.new_inbox()
        self._acks: Subscription
        self._in_flight: deque[tuple[int, int]] = deque()
        """Sequence and bytes of what the broker has not answered yet."""
        self._bytes = 0
        self._sent: dict[str, float] = {}
        """When each id was sent last."""

    async def __aenter__(self) -> Self:
        self._acks = await self._client.subscribe(self._inbox)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.settle()
            await self._acks.unsubscribe()

    async def put(self, message: Stored) -> None:
        """Append a message. Raises CannotCopy when it, or one before it, got another sequence."""
        id_ = message.headers.get("Nats-Msg-Id")
        if id_ and self._was_just_sent(id_):
            await self._put_until_taken(message)
            return
        await self._send(message)
        while len(self._in_flight) >= MESSAGES_IN_FLIGHT or self._bytes > BYTES_IN_FLIGHT:
            self._check(await self._answer())

    async def settle(self) -> None:
        """Return when everything that was put is on disk."""
        while self._in_flight:
            self._check(await self._answer())

    def _was_just_sent(self, id_: str) -> bool:
        now = time.monotonic()
        just = now - self._sent.get(id_, -REMEMBERED) < REMEMBERED
        self._sent.pop(id_, None)
        self._sent[id_] = now
        # Oldest first, as they were put in.
        while self._sent and now - self._sent[oldest := next(iter(self._sent))] > REMEMBERED:
            del self._sent[oldest]
        return just

    async def _put_until_taken(self, message: Stored) -> None:
        await self.settle()
        until = time.monotonic() + REMEMBERED
        while True:
            await self._send(message)
            sequence, ack = await self._answer()
            if not ack.get("duplicate") or time.monotonic() > until:
                self._check((sequence, ack))
                return
            await asyncio.sleep(DUPLICATE_WINDOW)

    async def _send(self, message: Stored) -> None:
        subject = f"{_gate(self._stream)}.{message.subject}"
        headers = _wire(message.headers)
        if len(headers) + len(message.body) > self._client.max_payload:
            # As large as the broker takes: there is no room for its time.
            headers = _wire({name: value for name, value in message.headers.items() if name != STORED})
        # Past the client's own `publish`, which refuses or changes what other clients may send.
        command = (
            hpub_cmd(subject, self._inbox, headers, message.body)
            if headers
            else pub_cmd(subject, self._inbox, message.body)
        )
        await self._client._send_command(command)
        await self._client._flush_pending()
        self._in_flight.append((message.sequence, len(command)))
        self._bytes += len(command)

    async def _answer(self) -> tuple[int, dict[str, Any]]:
        """Return the oldest sequence in flight and what the broker says about it: it answers in order."""
        msg = await self._acks.next_msg(timeout=TIMEOUT)
        sequence, size = self._in_flight.popleft()
        self._bytes -= size
        if not msg.data:
            raise NatsError(f"no stream {self._stream} takes message {sequence}")
        ack = json.loads(msg.data)
        if "error" in ack:
            raise NatsError(f"message {sequence} of {self._stream} was refused: {ack['error']['description']}")
        return sequence, ack

    def _check(self, answer: tuple[int, dict[str, Any]]) -> None:
        sequence, ack = answer
        if ack.get("duplicate") or ack["seq"] != sequence:
            raise CannotCopy(f"message {sequence} of {self._stream} got the sequence {ack['seq']}: run this again")


def _wire(headers: Mapping[str, str]) -> bytes:
    if not headers:
        return b""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode("utf-8", "replace")

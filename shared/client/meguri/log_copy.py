"""Messages as streams, journals and backups have them, read out of a stream; and streams that only their maker fills.

A stream that is being filled is closed to everyone else: it listens on a subject of its own, which the broker turns into the
messages' true subjects. Provisioning opens it.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js import JetStreamContext
from nats.js.api import StorageType, StreamConfig, StreamInfo, SubjectTransform
from nats.js.errors import NotFoundError

from meguri.client import ONCE, broker
from meguri.provisioning import BrokerAway, gate
from meguri_contracts.topology import EVENT_PREFIX, STORED

TIMEOUT = 30.0
"""Seconds to wait for the broker's answer."""
READ_AT_ONCE = 32
DUPLICATE_WINDOW = 0.1
"""Seconds, the broker's shortest: two messages of a log may have one id, if enough time lay between them."""
_NO_MESSAGE = 10037
"""The broker's error code for a sequence that holds no message."""


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
        kept = {name: value for name, value in self.headers.items() if not name.startswith("Nats-Expected-")}
        return {name: value for name, value in kept.items() if name not in (STORED, "Status")}

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
        client = await nats.connect(broker().split(","), connect_timeout=5, error_cb=_is_raised, **ONCE)
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


# --- making -----------------------------------------------------------------------------------------------------------


async def create_closed(js: JetStreamContext, stream: str, first: int = 1) -> None:
    """Make a stream that only an Appender can fill. Its first message gets the sequence `first`."""
    source = f"{gate(stream)}.>"
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

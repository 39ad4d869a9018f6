"""Puts messages into a closed stream, verbatim and at the sequences that they had."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Self

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.protocol.command import hpub_cmd, pub_cmd

from meguri.client import MeguriClientError
from meguri.log_copy import DUPLICATE_WINDOW, TIMEOUT, Stored
from meguri.provisioning import gate
from meguri_contracts.topology import STORED

MESSAGES_IN_FLIGHT, BYTES_IN_FLIGHT = 1000, 16 * 1024 * 1024
REMEMBERED = 60.0
"""Seconds after which an id that was sent is surely forgotten by the broker."""


class CannotCopy(MeguriClientError):
    """A message did not get the place that it had."""


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
        subject = f"{gate(self._stream)}.{message.subject}"
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

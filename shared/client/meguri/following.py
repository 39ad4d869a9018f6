"""Follows the events of the log as they are said."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from meguri.client import broker
from meguri_contracts.topology import EVENT_PREFIX, LOG


@dataclass(frozen=True)
class Seen:
    """An event of the log. `event` is its body, empty when that is no JSON object."""

    sequence: int
    kind: str
    key: str
    id: str
    source: str
    time: datetime
    event: dict[str, Any]


async def follow(kind: str = "*", key: str = ">", *, after: int = 0) -> AsyncIterator[Seen]:
    """Yield the events of a kind and key after a stream sequence, then every one as it is said; for ever."""
    client = await nats.connect(broker().split(","), connect_timeout=5, max_reconnect_attempts=-1, error_cb=_again)
    try:
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1, ack_policy=AckPolicy.NONE
        )
        subject = f"{EVENT_PREFIX}.{kind}.{key}"
        subscription = await client.jetstream().subscribe(subject, stream=LOG, ordered_consumer=True, config=config)
        async for message in subscription.messages:
            yield _seen(message)
    finally:
        await client.close()


async def _again(error: Exception) -> None:
    """The client connects again by itself and the ordered consumer goes on where it was."""


def _seen(message: Any) -> Seen:
    kind, _, key = message.subject.removeprefix(f"{EVENT_PREFIX}.").partition(".")
    headers, metadata = message.headers or {}, message.metadata
    try:
        body = json.loads(message.data)
    except ValueError:
        body = {}
    return Seen(
        sequence=metadata.sequence.stream,
        kind=kind,
        key=key,
        id=unquote(headers.get("ce-id", f"{LOG.lower()}-{metadata.sequence.stream}")),
        source=unquote(headers.get("ce-source", "unknown")),
        time=metadata.timestamp,
        event=body if isinstance(body, dict) else {},
    )

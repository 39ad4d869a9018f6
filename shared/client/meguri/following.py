"""Follows the events of the log as they are said, or reads those that were."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from meguri.streams import connected, messages
from meguri_contracts.topology import EVENT_PREFIX, LOG


@dataclass(frozen=True)
class Seen:
    """An event of the log. `event` is its body, empty when that is no JSON object; `body` is what was sent, whatever it is."""

    sequence: int
    kind: str
    key: str
    id: str
    source: str
    time: datetime
    """When the broker had it."""
    event: dict[str, Any]
    journey: str
    cause: str
    """Id of the event that led to this one; empty for what came from outside."""
    hops: int
    """How many reactions lie between this and what came from outside."""
    trace: str
    body: bytes


async def follow(
    kind: str = "*", key: str = ">", *, after: int = 0, since: datetime | None = None
) -> AsyncGenerator[Seen, None]:
    """Yield the events of a kind and key after a stream sequence or since a time, then every one as it is said; for ever."""
    async with connected(for_ever=True) as js:
        subject = f"{EVENT_PREFIX}.{kind}.{key}"
        async with aclosing(messages(js, LOG, subject, _from(after, since), for_ever=True)) as found:
            async for message in found:
                yield _seen(message)


async def said(
    kind: str = "*", key: str = ">", *, after: int = 0, since: datetime | None = None
) -> AsyncGenerator[Seen, None]:
    """Yield the events of a kind and key after a stream sequence or since a time, up to the present."""
    async with (
        connected() as js,
        aclosing(messages(js, LOG, f"{EVENT_PREFIX}.{kind}.{key}", _from(after, since))) as found,
    ):
        async for message in found:
            yield _seen(message)


def _from(after: int, since: datetime | None) -> ConsumerConfig:
    if since:
        return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_TIME, opt_start_time=since)
    return ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=after + 1)


def _seen(message: Msg) -> Seen:
    kind, _, key = message.subject.removeprefix(f"{EVENT_PREFIX}.").partition(".")
    metadata, headers = message.metadata, message.headers or {}
    body = json_object(message.data)
    attributes = stated(headers, body)
    filled_in = headers.get("Nats-Msg-Id") or f"{LOG.lower()}-{metadata.sequence.stream}"
    id_ = attributes.get("id") or filled_in
    return Seen(
        sequence=metadata.sequence.stream,
        kind=kind,
        key=key,
        id=id_,
        source=attributes.get("source") or str(body.get("producer") or "unknown"),
        time=metadata.timestamp,
        event=body,
        journey=attributes.get("journeyid") or id_,
        cause=attributes.get("causeid", ""),
        hops=int(attributes["hops"]) if attributes.get("hops", "").isdecimal() else 0,
        trace=trace_id(headers),
        body=message.data,
    )


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that a body is; an empty one if it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stated(headers: Mapping[str, str], body: Mapping[str, Any]) -> dict[str, str]:
    """Return the CloudEvents attributes that a sender gave: in headers (binary mode), else in the body (structured mode)."""
    binary = {
        name.lower()[3:]: unquote(value) for name, value in headers.items() if name.lower().startswith("ce-") and value
    }
    if binary or "specversion" not in body:
        return binary
    return {name: value for name, value in body.items() if isinstance(value, str)}


def trace_id(headers: Mapping[str, str]) -> str:
    """Return the id of the trace that a message belongs to; empty if it came without one."""
    parts = headers.get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else ""

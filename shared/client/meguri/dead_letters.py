"""Dead letters: messages that a consumer could not handle, as the stream DEAD keeps them."""

import base64
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from urllib.parse import unquote

from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy

from meguri.client import MeguriClientError
from meguri.following import trace_id
from meguri.streams import messages, stored
from meguri_contracts.names import is_name
from meguri_contracts.topology import DEAD, DEAD_PREFIX, LOG, STREAMS, dead_subject

REDRIVEN, REDRIVEN_BY, PARKED = "meguri-redriven", "meguri-redriven-by", "meguri-parked"
"""Headers of the mark on a letter that was sent back: when, by whom, and when it had been parked."""


class NoLetter(MeguriClientError):
    """There is no dead letter with this id."""


@dataclass(frozen=True)
class Letter:
    """A dead letter as it stands: the message that was parked, or the mark that somebody sent it back."""

    consumer: str
    stream: str
    original: int
    """Sequence of the message in its stream."""
    sequence: int
    """Of the letter, or of its mark, in the stream DEAD."""
    time: datetime
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, subject: str, sequence: int, time: datetime, headers: Mapping[str, str], body: bytes) -> Self:
        consumer, stream, original = subject.removeprefix(f"{DEAD_PREFIX}.").split(".")
        parked = headers.get(PARKED)
        return cls(
            consumer, stream, int(original), sequence, datetime.fromisoformat(parked) if parked else time, headers, body
        )

    @property
    def id(self) -> str:
        return f"{self.consumer}/{'' if self.stream == LOG else f'{self.stream}/'}{self.original}"

    @property
    def subject(self) -> str:
        return dead_subject(self.consumer, self.stream, self.original)

    @property
    def redriven(self) -> str | None:
        """When it was sent back; None if nobody did."""
        return self.headers.get(REDRIVEN)

    @property
    def event(self) -> str:
        return self.said("event")

    def said(self, what: str) -> str:
        """Return what the consumer noted when it parked the message: event, producer, reason, deliveries, subject."""
        return unquote(self.headers.get(f"meguri-{what}", ""))

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "consumer": self.consumer,
            "stream": self.stream,
            "sequence": self.original,
            "subject": self.said("subject"),
            "event": self.event,
            "producer": self.said("producer"),
            "reason": self.said("reason"),
            "service": self.consumer.partition("-")[0],
            "deliveries": int(self.said("deliveries") or 0),
            "parked": self.time.isoformat(),
            "trace": trace_id(self.headers),
            "redriven": self.redriven,
            "redriven_by": unquote(self.headers.get(REDRIVEN_BY, "")) or None,
            "headers": dict(self.headers),
            **_as_text(self.body),
        }


async def letters(js: JetStreamContext, consumer: str | None = None, *, redriven: bool = False) -> list[Letter]:
    """Return the letters that nobody sent back, or all, oldest first."""
    if consumer and not is_name(consumer):
        raise NoLetter(f"{consumer!r} is no name of a consumer")
    # The last word on each letter is how it stands.
    config = ConsumerConfig(deliver_policy=DeliverPolicy.LAST_PER_SUBJECT)
    found = []
    async with aclosing(messages(js, DEAD, f"{DEAD_PREFIX}.{consumer or '*'}.*.*", config)) as read:
        async for msg in read:
            place = msg.metadata
            found.append(Letter.read(msg.subject, place.sequence.stream, place.timestamp, msg.headers or {}, msg.data))
    return [letter for letter in found if redriven or not letter.redriven]


async def letter(js: JetStreamContext, id_: str) -> Letter:
    """Return a letter by its id, `consumer/sequence` or `consumer/STREAM/sequence`. Raises NoLetter."""
    consumer, *stream, original = id_.split("/") if "/" in id_ else ("", "")
    known = is_name(consumer) and (not stream or stream in [[one.name] for one in STREAMS])
    if not (known and original.isascii() and original.isdecimal()):
        raise NoLetter(f"{id_!r} is no id of a dead letter: `meguri dead` lists them")
    subject = dead_subject(consumer, stream[0] if stream else LOG, int(original))
    found = await stored(js, DEAD, subject=subject)
    if found is None:
        raise NoLetter(f"there is no dead letter {id_}: `meguri dead` lists them")
    return Letter.read(subject, found.sequence, found.time, found.headers, found.body)


def _as_text(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}

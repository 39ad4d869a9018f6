"""Sends dead letters back: appends the message to its stream again, marks the letter, says so in the log.

Each step has its effect once however often it is repeated, so what was interrupted is just done again.
"""

import hashlib
import secrets
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from nats.js import JetStreamContext
from nats.js.errors import APIError

from meguri.client import MeguriClientError
from meguri.dead_letters import PARKED, REDRIVEN, REDRIVEN_BY, Letter
from meguri.following import json_object, said, stated
from meguri.streams import Stored, stored
from meguri_contracts.events import MessageRedriven
from meguri_contracts.names import derived_id
from meguri_contracts.topology import DEAD, FORMER_TRACE, LOG, subject

WRONG_LAST_SEQUENCE = 10071
"""The broker's error code for a subject that has a later message than was expected."""
SOURCE = "meguri/operator"
_EDITED = "meguri-edited"
_TOLD = ("traceparent", "ce-journeyid")


class AlreadyRedriven(MeguriClientError):
    """Somebody sent this letter back before."""


class NotWhole(MeguriClientError):
    """The message is no longer in its stream, and the letter has only the beginning of it."""


async def original(js: JetStreamContext, letter: Letter) -> Stored:
    """Return the message that was parked, from its stream, or from the letter if that has it whole. Raises NotWhole."""
    where = letter.said("subject")
    found = await stored(js, letter.stream, sequence=letter.original)
    if found and found.subject == where and _is_of(letter, found):
        return found
    if cut := letter.headers.get("meguri-cut"):
        raise NotWhole(f"{letter.id} has {cut}, and {letter.stream} no longer has the message")
    kept = {name: value for name, value in letter.headers.items() if not name.startswith("meguri-")}
    return Stored(where, letter.original, letter.time, kept, letter.body)


def _is_of(letter: Letter, found: Stored) -> bool:
    """Whether a message is the one that was parked: a log that was lost and put back may have another at its sequence."""
    said = {name: value for name, value in letter.headers.items() if name.lower().startswith("ce-")}
    same_body = found.body.startswith(letter.body) if "meguri-cut" in letter.headers else found.body == letter.body
    return same_body and said.items() <= found.headers.items()


async def redrive(js: JetStreamContext, letter: Letter, *, actor: str, body: bytes | None = None) -> MessageRedriven:
    """Send a letter back, with another `body` if given; returns what was said. Raises AlreadyRedriven, NotWhole."""
    if letter.redriven:
        # Interrupted between the last two steps, it is marked but not said.
        if await _was_said(letter):
            by = unquote(letter.headers.get(REDRIVEN_BY, ""))
            raise AlreadyRedriven(f"{letter.id} was sent back before, by {by} at {letter.redriven}")
        return await _say(js, letter, letter.headers)
    headers = await _append_again(js, letter, body)
    return await _say(js, letter, await _mark(js, letter, headers, actor))


async def _append_again(js: JetStreamContext, letter: Letter, body: bytes | None) -> Mapping[str, str]:
    """Append the message and return the headers with which it stands in its stream."""
    before = await original(js, letter)
    headers = _as_event(letter, before, body) if letter.stream == LOG else _without_traces(before.headers)
    headers |= _linked(before.headers) | {"Nats-Msg-Id": f"redrive:{letter.sequence}"}
    content = before.body if body is None else body
    ack = await js.publish(before.subject, content, stream=letter.stream, headers=headers)
    if ack.duplicate:
        # What was sent by an earlier, interrupted try is what stands, though this one may have edited it otherwise.
        first = await stored(js, letter.stream, sequence=ack.seq)
        return first.headers if first else headers
    return headers


def _as_event(letter: Letter, before: Stored, body: bytes | None) -> dict[str, str]:
    """Return the headers of an event: as they were, and what the log had filled in written down, so that it stays."""
    headers = _without_traces(before.headers)
    attributes = {f"ce-{name}": _encoded(value) for name, value in stated({}, json_object(before.body)).items()}
    attributes |= {name.lower(): value for name, value in headers.items() if name.lower().startswith("ce-")}
    filled_in = {
        "ce-id": letter.headers["meguri-event"],
        "ce-source": letter.headers["meguri-producer"],
        "ce-time": before.time.isoformat(),
    }
    others = {name: value for name, value in headers.items() if not name.lower().startswith("ce-")}
    headers = others | filled_in | {name: value for name, value in attributes.items() if value}
    if body is None:
        return headers
    if "meguri-unread" in letter.headers:
        # Nobody could read it, so its id stands for nothing yet, and upstream waits for what becomes of it.
        return headers | {_EDITED: "yes"}
    return headers | {
        "ce-id": derived_id(letter.event, "edited", letter.subject, hashlib.sha256(body).hexdigest()),
        "ce-causeid": _encoded(letter.event),
        "ce-journeyid": headers.get("ce-journeyid") or _encoded(letter.event),
        _EDITED: "yes",
    }


def _without_traces(headers: Mapping[str, str]) -> dict[str, str]:
    gone = ("traceparent", "tracestate", FORMER_TRACE, _EDITED)
    return {name: value for name, value in headers.items() if not name.startswith("Nats-") and name not in gone}


def _linked(headers: Mapping[str, str]) -> dict[str, str]:
    """A trace of its own, linked to the one that the message belonged to: what is done days later is no part of that."""
    own = {"traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"}
    return own | ({FORMER_TRACE: headers["traceparent"]} if "traceparent" in headers else {})


async def _mark(js: JetStreamContext, letter: Letter, sent: Mapping[str, str], actor: str) -> Mapping[str, str]:
    """Put a mark on the letter, which repeats what the letter says, and return its headers."""
    told = {name: value for name, value in letter.headers.items() if name.startswith("meguri-") or name in _TOLD}
    mark = told | {
        REDRIVEN: datetime.now(UTC).isoformat(),
        REDRIVEN_BY: _encoded(actor),
        PARKED: letter.time.isoformat(),
        "meguri-sent": sent.get("ce-id") or letter.headers["meguri-event"],
        _EDITED: sent.get(_EDITED, "no"),
        "Nats-Msg-Id": f"redriven:{letter.sequence}",
        "Nats-Expected-Last-Subject-Sequence": str(letter.sequence),
    }
    try:
        await js.publish(letter.subject, b"", stream=DEAD, headers=dict(mark))
    except APIError as error:
        if error.err_code == WRONG_LAST_SEQUENCE:
            raise AlreadyRedriven(f"{letter.id} was sent back by somebody else at the same time") from error
        raise
    return mark


async def _say(js: JetStreamContext, letter: Letter, mark: Mapping[str, str]) -> MessageRedriven:
    sent = unquote(mark["meguri-sent"])
    event = MessageRedriven(
        consumer=letter.consumer,
        stream=letter.stream,
        sequence=letter.original,
        event=letter.event,
        sent=sent if sent != letter.event else "",
        edited=mark[_EDITED] == "yes",
        actor=unquote(mark[REDRIVEN_BY]),
    )
    headers = {
        "Nats-Msg-Id": _said_id(letter),
        "ce-id": _said_id(letter),
        "ce-source": SOURCE,
        "ce-specversion": "1.0",
        "ce-type": event.type,
        "ce-subject": event.key,
        "ce-time": datetime.now(UTC).isoformat(),
        "ce-causeid": letter.headers["meguri-event"],
        "ce-journeyid": letter.headers.get("ce-journeyid") or letter.headers["meguri-event"],
        "ce-datacontenttype": "application/json",
        "content-type": "application/json",
    }
    await js.publish(subject(event.kind(), event.key), event.model_dump_json().encode(), stream=LOG, headers=headers)
    return event


async def _was_said(letter: Letter) -> bool:
    async with aclosing(said(MessageRedriven.kind(), letter.consumer)) as events:
        return any([event.id == _said_id(letter) async for event in events])


def _said_id(letter: Letter) -> str:
    return derived_id(letter.stream, str(letter.original), MessageRedriven.type, letter.consumer)


def _encoded(value: str) -> str:
    return quote(value, safe="")

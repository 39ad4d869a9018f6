"""HTTP in, HTTP out: events and files of upstreams, receipts of what became of them."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, unquote
from uuid import uuid4

from fastapi import APIRouter, File, Header, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import Message
from meguri_chassis.projection import as_message
from meguri_chassis.service import Service
from meguri_chassis.store import Database, JournalEntry, utc
from meguri_contracts.errors import Invalid, Malformed, PermanentError, TemporaryError, TooLarge
from meguri_contracts.events import DataArrived, LabelsArrived
from meguri_contracts.names import NAME_PATTERN
from meguri_contracts.topology import INGEST_ARRIVALS, LOG, MAX_INLINE_BYTES, subject
from meguri_ingest import reading, store
from meguri_ingest.arrivals import Lanes
from meguri_ingest.backlog import Backlog, Look
from meguri_ingest.budget import Budget
from meguri_ingest.settings import Settings

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
MAX_BATCH = 1000
"""Events of one POST at most."""
MAX_BATCH_BYTES = 64 * 1024**2
"""Bytes of all of them at most."""
FORM_BYTES = 1024**2
"""What a form may add to the bytes of its file."""
WAIT = 30.0
"""Longest wait for a receipt, in seconds."""
CLOUD_EVENT, CLOUD_EVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"


class Accepted(BaseModel):
    """An event is on disk. What becomes of data stands at `receipt`; labels have none, monitoring counts them."""

    event: str
    receipt: str | None


def routes(service: Service, settings: Settings, artifacts: Artifacts, lanes: Lanes, budget: Budget) -> APIRouter:
    """Return the routes of ingest."""
    database, projection, log = service.database, service.projection, service.log
    assert database is not None
    assert projection is not None
    backlog = Backlog(lambda: _look(service), time.monotonic, limit=settings.max_waiting)
    service.warnings.append(backlog.warning)

    class Door(APIRoute):
        """A route that lets nobody in while too much waits, before anything of a request is read."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_if_there_is_room(request: Request) -> Response:
                await backlog.require_room()
                _require_length(request, settings.max_file_bytes + FORM_BYTES)
                return await handle(request)

            return handle_if_there_is_room

    router, door = APIRouter(), APIRouter(route_class=Door, tags=["upstream"])

    async def accept(
        event: DataArrived | LabelsArrived, id_: str, source: str, cause: str = "", hops: int = 0
    ) -> Accepted:
        await log.append(event, id=id_, cause=cause or id_, journey=id_, hops=hops, source=source)
        if isinstance(event, LabelsArrived):
            return Accepted(event=id_, receipt=None)
        backlog.took()
        return Accepted(event=id_, receipt=f"/receipts/{quote(id_)}")

    @door.post("/events", status_code=202)
    async def post_events(request: Request) -> list[Accepted]:
        """Take CloudEvents over HTTP, data-arrived and labels-arrived: binary, structured or a batch; or the bare JSON of
        data-arrived with its dataset."""
        _require_length(request, MAX_BATCH_BYTES)
        body = await _body(request)
        read = [_event(headers, part) for headers, part in _parts(dict(request.headers), body)]
        return [
            await accept(
                event, message.id if message.has_own_id else str(uuid4()), message.source, message.cause, message.hops
            )
            for event, message in read
        ]

    @door.post("/datasets/{dataset}/data", status_code=202)
    async def post_data(
        dataset: Name,
        file: Annotated[UploadFile, File()],
        producer: Annotated[str, Header(alias="Meguri-Producer", min_length=1, max_length=128)] = "upload",
        id_: Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)] = None,
    ) -> Accepted:
        """Take a file: CSV, JSON Lines, Parquet or Arrow, told by the ending of its name."""
        format_ = reading.format_of(file.filename or "", None)
        size = file.size or 0
        if size > settings.max_file_bytes:
            raise TooLarge(f"the file has more than {settings.max_file_bytes:,} bytes: split it, or send its uri")
        async with budget.of(size):
            kept = await artifacts.put(await file.read())
        event = DataArrived.model_validate({"dataset": dataset, "uri": kept.uri, "format": format_})
        return await accept(event, id_ or str(uuid4()), producer)

    @router.get("/receipts/{event:path}", tags=["receipts"])
    async def get_receipt(event: str, wait: Annotated[float, Query(ge=0, le=WAIT)] = 0) -> dict[str, Any]:
        """What became of an event: waiting, committed, rejected or parked and why; its version; the models trained on it.

        With `wait`, answers as soon as it is no longer waiting, at the latest after that many seconds.
        """
        # Whoever has just published must find the event here; one that cannot be read is known once it was refused.
        await projection.reached(await log.last_sequence())
        until = asyncio.get_running_loop().time() + wait
        while True:
            seen = projection.position
            found = await asyncio.to_thread(_receipt, service, event)
            left = until - asyncio.get_running_loop().time()
            if found and found["status"] != "waiting":
                return found
            if left <= 0:
                if found is None:
                    raise store.NoReceipt(event)
                trouble = lanes.trouble(found["dataset"])
                return found | {"waits_for": trouble or await _turn(service, found["sent_last"])}
            with suppress(TemporaryError):
                await projection.reached(seen + 1, timeout=left)

    @router.get("/receipts", tags=["receipts"])
    def list_receipts(
        dataset: Name | None = None,
        status: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> list[dict[str, Any]]:
        """The newest receipts."""
        with database.read() as session:
            return [_shown(row) for row in store.receipts(session, dataset, status, limit)]

    @router.get("/datasets/{dataset}/versions", tags=["datasets"])
    def list_versions(dataset: Name) -> list[dict[str, Any]]:
        """The versions of a dataset, newest first."""
        with database.read() as session:
            store.declared(session, dataset)
            return [row.model_dump(mode="json") for row in store.versions(session, dataset)]

    router.include_router(door)
    return router


async def _look(service: Service) -> Look:
    info = await service.jetstream().consumer_info(LOG, INGEST_ARRIVALS.name)
    in_hand = info.num_ack_pending or 0
    delivered = info.delivered.consumer_seq if info.delivered else 0
    return Look(at=time.monotonic(), waiting=(info.num_pending or 0) + in_hand, done=delivered - in_hand)


def _require_length(request: Request, limit: int) -> None:
    """Raises TooLarge for a request that says itself that it is."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(f"the request has {int(length):,} bytes, at most {limit:,} are taken: send it in parts")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BATCH_BYTES:
            raise TooLarge(f"the request has more than {MAX_BATCH_BYTES:,} bytes: send it in parts")
    return bytes(body)


def _receipt(service: Service, event: str) -> dict[str, Any] | None:
    assert service.database is not None
    with service.database.read() as session:
        row = store.receipt(session, event)
        if row is None:
            return None
        sent = [entry.sequence for entry in store.sent(session, event) if _is_of(row, entry)]
        return _shown(row) | {
            "heard": len(sent),
            "sent_last": max(sent, default=row.sequence),
            "waits_for": "",
            "used_in": [use.model_dump(mode="json") for use in store.uses(session, row)],
        }


async def _turn(service: Service, sequence: int) -> str:
    """What an arrival at a sequence of the log waits for, as long as nothing is wrong."""
    assert service.database is not None
    info = await service.jetstream().consumer_info(LOG, INGEST_ARRIVALS.name)
    delivered = info.delivered.stream_seq if info.delivered else 0
    if sequence <= delivered:
        return "its commit: it is in hand"
    before = await asyncio.to_thread(_arrivals_between, service.database, delivered, sequence)
    return f"its turn: it is number {before} of {max(before, info.num_pending or 0)} in the log that wait"


def _arrivals_between(database: Database, after: int, until: int) -> int:
    with database.read() as session:
        return store.arrivals_between(session, after, until)


def _is_of(row: store.ReceiptRow, entry: JournalEntry) -> bool:
    if entry.sequence in (row.sequence, row.letter):
        return True
    message = as_message(entry)
    try:
        return isinstance(message.event, DataArrived) and row.is_of(message.key, message.source)
    except PermanentError:
        return False


def _shown(row: store.ReceiptRow) -> dict[str, Any]:
    return row.model_dump(mode="json") | {"arrived": utc(row.arrived).isoformat()}


def _parts(headers: dict[str, str], body: bytes) -> list[tuple[dict[str, str], bytes]]:
    """The events of a request, each with its own headers and body."""
    if headers.get("content-type", "").split(";")[0].strip() != CLOUD_EVENTS:
        return [(headers, body)]
    try:
        events = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the batch is not JSON: {error}") from error
    if not isinstance(events, list) or not 0 < len(events) <= MAX_BATCH:
        raise Malformed(f"a batch is a JSON array of 1 to {MAX_BATCH} CloudEvents")
    return [({}, json.dumps(event).encode()) for event in events]


def _event(headers: dict[str, str], body: bytes) -> tuple[DataArrived | LabelsArrived, Message]:
    """The event of a request, and what is said about it. Raises Malformed, TooLarge or Invalid with the reason."""
    if len(body) > MAX_INLINE_BYTES:
        raise TooLarge(
            f"the event has {len(body):,} bytes, at most {MAX_INLINE_BYTES:,} are allowed: upload a file instead"
        )
    attributes = {name: value for name, value in headers.items() if name.startswith("ce-")}
    stated = unquote(attributes.get("ce-type", ""))
    kind, named = _kind_and_key(stated, body)
    key = unquote(attributes.get("ce-subject", "")) or named
    if not key:
        what = kind.key_field
        raise Malformed(
            f"no {what} is named: give it as the CloudEvents subject (ce-subject) or as '{what}' in the body"
        )
    message = Message.of(subject(kind.kind(), key), attributes, body, 0, datetime.now(UTC))
    event = message.event
    assert isinstance(event, DataArrived | LabelsArrived)
    if isinstance(event, DataArrived) and (event.records is None) == (event.uri is None):
        raise Invalid("exactly one of 'records' (rows) and 'uri' (a file) is needed")
    return event, message


def _kind_and_key(stated: str, body: bytes) -> tuple[type[DataArrived | LabelsArrived], str]:
    """Which event this is by the type that headers or body state, and the dataset or model that the body names."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        return DataArrived, ""
    in_body = data.get("type") if "specversion" in data else None
    kind = LabelsArrived if LabelsArrived.type in (stated, in_body) else DataArrived
    inner = data.get("data")
    named = (
        data.get("subject"),
        data.get(kind.key_field),
        inner.get(kind.key_field) if isinstance(inner, dict) else None,
    )
    return kind, next((found for found in named if isinstance(found, str)), "")

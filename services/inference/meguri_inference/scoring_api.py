"""HTTP for many rows at once: batches, and versions compared on rows that were recorded."""

import asyncio
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, Field

from meguri_chassis.log import EventLog
from meguri_chassis.lookup import Lookup
from meguri_contracts.errors import Conflict, TooLarge
from meguri_contracts.events import BatchRequested
from meguri_contracts.names import NAME_PATTERN, derived_id, is_name
from meguri_inference import comparing
from meguri_inference.formats import format_of
from meguri_inference.storing import Inputs, Outputs
from meguri_inference.versions import Versions

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=128)]
Actor = Annotated[str, Header(alias="Meguri-Actor", max_length=128)]
Version = Annotated[int, Query(ge=1, le=2**31 - 1)]


class Batch(BaseModel):
    """All rows of a file, to be predicted."""

    input: str
    """URI of the rows: CSV, JSON Lines, Parquet or Arrow."""
    output: str
    """URI of the folder for the predictions."""
    version: int | None = Field(default=None, ge=1)
    """The champion of the moment when left out."""
    shard_rows: int = Field(default=100_000, ge=1)


class KeyTaken(Conflict):
    def __init__(self, event: BatchRequested) -> None:
        super().__init__(
            f"batch {event.batch!r} of model {event.model!r} was asked for before, otherwise: use another key"
        )


class Requested(BaseModel):
    """A batch is asked for. What becomes of it, the registry knows, and the log after `sequence`."""

    batch: str
    sequence: int


def routes(
    log: EventLog, lookup: Lookup, versions: Versions, inputs: Inputs, outputs: Outputs, max_bytes: int
) -> APIRouter:
    """Return the routes for many rows at once."""
    router = APIRouter(tags=["batches"])

    @router.post("/models/{name}/batches", status_code=202)
    async def request_batch(name: Name, body: Batch, key: Key = None, actor: Actor = "unknown") -> Requested:
        """Ask for all rows of a file to be predicted. The same key again asks for the same batch."""
        format_of(body.input)
        inputs.require_allowed(body.input)
        outputs.open(body.output)
        cause = key or str(uuid4())
        batch = cause if is_name(cause) else derived_id(cause)
        event = BatchRequested(model=name, batch=batch, actor=actor, **body.model_dump())
        if key and (before := await _asked_before(lookup, event)):
            return Requested(batch=batch, sequence=before)
        id_ = derived_id(cause, event.type, event.key, event.identity)
        return Requested(batch=batch, sequence=await log.append(event, id=id_, cause=cause, journey=id_))

    @router.post("/models/{name}/compare", openapi_extra={"requestBody": {"content": {comparing.MEDIA_TYPE: {}}}})
    async def compare(name: Name, a: Version, b: Version, request: Request) -> dict[str, Any]:
        """Have two versions predict recorded rows, an Arrow IPC stream, and say where they disagree."""
        body = await _body(request, max_bytes)
        deployed = [await versions.find(name, version) for version in (a, b)]
        first, second = [await versions.load(name, one) for one in deployed]
        return await asyncio.to_thread(comparing.compare, first, second, body)

    return router


async def _asked_before(lookup: Lookup, event: BatchRequested) -> int | None:
    """Return the sequence of the same request, if it is in the log. Raises KeyTaken if another one has its key."""
    async for sequence, known in lookup.said(BatchRequested, event.model):
        if known.batch == event.batch:
            if known.model_copy(update={"actor": event.actor}) != event:
                raise KeyTaken(event)
            return sequence
    return None


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > limit:
            raise TooLarge(f"the body is larger than the {limit} bytes that are accepted; compare fewer rows")
    return bytes(body)

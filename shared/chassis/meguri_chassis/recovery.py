"""Routes of every service that has tables: how far they are, their digest, the journal, and making them again from the log.

Lists come as JSON lines, so that neither side holds a whole log in memory.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from nats.js import JetStreamContext
from sqlmodel import col, select

from meguri_chassis.digesting import rows
from meguri_chassis.log import EventLog
from meguri_chassis.projection import Projection, Rebuilding, parked
from meguri_chassis.store import Database, JournalEntry, Position, utc

LINES = "application/x-ndjson"
Place = Annotated[int, Query(ge=0, le=2**63 - 1)]
"""A stream sequence."""
CHUNK = 500
"""Journal entries read at once."""


def routes(
    service: str, log: EventLog, database: Database, projection: Projection, js: Callable[[], JetStreamContext]
) -> APIRouter:
    """Return the routes under /log."""
    router = APIRouter(prefix="/log", tags=["recovery"])

    @router.get("")
    async def position() -> dict[str, Any]:
        """How far the tables are behind the log, and what is parked."""
        return {
            "service": service,
            "position": projection.position,
            "last": await log.last_sequence(),
            "trouble": projection.trouble,
            "parked": await asyncio.to_thread(_parked),
        }

    def _parked() -> list[dict[str, Any]]:
        with database.read() as session:
            return [row.model_dump(mode="json") for row in parked(session, service)]

    @router.get("/digest")
    async def get_digest() -> dict[str, Any]:
        """The digest of all tables that follow from the log, where they stand; and how far each stream was read."""
        position, found = await projection.state()
        answer = {"service": service, "position": position, "digest": found.whole, "tables": found}
        return answer | {"read": await asyncio.to_thread(_positions, database)}

    @router.get("/journal", response_class=StreamingResponse)
    def get_journal(after: Place = 0) -> StreamingResponse:
        """Every message that this service has heard, verbatim, in log order, a JSON line each; the body in base64."""
        return StreamingResponse(_journal(database, after), media_type=LINES)

    @router.get("/rows", response_class=StreamingResponse)
    def get_rows() -> StreamingResponse:
        """Every row of the tables that follow from the log, a JSON line each, as one moment saw them."""
        return StreamingResponse(_rows(database, projection), media_type=LINES)

    @router.post("/replay", response_class=StreamingResponse)
    async def replay(until: Place | None = None, keep: bool = True) -> StreamingResponse:
        """Make the tables again from the log, in one transaction; a JSON line for each step, the last with both digests.

        With `keep=false` nothing is changed, it is only looked whether the digests agree; `until` stops at a sequence, to look.
        Hanging up before the end undoes it.
        """
        rebuilding = projection.rebuild(js, until=until, keep=keep)
        # What is wrong from the start is told as such, before the first line.
        first = await anext(rebuilding)
        return StreamingResponse(_progress(first, rebuilding), media_type=LINES)

    return router


def _positions(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {row.projection: row.sequence for row in session.exec(select(Position)).all()}


async def _progress(first: Rebuilding, rest: AsyncIterator[Rebuilding]) -> AsyncIterator[str]:
    yield _step(first)
    async for step in rest:
        yield _step(step)


def _step(step: Rebuilding) -> str:
    data: dict[str, Any] = {"position": step.position, "until": step.until}
    if step.done:
        data |= {"before": step.before.whole, "after": step.after.whole, "tables": step.after}
        data["differ"] = sorted(table for table in step.after if step.after[table] != step.before.get(table))
        data["not_kept"] = step.not_kept
    return json.dumps(data) + "\n"


def _journal(database: Database, after: int) -> Iterator[str]:
    while True:
        with database.read() as session:
            query = select(JournalEntry).where(col(JournalEntry.sequence) > after)
            entries = session.exec(query.order_by(col(JournalEntry.sequence)).limit(CHUNK)).all()
        for entry in entries:
            yield json.dumps(_entry(entry)) + "\n"
        if len(entries) < CHUNK:
            return
        after = entries[-1].sequence


def _entry(entry: JournalEntry) -> dict[str, Any]:
    return {
        "sequence": entry.sequence,
        "kind": entry.kind,
        "key": entry.key,
        "id": entry.event_id,
        "time": utc(entry.time).isoformat(),
        "headers": json.loads(entry.headers),
        "body": base64.b64encode(entry.body).decode(),
    }


def _rows(database: Database, projection: Projection) -> Iterator[str]:
    with database.read() as session:
        for table in projection.tables:
            for row in rows(session, table):
                yield json.dumps({"table": table.__tablename__, "row": row}) + "\n"

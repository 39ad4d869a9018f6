"""A toy service on the real chassis: it gives models version numbers, counted from 1 without gaps."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from nats.js import JetStreamContext
from sqlmodel import Field, Session, SQLModel

from meguri_chassis.deciding import Decide, Decider
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Evolve, Projection
from meguri_chassis.store import Database
from meguri_contracts.events import Event, ModelRegistered, TrainingRequested

MIGRATIONS = Path(__file__).parent / "migrations"
HEARS = (ModelRegistered, TrainingRequested)


class Tally(SQLModel, table=True):
    __tablename__ = "toy_tally"

    model: str = Field(primary_key=True)
    version: int = 0
    applied: int = 0
    """How many events changed this row."""
    gaps: int = 0
    """How many versions did not follow the one before."""
    last: str = ""
    """Run or reason of the last event."""


def evolve(session: Session, event: Event, message: Message) -> None:
    row = session.get(Tally, event.key) or Tally(model=event.key)
    if isinstance(event, ModelRegistered):
        row.gaps += event.version != row.version + 1
        row.version, row.last = event.version, event.run
    elif isinstance(event, TrainingRequested):
        row.last = event.reason
    row.applied += 1
    session.add(row)


def register(model: str, run: str = "run") -> Decide:
    """A decision: the model gets its next version."""

    def decide(session: Session) -> Sequence[Event]:
        row = session.get(Tally, model)
        return [ModelRegistered(model=model, version=(row.version if row else 0) + 1, run=run)]

    return decide


@dataclass(frozen=True)
class Toy:
    """One replica."""

    database: Database
    projection: Projection
    log: EventLog
    decider: Decider

    def tally(self, model: str) -> Tally:
        with self.database.read() as session:
            return session.get(Tally, model) or Tally(model=model)


@asynccontextmanager
async def toy(
    url: str, js: JetStreamContext, *, evolve: Evolve = evolve, hears: Sequence[type[Event]] = HEARS
) -> AsyncIterator[Toy]:
    """A replica on a database, following the log until the block is left."""
    database = migrated(url)
    projection = Projection(database, evolve, hears, [Tally])
    log = EventLog(lambda: js, "meguri/toy")
    async with AsyncExitStack() as stack:
        stack.callback(database.close)
        await stack.enter_async_context(going_on(lambda: projection.run(lambda: js)))
        yield Toy(database, projection, log, Decider(log, database, projection))


def migrated(url: str) -> Database:
    database = Database(url, MIGRATIONS)
    database.migrate()
    return database


@asynccontextmanager
async def going_on(work: Callable[[], object]) -> AsyncIterator[asyncio.Task[None]]:
    """Run a coroutine beside the block; an error of it is an error of the test."""
    task = asyncio.ensure_future(work())  # type: ignore[arg-type]
    try:
        yield task
    finally:
        while not task.done():
            # Again, because Python 3.11 loses a cancellation that comes together with an awaited answer.
            task.cancel()
            await asyncio.wait([task], timeout=0.25)
        if not task.cancelled():
            task.result()

"""Events into tables: each event once, in log order, journal and effect in one transaction, whatever dies when.

Every replica reads the log; the position row in the database decides who applies a batch. A replica that comes late
finds the position moved, skips what is done and goes on from there, so no replica has to be elected or missed.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from sqlalchemy import insert
from sqlmodel import Session, col, select

from meguri_chassis import telemetry
from meguri_chassis.log import Message
from meguri_chassis.reader import Reader
from meguri_chassis.store import Database, Head, JournalEntry, Position, keep_heads, locked_position, move_position
from meguri_contracts.errors import PermanentError, TemporaryError
from meguri_contracts.events import Event
from meguri_contracts.names import is_name
from meguri_contracts.topology import EVENT_PREFIX, LOG

logger = logging.getLogger(__name__)

Evolve = Callable[[Session, Event, Message], None]
"""Changes the tables by one event. The only place where they change."""

PAUSE_AT_MOST = 10.0
"""Seconds between tries to apply a batch that fails."""
NAME = "log"


class Behind(TemporaryError):
    """The tables have not yet reached the sequence that was asked for."""


class Projection:
    """Keeps a service's tables at the log's present. `hears` are the events that change them."""

    def __init__(self, database: Database, evolve: Evolve, hears: Sequence[type[Event]]) -> None:
        self._database = database
        self._evolve = evolve
        self._hears = {event.kind() for event in hears}
        self._position = 0
        self._passed = asyncio.Condition()
        self._reader: Reader | None = None
        self.trouble: str | None = None
        """Why it stands still, in words for an operator; None while all is well."""

    @property
    def position(self) -> int:
        """The last stream sequence that the tables contain, as far as this replica knows."""
        return self._position

    async def run(self, js: Callable[[], JetStreamContext]) -> None:
        """Follow the log for ever."""
        self._reader = Reader(js, LOG, [f"{EVENT_PREFIX}.>"], "projection")
        await self._move_to(await asyncio.to_thread(self._stored_position))
        async for batch in self._reader.after(lambda: self._position):
            await self._apply(batch)

    def again(self) -> None:
        """Begin reading again, after a reconnect."""
        if self._reader:
            self._reader.again()

    async def reached(self, sequence: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - it is part of the answer
        """Wait until the tables contain everything up to `sequence`. Raises Behind after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._passed:
                await self._passed.wait_for(lambda: self._position >= sequence)
        except TimeoutError as error:
            why = self.trouble or "the log is being caught up with"
            raise Behind(f"the tables stand at {self._position}, {sequence} is needed: {why}") from error

    async def _apply(self, batch: Sequence[Msg]) -> None:
        pause = 0.1
        while True:
            try:
                await self._move_to(await asyncio.to_thread(self._apply_in_one_transaction, batch))
            except Exception as error:
                # Standing still loudly is the only safe answer to any of them.
                self.trouble = (
                    f"the projection cannot apply the events from {batch[0].metadata.sequence.stream} on: {error}"
                )
                logger.exception(self.trouble)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_AT_MOST)
            else:
                self.trouble = None
                return

    def _apply_in_one_transaction(self, batch: Sequence[Msg]) -> int:
        with self._database.write() as session:
            position = locked_position(session, NAME)
            fresh = [message for msg in batch if (message := Message.read(msg)).sequence > position]
            applied = [message for message in fresh if self._apply_one(session, message)]
            if fresh:
                # In a statement each for the whole batch: a row at a time through the mapper costs as much as the effects.
                connection = session.connection()
                keep_heads(connection, {message.key: message.sequence for message in fresh if is_name(message.key)})
                if applied:
                    connection.execute(insert(JournalEntry), [_entry(message) for message in applied])
                position = fresh[-1].sequence
                move_position(connection, NAME, position)
            return position

    def _apply_one(self, session: Session, message: Message) -> bool:
        """Change the tables by one message; return whether it was an event that does."""
        if message.kind not in self._hears:
            return False
        try:
            event = message.event
        except PermanentError as error:
            # Whoever hears it sets it aside with this reason; the tables only have to get past it.
            logger.info("event %s at %d changes no table: %s", message.id, message.sequence, error)
            return False
        self._evolve(session, event, message)
        return True

    def _stored_position(self) -> int:
        with self._database.read() as session:
            row = session.get(Position, NAME)
            return row.sequence if row else 0

    async def _move_to(self, sequence: int) -> None:
        async with self._passed:
            self._position = sequence
            self._passed.notify_all()
        telemetry.PROJECTED.labels(NAME).set(sequence)


def _entry(message: Message) -> dict[str, Any]:
    return {
        "sequence": message.sequence,
        "event_id": message.id,
        "kind": message.kind,
        "key": message.key,
        "time": message.time,
        "headers": json.dumps(dict(message.headers)),
        "body": message.body,
    }


def head(session: Session, key: str) -> int:
    """Return the last sequence of any event of a key; 0 when there is none."""
    row = session.get(Head, key)
    return row.sequence if row else 0


def recorded(session: Session, event_id: str) -> JournalEntry | None:
    """Return the applied event with this id, the first if it was heard twice."""
    query = select(JournalEntry).where(JournalEntry.event_id == event_id).order_by(col(JournalEntry.sequence))
    return session.exec(query).first()

"""Events into tables: each event once, in log order, journal and effect in one transaction, whatever dies when.

Every replica reads the log; the position row in the database decides who applies a batch. A replica that comes late
finds the position moved, skips what is done and goes on from there, so no replica has to be elected or missed. One that finds
it moved back, because the tables were wiped, goes back too.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from sqlalchemy import bindparam, delete, func, insert
from sqlmodel import Session, SQLModel, col, select

from meguri_chassis import telemetry
from meguri_chassis.digesting import Digest, digest
from meguri_chassis.log import Message
from meguri_chassis.reader import Reader
from meguri_chassis.store import (
    Database,
    Head,
    JournalEntry,
    Parked,
    Position,
    Writer,
    count_rebuild,
    keep_heads,
    locked,
    locked_position,
    move_position,
    utc,
)
from meguri_contracts.errors import Conflict, Invalid, Newer, PermanentError, TemporaryError
from meguri_contracts.events import BY_KIND, Event, MessageParked, MessageRedriven
from meguri_contracts.names import is_name
from meguri_contracts.topology import EVENT_PREFIX, LOG, STORED, subject

logger = logging.getLogger(__name__)

Evolve = Callable[[Session, Event, Message], None]
"""Changes the tables by one event. The only place where they change."""

PAUSE_AT_MOST = 10.0
"""Seconds between tries to apply a batch that fails."""
PAUSE_WITHOUT_LOG = 1.0
"""Seconds between looks whether a lost log is back."""
NAME = "log"
KEPT: tuple[type[Event], ...] = (MessageParked, MessageRedriven)
"""Events that every service knows what to do with."""


_HEAD = select(Head.sequence).where(col(Head.key) == bindparam("key"))
_JOURNAL = insert(JournalEntry)
_APPLIED = select(JournalEntry.kind, JournalEntry.event_id).where(
    col(JournalEntry.event_id).in_(bindparam("ids", expanding=True)), col(JournalEntry.applied)
)


class Behind(TemporaryError):
    """The tables have not yet reached the sequence that was asked for."""


class Incomplete(Conflict):
    """The log does not hold everything that the tables rest on."""


class _Rewound(Exception):
    """The tables stand before what this replica has read: they were wiped."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


@dataclass(frozen=True)
class Rebuilding:
    """How far a rebuild is. The digests are of the tables at `until`: as they stood, and as the log gives them."""

    position: int
    until: int
    before: Digest
    after: Digest = field(default_factory=Digest)
    not_kept: Mapping[str, int] = field(default_factory=dict)
    """By kind, how many events are in the journal now that were not: releases of before did not hear them."""

    @property
    def done(self) -> bool:
        return bool(self.after)


class Projection:
    """Keeps a service's tables at the log's present. `hears` are the events that change them.

    `tables` are what follows from the log and nothing else: what a rebuild empties and makes again. With `keeps_the_rest`, the
    journal has also what no service hears, so that all journals together are the whole log.
    """

    def __init__(
        self,
        database: Database,
        evolve: Evolve,
        hears: Sequence[type[Event]],
        tables: Sequence[type[SQLModel]],
        *,
        keeps_the_rest: bool = False,
    ) -> None:
        self._database = database
        self._evolve = evolve
        self._hears = {event.kind() for event in (*hears, *KEPT)}
        self._tables: Sequence[type[SQLModel]] = (*tables, Head, Parked, JournalEntry)
        self._keeps_the_rest = keeps_the_rest
        self._writer = Writer(database)
        self._written: tuple[int, int] | None = None
        self._position = 0
        self._read = 0
        self._passed = asyncio.Condition()
        self._writing = asyncio.Lock()
        self._reader: Reader | None = None
        self.trouble: str | None = None
        """Why it stands still, in words for an operator; None while all is well."""
        self.left_alone: set[int] = set()
        """Sequences of events that an older version of meguri could not read, this one or one before; a replay applies
        them once they can be read."""
        self.lost: str | None = None
        """Why nothing may be appended: the log has lost what the tables contain."""

    @property
    def position(self) -> int:
        """The last stream sequence that the tables contain, as far as this replica knows."""
        return self._position

    @property
    def tables(self) -> Sequence[type[SQLModel]]:
        """All tables that follow from the log."""
        return self._tables

    async def run(self, js: Callable[[], JetStreamContext]) -> None:
        """Follow the log for ever."""
        self._reader = Reader(js, LOG, [f"{EVENT_PREFIX}.>"], "projection", before=lambda: self._require_log(js()))
        # Before anybody can see that the tables contain these events.
        self.left_alone = await asyncio.to_thread(self._left_alone)
        await self._move_to((await asyncio.to_thread(self._stands))[0])
        async for batch in self._reader.after(self._begin):
            await self._apply(batch)
            self._read = batch[-1].metadata.sequence.stream

    def again(self) -> None:
        """Begin reading again, after a reconnect."""
        if self._reader:
            self._reader.again()

    async def reached(self, sequence: int, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - it is part of the answer
        """Wait until the tables contain everything up to `sequence`. Raises Behind after `timeout` seconds."""
        if self._position >= sequence:
            return
        try:
            async with asyncio.timeout(timeout), self._passed:
                await self._passed.wait_for(lambda: self._position >= sequence)
        except TimeoutError as error:
            why = self.trouble or "the log is being caught up with"
            raise Behind(f"the tables stand at {self._position}, {sequence} is needed: {why}") from error

    async def state(self) -> tuple[int, Digest]:
        """Return how far the tables are, and their digest there."""
        return await asyncio.to_thread(self._state)

    async def rebuild(
        self, js: Callable[[], JetStreamContext], *, until: int | None = None, keep: bool = True
    ) -> AsyncIterator[Rebuilding]:
        """Make the tables again from the log, up to where they stand or to `until`; yields the progress, at last the digests.

        Everything happens in one transaction: others see the old tables until the new ones are whole, and if this ends early,
        nothing has changed. Without `keep` all is undone at the end, too: it was only looked. Raises Incomplete when the log
        does not hold all that is needed, Invalid for tables that are to be kept as they were at `until`.
        """
        if keep and until is not None:
            raise Invalid("tables as they were at a sequence can be looked at, not kept: say keep=false")
        async with self._writing:
            session, hand = self._database.session(), ThreadPoolExecutor(1)
            step = partial(asyncio.get_running_loop().run_in_executor, hand)
            try:
                stands, before, kept = await step(self._emptied, session)
                end = stands if until is None else until
                await self._require_whole_log(js(), stands, end)
                yield Rebuilding(0, end, before)
                async for position in self._replayed(js, partial(step, self._apply_all, session), end):
                    yield Rebuilding(position, end, before)
                after, now = await step(digest, session, self._tables), await step(_kinds, session)
                if keep:
                    await step(_commit, session)
                    self.left_alone = await asyncio.to_thread(self._left_alone)
                more = {kind: count - kept.get(kind, 0) for kind, count in now.items() if count > kept.get(kind, 0)}
                yield Rebuilding(end, end, before, after, more)
            finally:
                # Behind the step that a cancellation leaves going on in its thread, and however often it is cancelled.
                closing = step(session.close)
                hand.shutdown(wait=False)
                await asyncio.shield(closing)

    def _emptied(self, session: Session) -> tuple[int, Digest, dict[str, int]]:
        self._database.begin_writing(session)
        position = locked_position(session, NAME)
        before, kept = digest(session, self._tables), _kinds(session)
        for table in self._tables:
            session.connection().execute(delete(table))
        return position, before, kept

    async def _replayed(
        self, js: Callable[[], JetStreamContext], apply: Callable[[Sequence[Message]], Awaitable[None]], end: int
    ) -> AsyncIterator[int]:
        position = 0
        reader = Reader(js, LOG, [f"{EVENT_PREFIX}.>"], "rebuild")
        async with aclosing(reader.after(lambda: position)) as batches:
            while position < end:
                batch = [Message.read(msg) for msg in await anext(batches)]
                await apply([message for message in batch if message.sequence <= end])
                position = batch[-1].sequence
                yield min(position, end)

    async def _require_whole_log(self, js: JetStreamContext, stands: int, end: int) -> None:
        if self.lost:
            raise Incomplete(self.lost)
        try:
            log = (await js.stream_info(LOG)).state
        except NotFoundError as error:
            raise Incomplete(f"there is no stream {LOG}: put it back with `meguri restore-log`") from error
        if stands <= log.last_seq < end:
            raise Invalid(f"until: the log ends at {log.last_seq}, there is no {end} yet")
        if end and (log.last_seq < end or log.first_seq > 1 or log.num_deleted):
            raise Incomplete(
                f"the log goes from {log.first_seq} to {log.last_seq} with {log.num_deleted or 0} missing, all from 1 to {end} "
                "are needed: put it back with `meguri restore-log`"
            )

    def _state(self) -> tuple[int, Digest]:
        with self._database.read() as session:
            row = session.get(Position, NAME)
            return (row.sequence if row else 0), digest(session, self._tables)

    def _begin(self) -> int:
        self._read = self._position
        return self._position

    async def _require_log(self, js: JetStreamContext) -> None:
        """Raise NatsError as long as the log is not the one that the tables contain."""
        stored, entry = await asyncio.to_thread(self._stands)
        lost = await _what_is_lost(js, stored, entry)
        if lost is None:
            if self.lost:
                self.lost = self.trouble = None
            await self._move_to(stored)
            return
        self.trouble = self.lost = lost
        await asyncio.sleep(PAUSE_WITHOUT_LOG)
        raise NatsError(lost)

    async def _apply(self, batch: Sequence[Msg]) -> None:
        pause = 0.1
        while True:
            try:
                async with self._writing:
                    position = await asyncio.to_thread(self._apply_in_one_transaction, batch)
            except _Rewound as wiped:
                logger.warning("the tables were set back to %d, reading again from there", wiped.position)
                await self._move_to(wiped.position)
                self.again()
                return
            except Exception as error:
                # Standing still loudly is the only safe answer to any of them.
                # Of a database's error the first line; the statement with all its values is for the log.
                why = str(error).partition("\n")[0]
                self.trouble = (
                    f"the projection cannot apply the events from {batch[0].metadata.sequence.stream} on: {why}"
                )
                logger.exception(self.trouble)
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_AT_MOST)
            else:
                self.trouble = None
                await self._move_to(position)
                return

    def _apply_in_one_transaction(self, batch: Sequence[Msg]) -> int:
        messages = [Message.read(msg) for msg in batch]
        with self._writer.transaction() as session:
            position, rebuilt = locked(session, NAME)
            if (position, rebuilt) != self._written:
                # Another replica was here.
                self._writer.forget()
            if position < self._read:
                raise _Rewound(position)
            if fresh := [message for message in messages if message.sequence > position]:
                self._apply_all(session, fresh)
                position = fresh[-1].sequence
        self._written = position, rebuilt
        return position

    def _apply_all(self, session: Session, messages: Sequence[Message]) -> None:
        if not messages:
            return
        known = _known(session, messages)
        entries = []
        for message in messages:
            heard = message.kind in self._hears
            # The same event again, sent twice or put back after it was parked, has had its effect.
            applied = heard and (message.kind, message.id) not in known and self._apply_one(session, message)
            if applied:
                known.add((message.kind, message.id))
            if heard or (self._keeps_the_rest and message.kind not in BY_KIND):
                entries.append(_entry(message, applied=applied))
        # In a statement each for the whole batch: a row at a time through the mapper costs as much as the effects.
        session.flush()
        connection = session.connection()
        keep_heads(connection, {message.key: message.sequence for message in messages if is_name(message.key)})
        if entries:
            connection.execute(_JOURNAL, entries)
        move_position(connection, NAME, messages[-1].sequence)

    def _apply_one(self, session: Session, message: Message) -> bool:
        """Change the tables by one message; return whether it was an event that does."""
        try:
            event = message.event
        except Newer as error:
            logger.warning("event %s at %d changes no table: %s", message.id, message.sequence, error)
            self.left_alone.add(message.sequence)
            return False
        except PermanentError as error:
            # Whoever hears it parks it with this reason; the tables only have to get past it.
            logger.info("event %s at %d changes no table: %s", message.id, message.sequence, error)
            return False
        if isinstance(event, MessageParked | MessageRedriven):
            _keep_parked(session, event, message)
        self._evolve(session, event, message)
        return True

    def _left_alone(self) -> set[int]:
        """Return the sequences of journal entries that were not applied, and are newer or can be read now."""
        with self._database.read() as session:
            query = select(JournalEntry).where(col(JournalEntry.applied).is_(False))
            found: set[int] = set()
            for entries in session.exec(query).yield_per(100).partitions():
                unread = [message for message in map(as_message, entries) if _may_be_applied(message)]
                known = _known(session, unread)
                found |= {message.sequence for message in unread if (message.kind, message.id) not in known}
            return found

    def _stands(self) -> tuple[int, JournalEntry | None]:
        """Return how far the tables are, and the last event that changed them."""
        with self._database.read() as session:
            row = session.get(Position, NAME)
            applied = select(JournalEntry).where(col(JournalEntry.applied)).order_by(col(JournalEntry.sequence).desc())
            return (row.sequence if row else 0), session.exec(applied.limit(1)).first()

    async def _move_to(self, sequence: int) -> None:
        async with self._passed:
            self._position = sequence
            self._passed.notify_all()
        telemetry.PROJECTED.labels(NAME).set(sequence)


async def _what_is_lost(js: JetStreamContext, stands: int, entry: JournalEntry | None) -> str | None:
    """Say why the log is not the one that the tables contain, up to where they stand; None if it is."""
    try:
        last = (await js.stream_info(LOG)).state.last_seq
    except NotFoundError:
        last = 0
    if last < stands:
        wrong = f"the log ends at {last}, but the tables contain it up to {stands}: it was lost"
    elif entry and not await _holds(js, entry):
        # As far as before, or farther: it was filled by others before anybody looked.
        wrong = f"the log has another message at {entry.sequence} than the tables contain: it was lost and begun anew"
    else:
        return None
    return f"{wrong}; put it back with `meguri restore-log`"


async def _holds(js: JetStreamContext, entry: JournalEntry) -> bool:
    try:
        found = await js.get_msg(LOG, entry.sequence)
    except NotFoundError:
        return False
    return (found.subject, found.data or b"") == (subject(entry.kind, entry.key), entry.body)


def _commit(session: Session) -> None:
    count_rebuild(session.connection(), NAME)
    session.commit()


def _kinds(session: Session) -> dict[str, int]:
    """Return how many events of each kind the journal has."""
    counted = select(JournalEntry.kind, func.count()).group_by(JournalEntry.kind)
    return dict(session.exec(counted).all())


def _may_be_applied(message: Message) -> bool:
    try:
        return bool(message.event)
    except Newer:
        return True
    except PermanentError:
        return False


def _known(session: Session, messages: Sequence[Message]) -> set[tuple[str, str]]:
    """Return kind and id of those messages whose event was applied before."""
    ids = {message.id for message in messages}
    return {(kind, id_) for kind, id_ in session.connection().execute(_APPLIED, {"ids": list(ids)})}


def _keep_parked(session: Session, event: MessageParked | MessageRedriven, message: Message) -> None:
    if isinstance(event, MessageParked):
        row = Parked(
            consumer=event.consumer,
            stream=event.stream,
            sequence=event.sequence,
            event=event.event,
            reason=event.reason,
            time=message.time,
        )
        session.merge(row)
    elif letter := session.get(Parked, (event.consumer, event.stream, event.sequence)):
        session.delete(letter)


def _entry(message: Message, *, applied: bool) -> dict[str, Any]:
    return {
        "sequence": message.sequence,
        "event_id": message.id,
        "kind": message.kind,
        "key": message.key,
        "time": message.time,
        "headers": json.dumps(_lasting(message.headers)),
        "body": message.body,
        "applied": applied,
    }


def _lasting(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers without what was meant for the broker at the append, and what a restored message has more: the journal of a
    log that was put back is the same."""
    return {name: value for name, value in headers.items() if not name.startswith("Nats-Expected-") and name != STORED}


def as_message(entry: JournalEntry) -> Message:
    """Return a message of the log as the journal keeps it."""
    return Message.of(
        subject(entry.kind, entry.key), json.loads(entry.headers), entry.body, entry.sequence, utc(entry.time)
    )


def head(session: Session, key: str) -> int:
    """Return the last sequence of any event of a key; 0 when there is none."""
    return session.connection().execute(_HEAD, {"key": key}).scalar_one_or_none() or 0


def recorded_of(session: Session, event_ids: Sequence[str]) -> set[str]:
    """Return those of the ids whose event was applied."""
    found = session.connection().execute(_APPLIED, {"ids": event_ids}) if event_ids else ()
    return {id_ for _, id_ in found}


def recorded(session: Session, event_id: str) -> JournalEntry | None:
    """Return the applied event with this id."""
    query = select(JournalEntry).where(JournalEntry.event_id == event_id, col(JournalEntry.applied))
    return session.exec(query.order_by(col(JournalEntry.sequence))).first()


def parked(session: Session, service: str) -> Sequence[Parked]:
    """Return what the consumers of a service have parked, oldest first."""
    query = select(Parked).where(col(Parked.consumer).startswith(f"{service}-"))
    return session.exec(query.order_by(col(Parked.time))).all()


def hops(session: Session, event_id: str) -> int | None:
    """Return how many reactions lie between an event and what came from outside; None if the event is not known."""
    entry = recorded(session, event_id)
    return as_message(entry).hops if entry else None

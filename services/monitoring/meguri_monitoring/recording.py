"""Predictions into tables, and their windows planned: the first half of what becomes of them.

One replica at a time follows the stream, in order. What it plans is counted by all of them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Protocol

import polars as pl
from nats.aio.msg import Msg

from meguri_chassis import telemetry
from meguri_chassis.dead_letters import DeadLetters, Undeliverable
from meguri_chassis.log import EventLog
from meguri_chassis.projection import NAME as LOG_POSITION
from meguri_chassis.projection import Projection
from meguri_chassis.reader import Reader
from meguri_chassis.store import Database, locked_position, move_position
from meguri_chassis.work import WorkQueue
from meguri_contracts.errors import Malformed, MeguriError, PermanentError
from meguri_contracts.names import is_name
from meguri_contracts.topology import WINDOW_PREFIX
from meguri_monitoring import store
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.predictions import predictions, tables
from meguri_monitoring.predictions.predictions import Batch, ColumnDiffers
from meguri_monitoring.predictions.recent import Recent
from meguri_monitoring.predictions.writing import Writer
from meguri_monitoring.profiles.profiling import require_fitting
from meguri_monitoring.profiles.references import References
from meguri_monitoring.windows import planning, windows
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.planning import Task

logger = logging.getLogger(__name__)

NAME = "monitoring-predictions"
PAUSE_AT_MOST = 10.0
"""Seconds between tries to record predictions while the store or the database is away."""


class _Wiped(Exception):
    """The database has counted less than this replica knows it had."""


class Refused(Protocol):
    """Takes predictions whose columns do not fit, before they are set aside."""

    async def __call__(
        self, model: str, version: int, *, column: str, reason: str, sequence: int, rows: int
    ) -> None: ...


@dataclass(frozen=True)
class Hooks:
    """Who is told of what was recorded."""

    kept: Callable[[Collection[str]], None]
    """Takes the models of which predictions came into the tables."""
    refused: Refused


class Recorder:
    """Follows the predictions: keeps them, plans their windows, and tells all replicas what is to be counted.

    In a database that is new, or was wiped, planning begins behind what the tables of predictions have: that was counted
    before and had its effect. What they do not have, or lost, is kept and planned again from the stream.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        log: EventLog,
        dead_letters: DeadLetters,
        database: Database,
        projection: Projection,
        references: References,
        recent: Recent,
        queue: WorkQueue,
        replica: str,
        data_url: str,
        hooks: Hooks,
    ) -> None:
        self._reader = reader
        self._log = log
        self._dead_letters = dead_letters
        self._database = database
        self._projection = projection
        self._references = references
        self._recent = recent
        self._queue = queue
        self._replica = replica
        self._data_url = data_url
        self._hooks = hooks
        self._writer = Writer()
        self._position = 0
        self._lease_until = 0.0
        self._untold: list[Task] = []
        """Tasks that the broker has not taken yet."""
        self._trouble: str | None = None
        self._lost: str | None = None

    def trouble(self) -> str | None:
        """Why predictions are not recorded at the moment, in words for an operator."""
        return self._lost or self._trouble

    def what_is_lost(self, last: int) -> str | None:
        """Say why the stream, which ends at `last`, is not the one that was recorded; None if it may be.

        One that was begun anew counts its messages from 1: they would not be looked at before there are as many as there were.
        """
        lost = f"the stream of predictions ends at {last}, but was recorded up to {self._position}: it was lost"
        self._lost = f"{lost}; `meguri restore-log` has it go on behind that" if last < self._position else None
        return self._lost

    async def run(self) -> None:
        """Follow for ever."""
        await self._until_done(self._resume, "the start")
        async for messages in self._reader.after(lambda: self._position):
            try:
                await self._until_done(partial(self._take, messages), "predictions")
            except _Wiped:
                logger.warning("the windows are gone, beginning anew")
                await self._until_done(self._resume, "the start")
                self._reader.again()

    async def _resume(self) -> None:
        """Go on where the database stands. Raises Behind while its tables are not what the log says."""
        last = await self._log.last_sequence()
        await self._projection.reached(last)
        try:
            self._position = await asyncio.to_thread(self._begin, last)
        except store.Behind:
            # Wiped while we ran: the projection must look where its tables stand.
            self._projection.again()
            raise
        # A replica that died may have planned what it did not tell; to count twice changes nothing.
        self._untold = list(planning.tasks_of(await self._database.ask(window_store.all_uncounted)))
        await self._tell()

    def _begin(self, last: int) -> int:
        with self._database.write() as session:
            # Locked, so that one replica begins and the others see it.
            if (stands := locked_position(session, LOG_POSITION)) < last:
                raise store.Behind(f"the tables stand at {stands}, the log at {last}")
            if (position := store.position(session)) is not None:
                return position
            for row in store.versions(session):
                kept = tables.kept_up_to(tables.table_uri(self._data_url, row.model, row.version))
                rollout = store.rollout(session, row.model)
                window_store.keep_planner(session, row.model, row.version, rollout, windows.Planner(last=kept))
            move_position(session.connection(), store.PREDICTIONS, 0)
            return 0

    async def _until_done(self, step: Callable[[], Awaitable[None]], what: str) -> None:
        pause = 0.1
        while True:
            try:
                await step()
            except _Wiped:
                raise
            except Exception as error:
                self._trouble = f"{what} cannot be recorded: {error}"
                logger.log(
                    logging.WARNING if isinstance(error, MeguriError) else logging.ERROR, self._trouble, exc_info=error
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_AT_MOST)
            else:
                self._trouble = None
                return

    async def _take(self, messages: Sequence[Msg]) -> None:
        await self._tell()
        last = messages[-1].metadata.sequence.stream
        if not await self._is_our_turn(last):
            return
        event_id = f"{NAME}-{last}"
        with telemetry.processing(
            "predictions",
            [message.headers or {} for message in messages],
            journey=event_id,
            event_id=event_id,
            prompt=True,
            attributes={"messaging.batch.message_count": len(messages), "nats.stream.sequence": last},
        ):
            batches = await self._read(messages)
            batches = await self._that_fit(batches, messages)
            refused = await asyncio.to_thread(self._keep, batches)
            await self._refuse(
                {batch: refused[batch.sequence] for batch in batches if batch.sequence in refused}, messages
            )
            kept = [batch for batch in batches if batch.sequence not in refused]
            self._recent.add(messages[0].metadata.sequence.stream, last, kept)
            watched = {(one.model, one.version) for one in kept if await self._references.of(one.model, one.version)}
            self._untold += await asyncio.to_thread(self._plan, kept, watched, last)
            self._position = last
            await self._tell()
            self._hooks.kept({batch.model for batch in kept})

    async def _is_our_turn(self, last: int) -> bool:
        """Wait until nobody else records, or has recorded up to `last`. That two do it for a moment does no harm."""
        while time.time() > self._lease_until - window_store.LEASE / 2:
            others = await self._database.change(lambda session: window_store.take_lease(session, NAME, self._replica))
            if not others:
                self._lease_until = time.time() + window_store.LEASE
                break
            recorded = await self._database.ask(store.position)
            if recorded is None:
                raise _Wiped
            if recorded >= last:
                self._position = last
                return False
            await asyncio.sleep(min(others, 1.0))
        return True

    async def _tell(self) -> None:
        while self._untold:
            task = self._untold[0]
            await self._queue.put(f"{WINDOW_PREFIX}.{task.model}", task.to_json(), telemetry.carrier())
            self._untold.pop(0)

    async def _read(self, messages: Sequence[Msg]) -> list[Batch]:
        """Return what the messages say; those that cannot be read are set aside."""
        batches, odd = await asyncio.to_thread(_read, messages)
        for message, error in odd:
            await self._dead_letters.park(NAME, Undeliverable.of(message), error)
        return batches

    async def _that_fit(self, batches: Sequence[Batch], messages: Sequence[Msg]) -> list[Batch]:
        """Return the batches with the columns of their version's reference; the others are set aside."""
        odd: dict[Batch, ColumnDiffers] = {}
        for batch in batches:
            if reference := await self._references.of(batch.model, batch.version):
                try:
                    require_fitting(reference, batch.frame)
                except ColumnDiffers as error:
                    odd[batch] = error
        await self._refuse(odd, messages)
        return [batch for batch in batches if batch not in odd]

    async def _refuse(self, odd: Mapping[Batch, ColumnDiffers], messages: Sequence[Msg]) -> None:
        by_sequence = {message.metadata.sequence.stream: message for message in messages}
        for batch, error in odd.items():
            await self._hooks.refused(
                batch.model,
                batch.version,
                column=error.column,
                reason=str(error),
                sequence=batch.sequence,
                rows=batch.frame.height,
            )
            await self._dead_letters.park(NAME, Undeliverable.of(by_sequence[batch.sequence]), error)

    def _keep(self, batches: Sequence[Batch]) -> dict[int, ColumnDiffers]:
        """Add the batches to the tables of their versions; return by sequence why some do not fit."""
        refused: dict[int, ColumnDiffers] = {}
        for model, version, together in _by_version(batches):
            uri = tables.table_uri(self._data_url, model, version)
            try:
                self._writer.append(uri, together)
            except ColumnDiffers:
                # Nothing was written: each by itself, so that an odd one stops no other.
                for batch in together:
                    try:
                        self._writer.append(uri, [batch])
                    except ColumnDiffers as error:
                        refused[batch.sequence] = error
        return refused

    def _plan(self, batches: Sequence[Batch], watched: set[tuple[str, int]], last: int) -> list[Task]:
        with self._database.write() as session:
            position = locked_position(session, store.PREDICTIONS)
            if position < self._position:
                raise _Wiped
            tasks = [
                task
                for model, version, together in _by_version(batches)
                if (model, version) in watched
                for task in planning.planned(
                    session, model, version, [one for one in together if one.sequence > position]
                )
            ]
            for batch in batches:
                if batch.sequence > position and (heard := _heard(batch)):
                    episode_store.keep_heard(session, batch.model, heard)
            move_position(session.connection(), store.PREDICTIONS, max(position, last))
            return tasks


def _read(messages: Sequence[Msg]) -> tuple[list[Batch], list[tuple[Msg, PermanentError]]]:
    batches: list[Batch] = []
    odd: list[tuple[Msg, PermanentError]] = []
    for message in messages:
        sequence, stored = message.metadata.sequence.stream, message.metadata.timestamp
        try:
            read = predictions.read(message.data, sequence, stored)
            if strange := [batch.model for batch in read if not is_name(batch.model)]:
                raise Malformed(f"predictions are of model {strange[0]!r}, which is no name")
            batches += read
        except PermanentError as error:
            odd.append((message, error))
    return batches, odd


def _heard(batch: Batch) -> datetime | None:
    """When the last prediction was made; no later than it came, or a clock that is ahead would hide a silence."""
    latest: datetime | None = batch.frame.select(pl.col("time").max()).item()
    return min(latest, batch.stored) if latest and batch.stored else latest


def _by_version(batches: Iterable[Batch]) -> Iterator[tuple[str, int, list[Batch]]]:
    of_version = attrgetter("model", "version")
    for (model, version), together in groupby(sorted(batches, key=of_version), of_version):
        yield model, version, list(together)

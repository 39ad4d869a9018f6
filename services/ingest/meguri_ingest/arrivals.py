"""Arrivals into dataset versions: what waits for a dataset goes into one commit, one commit at a time.

A commit is first made in the table and then said in the log. Before each one, whatever the table holds and the log does not
is said, so a crash in between leaves nothing unsaid, and an event that is in the table is not committed again.
"""

import asyncio
import time
from collections.abc import Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime

from meguri_chassis import telemetry
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import Conflict, MeguriError, PermanentError
from meguri_contracts.events import DataArrived, DataCommitted
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Dataset
from meguri_ingest import fetching, reading, store, tables
from meguri_ingest.budget import Budget
from meguri_ingest.checks import Checked, check
from meguri_ingest.tables import Batch, DatasetTable, LostRace, StorageTrouble

TOGETHER = 256
"""Arrivals that go into one commit at most."""
RACES = 5
"""How often a commit may lose against another replica's before the arrivals are delivered again later."""

FORGET_AFTER = 120.0
"""Seconds after which trouble that was not met again is told no more; a failed arrival comes again sooner."""


class IdTaken(Conflict):
    """An arrival with the id of another one."""


class Nothing(PermanentError):
    """An arrival without rows and without a uri, or with both."""


@dataclass(frozen=True)
class Arrival:
    """An arrival in hand. `done` is resolved once its rows are in a version that was said, or with why they are not."""

    event: DataArrived
    message: Message
    done: asyncio.Future[None]
    trace: dict[str, str] = field(default_factory=telemetry.carrier)
    within: Context = field(default_factory=copy_context)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def succeed(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Lanes:
    """One lane per dataset; lanes go on side by side."""

    def __init__(
        self,
        *,
        log: EventLog,
        database: Database,
        projection: Projection,
        data_url: str,
        roots: Sequence[str],
        max_file_bytes: int,
        budget: Budget,
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._data_url = data_url
        self._roots = roots
        self._max_file_bytes = max_file_bytes
        self._budget = budget
        self._trouble: dict[str, tuple[float, str]] = {}
        self._waiting: dict[str, list[Arrival]] = {}
        self._driving: dict[str, asyncio.Task[None]] = {}

    async def take(self, event: DataArrived, message: Message) -> None:
        """Return when the arrival is in a dataset version. Raises why it was refused, or why it must come again."""
        arrival = Arrival(event, message, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(event.dataset, []).append(arrival)
        if event.dataset not in self._driving:
            self._driving[event.dataset] = asyncio.create_task(self._drive(event.dataset))
        await arrival.done

    def trouble(self, dataset: str) -> str | None:
        """Why arrivals of a dataset wait, in words for an operator; None while they do not."""
        since, why = self._trouble.get(dataset, (0.0, ""))
        # They may have gone to another replica, and been committed there.
        return why if why and time.monotonic() - since < FORGET_AFTER else None

    def warning(self) -> str | None:
        """Why arrivals of some datasets wait."""
        said = [
            f"arrivals for {dataset} wait: {why}" for dataset in sorted(self._trouble) if (why := self.trouble(dataset))
        ]
        return "; ".join(said) or None

    async def _drive(self, dataset: str) -> None:
        try:
            while waiting := self._waiting.pop(dataset, None):
                now, later = waiting[:TOGETHER], waiting[TOGETHER:]
                if later:
                    self._waiting[dataset] = [*later, *self._waiting.get(dataset, [])]
                try:
                    await self._settle(dataset, now)
                except Exception as error:  # noqa: BLE001 - each arrival's delivery answers it: later again, or set aside
                    if not isinstance(error, PermanentError):
                        self._trouble[dataset] = time.monotonic(), str(error) or type(error).__name__
                    for arrival in now:
                        arrival.fail(error)
                else:
                    self._trouble.pop(dataset, None)
        finally:
            del self._driving[dataset]

    async def _settle(self, dataset: str, arrivals: Sequence[Arrival]) -> None:
        await self._projection.reached(max(arrival.message.sequence for arrival in arrivals))
        try:
            declared = await asyncio.to_thread(self._declared, dataset)
        except PermanentError as error:
            arrivals = await self._without_settled(arrivals)
            for arrival in arrivals:
                arrival.fail(error)
            return
        left = await self._without_settled(arrivals)
        sizes = await asyncio.gather(*(self._size(arrival) for arrival in left))
        sized = [(arrival, size) for arrival, size in zip(left, sizes, strict=True) if size is not None]
        while sized:
            now, held = await self._what_fits(sized)
            try:
                await self._read_and_commit(dataset, now, declared)
            finally:
                self._budget.give_back(held)
            sized = sized[len(now) :]

    async def _what_fits(self, sized: Sequence[tuple[Arrival, int]]) -> tuple[list[Arrival], int]:
        """The arrivals that there is memory for, the first in any case, with the bytes that were taken for them."""
        (first, held), *others = sized
        await self._budget.take(held)
        now = [first]
        for arrival, size in others:
            # To wait for more with these in hand could be to wait for another lane that does the same.
            if not self._budget.try_take(size):
                break
            now.append(arrival)
            held += size
        return now, held

    async def _read_and_commit(self, dataset: str, arrivals: Sequence[Arrival], declared: Dataset) -> None:
        read = await asyncio.gather(*(self._read(arrival, declared) for arrival in arrivals))
        checked = [(arrival, rows) for arrival, rows in read if rows is not None]
        for _ in range(RACES):
            try:
                await self._commit(dataset, checked)
            except LostRace as error:
                race = error
            else:
                return
        raise race

    async def _commit(self, dataset: str, checked: Sequence[tuple[Arrival, Checked]]) -> None:
        table = await asyncio.to_thread(DatasetTable, f"{self._data_url}/{dataset}")
        await self._say_what_was_not_said(dataset, table)
        left = await self._without_settled([arrival for arrival, _ in checked])
        # The same event twice in one go: the first stands for both.
        rows = {arrival.message.id: rows for arrival, rows in reversed(checked)}
        distinct = {arrival.message.id: arrival for arrival in reversed(left)}
        if not distinct:
            return
        first = min(distinct.values(), key=lambda arrival: arrival.message.sequence)
        batches = [await self._batch(arrival, rows[id_]) for id_, arrival in sorted(distinct.items())]
        committed = await asyncio.to_thread(table.commit, dataset, batches, datetime.now(UTC))
        # In the trace of the arrival, or of the first of several; then the event begins a trace that links to all.
        saying = self._say(committed, first.message.id, first.message.journey, [one.trace for one in distinct.values()])
        await asyncio.create_task(saying, context=first.within)
        for arrival in left:
            arrival.succeed()

    async def _say_what_was_not_said(self, dataset: str, table: DatasetTable) -> None:
        known = await self._database.ask(lambda session: store.last_version(session, dataset))
        if known is not None and table.version < known:
            raise StorageTrouble(
                f"{table.uri} ends at version {table.version}, but version {known} was said: "
                "its files are lost or not mounted; put them back"
            )
        for committed in await asyncio.to_thread(table.said_since, known):
            first = committed.events[0].event
            await self._say(committed, first, first, [])

    async def _say(self, committed: DataCommitted, cause: str, journey: str, causes: Sequence[dict[str, str]]) -> None:
        id_ = derived_id(committed.dataset, committed.type, str(committed.version), committed.digest)
        links = causes if committed.starts_trace else ()
        hops = await self._database.ask(lambda session: store.hops(session, committed.causes))
        sequence = await self._log.append(committed, id=id_, cause=cause, journey=journey, hops=hops, causes=links)
        await self._projection.reached(sequence)

    async def _without_settled(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Answer the arrivals that were settled before, or whose id belongs to another; return the others."""
        ids = [arrival.message.id for arrival in arrivals]
        receipts = await self._database.ask(lambda session: store.known(session, ids))
        left = []
        for arrival in arrivals:
            message = arrival.message
            receipt = receipts.get(message.id)
            if receipt and not receipt.is_of(arrival.event.dataset, message.source):
                arrival.fail(
                    IdTaken(
                        f"id {message.id!r} was used by {receipt.producer} for dataset {receipt.dataset}: "
                        "send the data again with an id of its own"
                    )
                )
            elif receipt and receipt.is_settled:
                arrival.succeed()
            else:
                left.append(arrival)
        return left

    async def _size(self, arrival: Arrival) -> int | None:
        """Bytes that are read for an arrival; None if it was answered, because they cannot be."""
        event = arrival.event
        if event.uri is None or event.records is not None:
            return len(arrival.message.body)
        try:
            size = await asyncio.to_thread(fetching.size_of, event.uri, self._roots)
        except MeguriError as error:
            arrival.fail(error)
            return None
        # What is too large will be refused without being read.
        return size if size <= self._max_file_bytes else 0

    async def _read(self, arrival: Arrival, declared: Dataset) -> tuple[Arrival, Checked | None]:
        try:
            return arrival, await asyncio.to_thread(self._checked, arrival.event, declared)
        except MeguriError as error:
            arrival.fail(error)
            return arrival, None

    def _checked(self, event: DataArrived, declared: Dataset) -> Checked:
        if (event.records is None) == (event.uri is None):
            raise Nothing("exactly one of 'records' (rows) and 'uri' (a file) is needed")
        if event.records is not None:
            return check(reading.read_records(event.records), declared)
        assert event.uri is not None
        format_ = reading.format_of(event.uri, event.format)
        data = fetching.open_uri(event.uri, self._roots, limit=self._max_file_bytes)
        return check(reading.read_bytes(data, format_), declared)

    async def _batch(self, arrival: Arrival, checked: Checked) -> Batch:
        id_, producer = arrival.message.id, arrival.message.source
        if checked.bad.height:
            uri = quarantine_uri(self._data_url, arrival.event.dataset)
            await asyncio.to_thread(tables.quarantine, uri, checked.bad, id_, producer, arrival.message.time)
        return Batch(event=id_, producer=producer, good=checked.good, quarantined=checked.bad.height)

    def _declared(self, dataset: str) -> Dataset:
        with self._database.read() as session:
            return store.declared(session, dataset)


def quarantine_uri(data_url: str, dataset: str) -> str:
    """Where the bad rows of a dataset are kept."""
    return f"{data_url}/_quarantine/{dataset}"

"""Events and predictions in, events out."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter

from nats.aio.msg import Msg
from sqlmodel import Session

from meguri_chassis import telemetry
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import hears
from meguri_chassis.dead_letters import DeadLetters, Undeliverable
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_chassis.profiles import Profile
from meguri_chassis.projection import NAME as LOG_POSITION
from meguri_chassis.projection import Projection
from meguri_chassis.reader import Reader
from meguri_chassis.store import Database, locked_position, move_position
from meguri_contracts.errors import Invalid, Malformed, MeguriError, PermanentError
from meguri_contracts.events import Artifact, Event, RolloutChanged
from meguri_contracts.names import derived_id, is_name
from meguri_monitoring import episodes, predictions, store, tables, windows
from meguri_monitoring.predictions import Batch

logger = logging.getLogger(__name__)

PAUSE_AT_MOST = 10.0
"""Seconds between tries to count predictions while the store or the database is away."""
NAME = "monitoring-predictions"


@hears(RolloutChanged)
def end_episode(rollout: RolloutChanged, session: Session) -> Sequence[Event]:
    """Another version is champion: the drift that was seen of the one before is over."""
    return episodes.resolve(store.state(session, rollout.model), rollout)


class _Wiped(Exception):
    """The database has counted less than this replica knows it had."""


class Watcher:
    """Follows the predictions: keeps them, counts them into windows, and says what follows from each closed window.

    In a database that is new, or was wiped, counting begins behind what the tables of predictions have: that was counted
    before and had its effect. What they do not have, or lost, is kept and counted again from the stream.
    """

    def __init__(
        self,
        *,
        reader: Reader,
        log: EventLog,
        dead_letters: DeadLetters,
        database: Database,
        projection: Projection,
        decider: Decider,
        artifacts: Artifacts,
        data_url: str,
        kept: Callable[[Iterable[str]], None],
    ) -> None:
        self._reader = reader
        self._log = log
        self._dead_letters = dead_letters
        self._database = database
        self._projection = projection
        self._decider = decider
        self._artifacts = artifacts
        self._data_url = data_url
        self._say_kept = kept
        """Told of which models predictions came into the tables."""
        self._references: dict[tuple[str, int], Profile | None] = {}
        self._position = 0
        self._trouble: str | None = None

    def trouble(self) -> str | None:
        """Why predictions are not counted at the moment, in words for an operator."""
        return self._trouble

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
        await self._conclude()

    def _begin(self, last: int) -> int:
        with self._database.write() as session:
            # Locked, so that one replica begins and the others see it.
            if (stands := locked_position(session, LOG_POSITION)) < last:
                raise store.Behind(f"the tables stand at {stands}, the log at {last}")
            if (position := store.position(session)) is not None:
                return position
            for row in store.versions(session):
                kept = tables.kept_up_to(tables.table_uri(self._data_url, row.model, row.version))
                rollout = store.state(session, row.model).rollout
                store.keep_open_window(session, row.model, row.version, rollout, windows.Window(last=kept))
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
                self._trouble = f"{what} cannot be counted: {error}"
                logger.log(
                    logging.WARNING if isinstance(error, MeguriError) else logging.ERROR, self._trouble, exc_info=error
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_AT_MOST)
            else:
                self._trouble = None
                return

    async def _take(self, messages: Sequence[Msg]) -> None:
        last = messages[-1].metadata.sequence.stream
        event_id = f"{NAME}-{last}"
        with telemetry.processing(
            "predictions",
            [message.headers or {} for message in messages],
            journey=event_id,
            event_id=event_id,
            prompt=True,
            attributes={"messaging.batch.message_count": len(messages), "nats.stream.sequence": last},
        ):
            batches = [batch for message in messages for batch in await self._read(message)]
            await self._refer(batches)
            refused = await asyncio.to_thread(self._keep, batches)
            for message in messages:
                if error := refused.get(message.metadata.sequence.stream):
                    await self._dead_letters.park(NAME, Undeliverable.of(message), error)
            kept = [batch for batch in batches if batch.sequence not in refused]
            await asyncio.to_thread(self._count, kept, last)
            self._position = last
            self._say_kept({batch.model for batch in kept})
            await self._conclude()

    async def _read(self, message: Msg) -> Sequence[Batch]:
        sequence = message.metadata.sequence.stream
        try:
            batches = await asyncio.to_thread(predictions.read, message.data, sequence)
            if odd := [batch.model for batch in batches if not is_name(batch.model)]:
                raise Malformed(f"predictions are of model {odd[0]!r}, which is no name")
            return batches
        except PermanentError as error:
            await self._dead_letters.park(NAME, Undeliverable.of(message), error)
            return []

    async def _refer(self, batches: Sequence[Batch]) -> None:
        """Have the reference profile of every version in hand; None for one that was never rolled out."""
        for batch in batches:
            key = (batch.model, batch.version)
            if self._references.get(key):
                continue
            artifact = await self._artifact(*key)
            if artifact is None:
                # The first predictions of a version can be faster than the news that it serves.
                await self._projection.reached(await self._log.last_sequence())
                artifact = await self._artifact(*key)
            if artifact is None:
                logger.warning("predictions of %s version %d have no reference: kept, not judged", *key)
            self._references[key] = await self._profile(artifact) if artifact else None

    async def _profile(self, artifact: Artifact) -> Profile | None:
        try:
            return Profile.from_json(await self._artifacts.get(artifact))
        except PermanentError:
            # One model's lost reference must not keep the others from being watched; it is asked for again each time.
            logger.exception("predictions are kept and not judged: their reference profile cannot be read")
            return None

    async def _artifact(self, model: str, version: int) -> Artifact | None:
        return await self._database.ask(lambda session: store.reference(session, model, version))

    def _keep(self, batches: Sequence[Batch]) -> dict[int, Invalid]:
        """Add the batches to the tables of their versions; return by sequence why some do not fit."""
        refused: dict[int, Invalid] = {}
        by_version = attrgetter("model", "version")
        for _, group in groupby(sorted(batches, key=by_version), by_version):
            together = list(group)
            try:
                self._append(together)
            except Invalid:
                # Nothing was written: each by itself, so that an odd one stops no other.
                for batch in together:
                    try:
                        self._append([batch])
                    except Invalid as error:
                        refused[batch.sequence] = error
        return refused

    def _append(self, batches: Sequence[Batch]) -> None:
        model, version = batches[0].model, batches[0].version
        if reference := self._references[model, version]:
            for batch in batches:
                windows.require_features(batch, reference)
        tables.append(tables.table_uri(self._data_url, model, version), batches)

    def _count(self, batches: Sequence[Batch], last: int) -> None:
        with self._database.write() as session:
            position = locked_position(session, store.PREDICTIONS)
            if position < self._position:
                raise _Wiped
            for batch in batches:
                if batch.sequence > position:
                    self._count_one(session, batch)
            move_position(session.connection(), store.PREDICTIONS, max(position, last))

    def _count_one(self, session: Session, batch: Batch) -> None:
        reference = self._references[batch.model, batch.version]
        if reference is None or not batch.ids:
            return
        rule, rollout = store.rule(session, batch.model), store.state(session, batch.model).rollout
        window = store.open_window(session, batch.model, batch.version, rollout)
        closed, left = windows.add(window, batch, reference, rule.window_rows)
        store.keep_open_window(session, batch.model, batch.version, rollout, left)
        for part, one in enumerate(closed):
            store.keep_judged(session, batch.model, rollout, episodes.judge(batch.version, one, reference, rule, part))

    async def _conclude(self) -> None:
        """Say what follows from each judged window, in their order; again after a crash in between."""
        rows = await self._database.ask(
            lambda session: [(row, store.state(session, row.model).hops) for row in store.undecided(session)]
        )
        for row, hops in rows:
            cause = _cause(row)
            await self._decider.carry_out(partial(_follows, row), cause=cause, journey=cause, hops=hops)
            await self._database.change(partial(store.mark_decided, id_=row.id or 0))


def _cause(row: store.JudgedRow) -> str:
    """The same for the same predictions, however often they were counted."""
    window, part = row.judged["window"], row.judged.get("part", 0)
    place = (row.version, row.rollout, window["first"], window["last"], part)
    return derived_id(row.model, "window", *map(str, place))


def _follows(row: store.JudgedRow, session: Session) -> Sequence[Event]:
    state, rule = store.state(session, row.model), store.rule(session, row.model)
    if row.rollout != state.rollout:
        return []
    # Windows without a verdict may lie between those that count.
    return episodes.decide(state, store.judged_up_to(session, row, 4 * rule.windows), rule)

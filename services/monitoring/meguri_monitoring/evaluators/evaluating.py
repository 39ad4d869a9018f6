"""Runs evaluators on the predictions of their models, keeps what they give, and watches its numbers.

An evaluator follows the tables of predictions in the order of the stream. Its own table says how far it has come, the database
how far its rows are counted into windows: a replica that is killed in between leaves nothing out and does nothing twice, and of
two that do the same at once one is too late.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import uuid4

import polars as pl
from sqlmodel import Session

from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database, Position
from meguri_contracts.errors import NotFound, TemporaryError
from meguri_contracts.events import MeasuresRefilled
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Watch
from meguri_monitoring import store
from meguri_monitoring.evaluators import evaluation, measure_tables, measure_windows, measures, plugins, requests
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.evaluators.store import MeasureWindowRow
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.writing import TableBusy

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Least seconds between two looks, and how long a request may be on its way in several messages."""
PAUSE_AT_MOST = 60.0
"""Seconds between tries of an evaluator that raises."""


@dataclass
class _Trouble:
    text: str
    pause: float = EVERY
    until: float = 0.0


class Evaluators:
    """Looks at models whose specs name evaluators, soon after predictions of theirs came into the tables."""

    def __init__(
        self, *, log: EventLog, database: Database, projection: Projection, decider: Decider, data_url: str
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._decider = decider
        self._data_url = data_url
        self._due: dict[str, int] = {}
        """Sequence up to which predictions are to be looked at; 0 for all that are kept."""
        self._something = asyncio.Event()
        self._settled = 0
        """Up to here predictions were kept a while ago: requests that began there are whole."""
        self._troubles: dict[tuple[str, str], _Trouble] = {}
        self._refilling = asyncio.Lock()

    def look(self, models: Iterable[str]) -> None:
        """Have models looked at: predictions of theirs came."""
        self._due.update(dict.fromkeys(models, 0))
        self._something.set()

    def trouble(self) -> str | None:
        """Which evaluators do not work at the moment and why, in words for an operator."""
        return "; ".join(trouble.text for trouble in self._troubles.values()) or None

    async def run(self) -> None:
        """Look for ever."""
        await self._begin()
        while True:
            await self._something.wait()
            self._something.clear()
            due, self._due = self._due, {}
            try:
                kept = await self._database.ask(store.position) or 0
                settled, self._settled = self._settled, kept
                for model, wanted in sorted(due.items()):
                    await self._look_at(model, settled, wanted or kept)
            except TemporaryError as error:
                logger.warning("evaluators wait: %s", error)
                self._again(due)
            await asyncio.sleep(EVERY)

    async def _begin(self) -> None:
        """A replica that died may have left something to do, so everything is due."""
        while True:
            try:
                await self._projection.reached(await self._log.last_sequence())
                self.look(row.name for row in await self._database.ask(store.models))
            except TemporaryError as error:
                logger.warning("evaluators do not begin yet: %s", error)
                await asyncio.sleep(EVERY)
            else:
                return

    def _again(self, due: dict[str, int]) -> None:
        self._due = due | self._due
        self._something.set()

    async def _look_at(self, model: str, settled: int, wanted: int) -> None:
        rule = await self._database.ask(lambda session: store.rule(session, model))
        names = {watch.evaluator for watch in rule.evaluators}
        self._troubles = {key: one for key, one in self._troubles.items() if key[0] != model or key[1] in names}
        for watch in rule.evaluators:
            await self._try(model, watch, settled)
        if rule.evaluators and (settled < wanted or any(key[0] == model for key in self._troubles)):
            self._again({model: wanted})

    async def _try(self, model: str, watch: Watch, settled: int) -> None:
        key = model, watch.evaluator
        trouble = self._troubles.get(key)
        if trouble and time.monotonic() < trouble.until:
            return
        try:
            await asyncio.to_thread(self._follow, model, watch, settled)
            await self._conclude(model, watch.evaluator)
        except Exception as error:
            # Whatever a plug-in raises, it must keep neither others from their work nor itself once it is put right.
            pause = min(2 * trouble.pause, PAUSE_AT_MOST) if trouble else EVERY
            text = f"evaluator {watch.evaluator} of {model} does not work: {error or type(error).__name__}"
            self._troubles[key] = _Trouble(text, pause, time.monotonic() + pause)
            logger.error("%s; next try in %.0f s", text, pause, exc_info=error)
        else:
            self._troubles.pop(key, None)

    # --- predictions into rows

    def _follow(self, model: str, watch: Watch, settled: int) -> None:
        evaluator = plugins.load(watch.evaluator)
        uri = measure_tables.table_uri(self._data_url, model, watch.evaluator)
        while True:
            # First where the table stands: whoever writes meanwhile is noticed.
            stood = measure_tables.kept_up_to(uri)
            position = measure_windows.count(self._database, model, watch, uri)
            part = requests.next_part(self._predictions(model), position, settled)
            if part is None:
                return
            put = partial(measure_tables.append, uri, after=stood, last=part.last)
            try:
                evaluation.evaluate(model, evaluator, part, put)
            except TableBusy as error:
                logger.info("another replica was faster: %s", error)
            else:
                measure_windows.count(self._database, model, watch, uri, part.last)

    def _predictions(self, model: str, since: datetime | None = None) -> dict[int, pl.LazyFrame]:
        with self._database.read() as session:
            versions = [row.version for row in store.versions(session, model)]
        scanned = {version: tables.scan(tables.table_uri(self._data_url, model, version)) for version in versions}
        found = {version: rows for version, rows in scanned.items() if rows is not None}
        return {v: rows.filter(pl.col("time") >= since) for v, rows in found.items()} if since else found

    # --- rows into windows, windows into episodes

    async def _conclude(self, model: str, evaluator: str) -> None:
        """Say what follows from each window, in their order; again after a crash in between."""
        for row, hops in await self._database.ask(partial(_undecided, model, evaluator)):
            before = await self._database.ask(partial(measure_windows.open_episodes, row=row))
            for subject in measures.subjects(measure_store.judged(row.judged)):
                cause = derived_id(model, "measure", subject, str(row.rollout), str(row.judged["number"]))
                decide = partial(measure_windows.follows, row, subject)
                await self._decider.carry_out(decide, cause=cause, journey=cause, hops=hops)
            await self._decider.settled()
            await self._database.change(partial(measure_windows.conclude, row=row, before=before))

    # --- again

    async def refill(self, model: str, evaluator: str, since: datetime | None, actor: str) -> MeasuresRefilled:
        """Evaluate again what is kept, add what the table does not have, and say so. Raises NotFound."""
        async with self._refilling:
            refilled = await asyncio.to_thread(self._refill, model, evaluator, since, actor)
            cause = uuid4().hex
            await self._decider.carry_out(lambda _: [refilled], cause=cause, journey=cause)
        return refilled

    def _refill(self, model: str, name: str, since: datetime | None, actor: str) -> MeasuresRefilled:
        evaluator = plugins.load(name)
        uri = measure_tables.table_uri(self._data_url, model, name)
        with self._database.read() as session:
            position = session.get(Position, measure_store.position(model, name))
        if position is None:
            raise NotFound(f"evaluator {name!r} has evaluated nothing of {model!r} yet")
        predictions = self._predictions(model, since)
        first = last = rows = left_out = written = 0
        while predictions and (part := requests.next_part(predictions, last, position.sequence)):
            given, missing, new = evaluation.evaluate(model, evaluator, part, partial(measure_tables.refill, uri))
            first, last = first or part.first, part.last
            rows, left_out, written = rows + given, left_out + missing, written + new
        return MeasuresRefilled(
            model=model,
            evaluator=name,
            rows=rows,
            left_out=left_out,
            written=written,
            first=first,
            last=last,
            actor=actor,
        )


def _undecided(model: str, evaluator: str, session: Session) -> list[tuple[MeasureWindowRow, int]]:
    """The windows from which nothing was concluded yet, with the hops of what follows from them."""
    hops = store.state(session, model).hops
    return [(row, hops) for row in measure_store.undecided(session, model, evaluator)]

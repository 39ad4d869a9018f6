"""Has predictions evaluated in the order of the stream, each once, and again when somebody asks for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial

import polars as pl

from meguri_chassis.store import Database
from meguri_contracts.events import MeasuresRefilled
from meguri_contracts.spec import Watch
from meguri_monitoring import store
from meguri_monitoring.evaluators import measure_tables, measure_windows, requests
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.evaluators.evaluation import Evaluated, Evaluation, Put
from meguri_monitoring.evaluators.requests import Part
from meguri_monitoring.evaluators.running import PlugInFailed, PlugIns
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.writing import TableBusy

logger = logging.getLogger(__name__)

FEWER = 1000
"""Rows that an evaluator is given at once after it has failed: one that is slow gets on, and less is done again."""

Tell = Callable[[int, Mapping[str, str]], Awaitable[None]]
"""Takes up to which sequence it goes on, and by id why each request is set aside."""


class Follower:
    """Its own table says how far an evaluator has come, the database how far its rows are counted into windows."""

    def __init__(self, database: Database, plug_ins: PlugIns, data_url: str) -> None:
        self._database = database
        self._plug_ins = plug_ins
        self._data_url = data_url

    async def follow(self, model: str, watch: Watch, settled: int, failures: int, *, sifting: bool, tell: Tell) -> None:
        """Evaluate what is kept up to sequence `settled`; `tell` of requests that are set aside before it goes on without them.

        An evaluator that failed before gets less at once. When `sifting`, requests that fail alone are set aside.
        Raises PlugInFailed, and Invalid when the rows do not fit their table.
        """
        max_rows = FEWER if failures else requests.MAX_ROWS
        evaluation = Evaluation(self._plug_ins, model, watch.evaluator)
        uri = measure_tables.table_uri(self._data_url, model, watch.evaluator)
        while True:
            stood, part = await asyncio.to_thread(self._next, model, watch, uri, settled, max_rows)
            if part is None:
                return
            put = partial(measure_tables.append, uri, after=stood, last=part.last)
            try:
                done = await evaluation.of(part, put, sifting=sifting)
            except TableBusy as error:
                logger.info("another replica was faster: %s", error)
            else:
                if done.failed:
                    await tell(part.last, done.failed)
                await asyncio.to_thread(measure_windows.count, self._database, model, watch, uri, part.last)

    async def refill(
        self, model: str, name: str, since: datetime | None, actor: str
    ) -> tuple[MeasuresRefilled, dict[str, str]]:
        """Evaluate again what is kept and add what the table does not have; return also the requests that fail alone, by id
        why. Raises NotFound, PlugInFailed and Invalid."""
        position = await self._database.ask(lambda session: measure_store.stands(session, model, name))
        evaluation = Evaluation(self._plug_ins, model, name)
        put = partial(measure_tables.refill, measure_tables.table_uri(self._data_url, model, name))
        predictions = await asyncio.to_thread(self._predictions, model, since)
        first = last = 0
        done: list[Evaluated] = []
        while part := await asyncio.to_thread(requests.next_part, predictions, last, position.sequence):
            done.append(await self._again(evaluation, part, put))
            first, last = first or part.first, part.last
        refilled = MeasuresRefilled(
            model=model,
            evaluator=name,
            rows=sum(one.rows for one in done),
            left_out=sum(one.left_out for one in done),
            written=sum(one.new for one in done),
            first=first,
            last=last,
            actor=actor,
        )
        return refilled, {request: why for one in done for request, why in one.failed.items()}

    async def _again(self, evaluation: Evaluation, part: Part, put: Put) -> Evaluated:
        try:
            return await evaluation.of(part, put)
        except PlugInFailed as error:
            logger.warning("it is looked for the requests that fail: %s", error)
            return await evaluation.of(part, put, sifting=True)

    def _next(self, model: str, watch: Watch, uri: str, settled: int, max_rows: int) -> tuple[int, Part | None]:
        """Where the table stands, and what comes next."""
        # First where the table stands: whoever writes meanwhile is noticed.
        stood = measure_tables.kept_up_to(uri)
        position = measure_windows.count(self._database, model, watch, uri)
        return stood, requests.next_part(self._predictions(model), position, settled, max_rows)

    def _predictions(self, model: str, since: datetime | None = None) -> dict[int, pl.LazyFrame]:
        with self._database.read() as session:
            versions = [row.version for row in store.versions(session, model)]
        scanned = {version: tables.scan(tables.table_uri(self._data_url, model, version)) for version in versions}
        found = {version: rows for version, rows in scanned.items() if rows is not None}
        return {v: rows.filter(pl.col("time") >= since) for v, rows in found.items()} if since else found

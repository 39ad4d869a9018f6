"""Runs evaluators on the predictions of their models, keeps what they give, and watches its numbers.

An evaluator follows the tables of predictions in the order of the stream. Its own table says how far it has come, the database
how far its rows are counted into windows: a replica that is killed in between leaves nothing out and does nothing twice, and of
two that do the same at once one is too late.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import uuid4

import polars as pl
from opentelemetry import baggage, context
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags
from prometheus_client import Counter
from sqlmodel import Session

from meguri_chassis import telemetry
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database, Position, locked_position, move_position, utc
from meguri_contracts.errors import NotFound, TemporaryError
from meguri_contracts.events import Event, MeasuresRefilled
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Watch
from meguri_monitoring import (
    episodes,
    looks,
    measure_store,
    measure_tables,
    measures,
    plugins,
    requests,
    store,
    tables,
    window_store,
)
from meguri_monitoring.episodes import State
from meguri_monitoring.judging import Judged
from meguri_monitoring.plugins import Evaluator
from meguri_monitoring.requests import Part
from meguri_monitoring.tables import TableBusy

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Least seconds between two looks, and how long a request may be on its way in several messages."""
PAUSE_AT_MOST = 60.0
"""Seconds between tries of an evaluator that raises."""
LINKS = 20
"""Traces of predictions that a span is linked to."""
TRIES = 5
"""How often a table may be written by others before it is left for later."""
ROWS = Counter("meguri_measure_rows", "Rows of evaluators.", ["model", "evaluator", "result"])


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
        position = self._count(model, watch, uri, 0)
        while part := requests.next_part(self._predictions(model), position, settled):
            try:
                self._evaluate(model, evaluator, uri, part)
            except TableBusy as error:
                logger.info("another replica evaluates: %s", error)
            position = self._count(model, watch, uri, part.last)

    def _predictions(self, model: str, since: datetime | None = None) -> dict[int, pl.LazyFrame]:
        with self._database.read() as session:
            versions = [row.version for row in store.versions(session, model)]
        scanned = {version: tables.scan(tables.table_uri(self._data_url, model, version)) for version in versions}
        found = {version: rows for version, rows in scanned.items() if rows is not None}
        return {v: rows.filter(pl.col("time") >= since) for v, rows in found.items()} if since else found

    def _evaluate(
        self, model: str, evaluator: Evaluator, uri: str, part: Part, *, again: bool = False
    ) -> tuple[int, int]:
        """Have a part evaluated and written; return how many rows the evaluator gave, and how many of them are new."""
        name = evaluator.name
        about = {"meguri.model": model, "meguri.evaluator": name}
        sequences = {"meguri.sequence.first": part.first, "meguri.sequence.last": part.last}
        with _trace(f"evaluate {name}", about | sequences, _links(part), f"{model}-{name}-{part.last}"):
            if part.incomplete:
                logger.error(
                    "evaluator %s of %s: %d requests are left out because rows of theirs have not come; "
                    "`meguri evaluate` takes them in once they are there",
                    name,
                    model,
                    part.incomplete,
                )
            rows = plugins.evaluated(evaluator, part.rows)
            if rows is None:
                return 0, 0
            with telemetry.tracer.start_as_current_span(f"write {name}", attributes=about) as span:
                left = plugins.written(evaluator, rows)
                span.set_attributes({"meguri.rows.in": rows.height, "meguri.rows.written": left.height})
                if left.height != rows.height:
                    logger.error(
                        "evaluator %s of %s: %d rows in, %d rows written", name, model, rows.height, left.height
                    )
                ROWS.labels(model, name, "in").inc(rows.height)
                ROWS.labels(model, name, "written").inc(left.height)
                own = {
                    "_sequence": pl.lit(part.last, pl.Int64),
                    "_trace": pl.lit(telemetry.current_trace_id()),
                    "_left_out": pl.lit(rows.height - left.height, pl.Int64),
                }
                left = left.with_columns(**own)
                if not left.height:
                    return rows.height, 0
                if again:
                    return rows.height, measure_tables.refill(uri, left)
                return rows.height, left.height * measure_tables.append(uri, left, part.last)

    # --- rows into windows

    def _count(self, model: str, watch: Watch, uri: str, last: int) -> int:
        """Count what the table has into windows, and return up to which prediction the evaluator has come.

        `last` is where it has come without any rows for the table. In a database that was wiped windows begin anew.
        """
        name = measure_store.position(model, watch.evaluator)
        written = measure_tables.kept_up_to(uri)
        with self._database.write() as session:
            if session.get(Position, name) is None:
                move_position(session.connection(), name, written)
            position = locked_position(session, name)
            end = max(position, written, last)
            if end > position:
                state = store.state(session, model)
                rows = _rows(uri, watch, position, end, state.champion or 0)
                known = measure_store.watched(session, model, watch.evaluator)
                known, closed = measures.add(known, rows, watch, state.rollout)
                measure_store.keep_watched(session, model, watch.evaluator, known)
                rule = store.rule(session, model)
                for window in closed:
                    judged = measures.judge(window, watch, rule, state.champion or 0)
                    measure_store.keep_window(session, model, watch.evaluator, state.rollout, judged, window.traces)
                move_position(session.connection(), name, end)
        return end

    async def _conclude(self, model: str, evaluator: str) -> None:
        """Say what follows from each window, in their order; again after a crash in between."""
        rows = await self._database.ask(
            lambda session: [
                (row, store.state(session, model).hops) for row in measure_store.undecided(session, model, evaluator)
            ]
        )
        for row, hops in rows:
            for subject in measures.subjects(measure_store.judged(row.judged)):
                cause = derived_id(model, "measure", subject, str(row.rollout), str(row.judged["number"]))
                decide = partial(_follows, row, subject)
                await self._decider.carry_out(decide, cause=cause, journey=cause, hops=hops)
            await self._database.change(partial(measure_store.mark_decided, id_=row.id or 0))

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
        first = last = rows = written = 0
        while predictions and (part := requests.next_part(predictions, last, position.sequence)):
            given, new = self._evaluate_again(model, evaluator, uri, part)
            first, last = first or part.first, part.last
            rows, written = rows + given, written + new
        return MeasuresRefilled(
            model=model, evaluator=name, rows=rows, written=written, first=first, last=last, actor=actor
        )

    def _evaluate_again(self, model: str, evaluator: Evaluator, uri: str, part: Part) -> tuple[int, int]:
        for _ in range(TRIES - 1):
            try:
                return self._evaluate(model, evaluator, uri, part, again=True)
            except TableBusy as error:
                logger.info("tried again: %s", error)
        return self._evaluate(model, evaluator, uri, part, again=True)


def _rows(uri: str, watch: Watch, after: int, upto: int, version: int) -> list[measures.Row]:
    """Return the rows about a version's predictions after one sequence up to another, in the order of the table.

    What was filled in later is about predictions of before and is not among them.
    """
    table = measure_tables.scan(uri)
    if table is None or not watch.numbers:
        return []
    wanted = (pl.col("_sequence") > after) & (pl.col("_sequence") <= upto) & (pl.col("_version") == version)
    there = table.collect_schema().names()
    numbers = [pl.col(n).cast(pl.Float64) if n in there else pl.lit(None, pl.Float64).alias(n) for n in watch.numbers]
    about = ["key", "producer", "time", "_sequence", "_trace", "_left_out"]
    found = table.filter(wanted).select(*about, *(number.name.prefix("number_") for number in numbers))
    rows = found.collect().sort("_sequence", maintain_order=True).rows()
    return [
        measures.Row(key, producer, utc(when).isoformat(), sequence, trace_id, left_out, tuple(values))
        for key, producer, when, sequence, trace_id, left_out, *values in rows
    ]


def _follows(row: measure_store.MeasureWindowRow, subject: str, session: Session) -> list[Event]:
    """Say what a window begins or ends about one number."""
    state, rule = store.state(session, row.model), store.rule(session, row.model)
    if row.rollout != state.rollout:
        return []
    windows = [measure_store.judged(one.judged) for one in measure_store.up_to(session, row, rule.windows)]
    seen = [
        replace(measures.look(window, subject), inputs_moved=_inputs_moved(session, state, window))
        for window in windows
        if subject in measures.subjects(window)
    ]
    return list(episodes.decide_look(state, seen, rule, datetime.fromisoformat(windows[-1].ended)))


def _inputs_moved(session: Session, state: State, window: Judged) -> bool | None:
    """Whether the inputs moved while the predictions of a window of measures came; None if that is not known."""
    seen = [one for one in window_store.latest(session, state.model, window.version, state.rollout, 100) if one.judged]
    same = [one for one in seen if one.window.last >= window.window.first] or seen[-1:]
    return any(one.moved(about) for one in same for about in looks.INPUTS) if same else None


@contextmanager
def _trace(name: str, attributes: dict[str, str | int], links: list[Link], journey: str) -> Iterator[None]:
    """A span in a trace of its own; what is logged within carries its id."""
    token = context.attach(baggage.set_baggage(telemetry.JOURNEY, journey, Context()))
    try:
        with telemetry.tracer.start_as_current_span(name, attributes=attributes, links=links):
            yield
    finally:
        context.detach(token)


def _links(part: Part) -> list[Link]:
    """Links to the traces of the latest predictions."""
    ids = pl.concat([rows["trace_id"] for rows in part.rows.values()] or [pl.Series([], dtype=pl.String)])
    latest = ids.filter(ids.str.contains(r"^[0-9a-f]{32}$")).unique(maintain_order=True).tail(LINKS)
    # The predictions' own spans are not kept; the trace is what one wants to get to.
    return [
        Link(SpanContext(int(id_, 16), int(id_[16:], 16) or 1, is_remote=True, trace_flags=TraceFlags(1)))
        for id_ in latest
        if int(id_, 16)
    ]

"""Has a part of the predictions evaluated and its rows written, in a trace of its own."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import polars as pl
from opentelemetry import baggage, context
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags
from prometheus_client import Counter

from meguri_chassis import telemetry
from meguri_monitoring.evaluators import plugins
from meguri_monitoring.evaluators.requests import Part
from meguri_monitoring.evaluators.running import PlugIns
from meguri_monitoring.evaluators.sifting import sift

logger = logging.getLogger(__name__)

LINKS = 20
"""Traces of predictions that a span is linked to."""
ROWS = Counter("meguri_measure_rows", "Rows of evaluators.", ["model", "evaluator", "result"])

Put = Callable[[pl.DataFrame], int]
"""Puts rows into the table; returns how many of them are new there."""


@dataclass(frozen=True)
class Evaluated:
    """What became of a part of the predictions."""

    rows: int = 0
    """That the evaluator gave."""
    left_out: int = 0
    """Of these, those that its writer did not let through."""
    new: int = 0
    """Of these, those that the table did not have."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """By id why requests are set aside."""


class Evaluation:
    """Has an evaluator evaluate predictions of a model."""

    def __init__(self, plug_ins: PlugIns, model: str, evaluator: str) -> None:
        self._plug_ins = plug_ins
        self._name = evaluator
        self._model = model
        self._about = {"meguri.model": model, "meguri.evaluator": evaluator}

    async def of(self, part: Part, put: Put, *, sifting: bool = False) -> Evaluated:
        """Evaluate a part of the predictions; `sifting` sets aside the requests that fail alone.

        Raises PlugInFailed, Invalid when rows of different requests have the same key, and whatever `put` raises.
        """
        sequences = {"meguri.sequence.first": part.first, "meguri.sequence.last": part.last}
        journey = f"{self._model}-{self._name}-{part.last}"
        with _trace(f"evaluate {self._name}", self._about | sequences, _links(part), journey=journey):
            if part.incomplete:
                self._leaves_out(f"{part.incomplete} requests", "rows of theirs have not come")
            lots, failed = await self._lots(part, sifting=sifting)
            for request, reason in failed.items():
                self._leaves_out(f"request {request}", f"it fails on that alone: {reason}")
            given, left = sum(rows for rows, _ in lots), [rows for _, rows in lots if rows.height]
            written = sum(rows.height for rows in left)
            new = await asyncio.to_thread(put, self._to_keep(left, part.last, given - written)) if left else 0
            ROWS.labels(self._model, self._name, "in").inc(given)
            ROWS.labels(self._model, self._name, "written").inc(written)
            return Evaluated(given, given - written, new, failed)

    async def _lots(self, part: Part, *, sifting: bool) -> tuple[list[tuple[int, pl.DataFrame]], dict[str, str]]:
        if not part.rows:
            return [], {}
        if sifting:
            return await sift(part.rows, self._lot)
        return [await self._lot(part.rows)], {}

    async def _lot(self, predictions: Mapping[int, pl.DataFrame]) -> tuple[int, pl.DataFrame]:
        """Return how many rows the evaluator gave, and those that its writer let through."""
        rows = await self._plug_ins.evaluated(self._name, predictions)
        if rows is None:
            return 0, pl.DataFrame()
        with telemetry.tracer.start_as_current_span(f"write {self._name}", attributes=self._about) as span:
            left = await self._plug_ins.written(self._name, rows)
            span.set_attributes({"meguri.rows.in": rows.height, "meguri.rows.written": left.height})
            if left.height != rows.height:
                what = f"{rows.height} rows in, {left.height} rows written"
                logger.error("evaluator %s of %s: %s", self._name, self._model, what)
        return rows.height, left

    def _to_keep(self, lots: Sequence[pl.DataFrame], last: int, left_out: int) -> pl.DataFrame:
        rows = plugins.checked(self._name, pl.concat(lots, how="diagonal_relaxed"), "_version")
        return rows.with_columns(
            _sequence=pl.lit(last, pl.Int64),
            _trace=pl.lit(telemetry.current_trace_id()),
            _left_out=pl.lit(left_out, pl.Int64),
        )

    def _leaves_out(self, what: str, reason: str) -> None:
        later = f"later `meguri evaluate {self._model} {self._name}`"
        logger.error("evaluator %s of %s leaves out %s: %s; %s", self._name, self._model, what, reason, later)


@contextmanager
def _trace(name: str, attributes: dict[str, str | int], links: list[Link], *, journey: str) -> Iterator[None]:
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

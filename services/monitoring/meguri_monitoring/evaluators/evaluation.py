"""Has a part of the predictions evaluated and its rows written, in a trace of its own."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import polars as pl
from opentelemetry import baggage, context
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, TraceFlags
from prometheus_client import Counter

from meguri_chassis import telemetry
from meguri_monitoring.evaluators import plugins
from meguri_monitoring.evaluators.plugins import Evaluator
from meguri_monitoring.evaluators.requests import Part

logger = logging.getLogger(__name__)

LINKS = 20
"""Traces of predictions that a span is linked to."""
ROWS = Counter("meguri_measure_rows", "Rows of evaluators.", ["model", "evaluator", "result"])

Put = Callable[[pl.DataFrame], int]
"""Puts rows into the table; returns how many of them are new there."""


def evaluate(model: str, evaluator: Evaluator, part: Part, put: Put) -> tuple[int, int, int]:
    """Return how many rows the evaluator gave for the predictions, how many of them its writer left out, and how many are
    new in the table.

    Raises Invalid when they are not as they must be, and whatever evaluator, writer and `put` raise.
    """
    name = evaluator.name
    about = {"meguri.model": model, "meguri.evaluator": name}
    sequences = {"meguri.sequence.first": part.first, "meguri.sequence.last": part.last}
    with _trace(f"evaluate {name}", about | sequences, _links(part), journey=f"{model}-{name}-{part.last}"):
        if part.incomplete:
            missing = "requests are left out because rows of theirs have not come"
            logger.error("evaluator %s of %s: %d %s; later `meguri evaluate`", name, model, part.incomplete, missing)
        rows = plugins.evaluated(evaluator, part.rows)
        if rows is None:
            return 0, 0, 0
        with telemetry.tracer.start_as_current_span(f"write {name}", attributes=about) as span:
            left = _written(model, evaluator, rows)
            span.set_attributes({"meguri.rows.in": rows.height, "meguri.rows.written": left.height})
            own = {
                "_sequence": pl.lit(part.last, pl.Int64),
                "_trace": pl.lit(telemetry.current_trace_id()),
                "_left_out": pl.lit(rows.height - left.height, pl.Int64),
            }
            return rows.height, rows.height - left.height, put(left.with_columns(**own)) if left.height else 0


def _written(model: str, evaluator: Evaluator, rows: pl.DataFrame) -> pl.DataFrame:
    left = plugins.written(evaluator, rows)
    if left.height != rows.height:
        logger.error("evaluator %s of %s: %d rows in, %d rows written", evaluator.name, model, rows.height, left.height)
    ROWS.labels(model, evaluator.name, "in").inc(rows.height)
    ROWS.labels(model, evaluator.name, "written").inc(left.height)
    return left


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

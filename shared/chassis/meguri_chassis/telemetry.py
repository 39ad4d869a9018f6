"""Traces, metrics and logs of a service: where they go, and how one event's trace goes on in the next service.

A prompt reaction goes on in the trace of its cause (parent and link); everything else starts a new trace that is linked.
The journey id, made at the first cause, stands on every span, log line and event of what followed from it.
"""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from prometheus_client import Counter, Gauge, Histogram
from pythonjsonlogger.json import JsonFormatter

from meguri_contracts.events import Event
from meguri_contracts.topology import FORMER_TRACE

JOURNEY = "meguri.journey.id"
EVENT = "meguri.event.id"
CAUSE = "meguri.cause.id"
EXPORT_DELAY_MS = 500
"""How long a finished span may wait for others before it is exported."""

APPENDED = Counter("meguri_events_appended", "Events appended to the log.", ["kind"])
HANDLED = Counter("meguri_messages_handled", "Messages that left a consumer.", ["consumer", "kind", "result"])
HANDLING = Histogram("meguri_handling_seconds", "From delivery to acknowledgement.", ["consumer", "kind"])
PARKED = Counter("meguri_messages_parked", "Messages set aside as dead letters: look at them.", ["consumer"])
DEAD_LETTERS = Gauge("meguri_dead_letters", "Messages that are parked until somebody sends them back.")
PROJECTED = Gauge("meguri_projection_sequence", "Last stream sequence that the tables contain.", ["projection"])
READ_ERRORS = Counter("meguri_read_errors", "Reads of a stream that failed and are tried again.", ["reader"])

tracer = trace.get_tracer("meguri")


def set_up(service: str, replica: str, var: Path, log_level: str) -> TracerProvider:
    """Send spans to OTEL_EXPORTER_OTLP_ENDPOINT, or to JSON lines under `var`/traces; logs as JSON to standard error."""
    resource = Resource.create({"service.name": f"meguri-{service}", "service.instance.id": replica})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(_JourneyOnEverySpan())
    provider.add_span_processor(
        BatchSpanProcessor(_exporter(service, replica, var), schedule_delay_millis=EXPORT_DELAY_MS)
    )
    trace.set_tracer_provider(provider)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter("%(levelname)s %(name)s %(message)s", timestamp=True, static_fields={"service": service})
    )
    handler.addFilter(_with_ids)
    logging.basicConfig(level=log_level, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return provider


def _exporter(service: str, replica: str, var: Path) -> SpanExporter:
    if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return OTLPSpanExporter()
    folder = var / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSpanExporter(folder / f"{service}-{replica}.jsonl")


class _JourneyOnEverySpan(SpanProcessor):
    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        for name in (JOURNEY, EVENT):
            if value := baggage.get_baggage(name, parent_context):
                span.set_attribute(name, str(value))


def _with_ids(record: logging.LogRecord) -> bool:
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        record.trace_id, record.span_id = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    for name in (JOURNEY, EVENT):
        if value := baggage.get_baggage(name):
            setattr(record, name.replace(".", "_"), value)
    return True


def lineage(event: Event) -> dict[str, Any]:
    """Span attributes that say which dataset, run and version an event is about."""
    found = {
        "meguri.dataset": getattr(event, "dataset", None),
        "meguri.model": getattr(event, "model", None),
        "meguri.run.id": getattr(event, "run", None),
        "meguri.model.version": getattr(event, "version", None) if event.key_field == "model" else None,
        "meguri.dataset.version": getattr(event, "version", None) if event.key_field == "dataset" else None,
        "meguri.episode.id": getattr(event, "episode", None),
    }
    return {name: value for name, value in found.items() if isinstance(value, str | int)}


@contextmanager
def publishing(
    event: Event, *, id: str, cause: str, journey: str, causes: Sequence[Mapping[str, str]]
) -> Iterator[tuple[trace.Span, str]]:
    """A PRODUCER span and the journey that the event belongs to; the span's context is the one that goes out.

    An event that starts a trace begins a journey too, and names those that came together in it.
    """
    here = trace.get_current_span().get_span_context()
    origins = [here] * event.starts_trace + [_span_context(carrier) for carrier in causes]
    attributes = {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": event.kind(),
        "messaging.message.id": id,
        EVENT: id,
        CAUSE: cause,
    } | lineage(event)
    within = Context() if event.starts_trace else context.get_current()
    if event.starts_trace:
        attributes["meguri.journey.parent"] = journey
        journey = id
    within = baggage.set_baggage(EVENT, id, baggage.set_baggage(JOURNEY, journey, within))
    links = _links(origins)
    token = context.attach(within)
    try:
        with tracer.start_as_current_span(
            f"publish {event.kind()}",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            links=links,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield span, journey
    finally:
        context.detach(token)


@contextmanager
def sending(what: str, id: str, attributes: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """A PRODUCER span for a message that is no event; yields the headers that carry its context and its id."""
    standard = {
        "messaging.system": "nats",
        "messaging.operation.type": "send",
        "messaging.operation.name": "publish",
        "messaging.destination.name": what,
        "messaging.message.id": id,
    }
    with tracer.start_as_current_span(
        f"publish {what}", kind=SpanKind.PRODUCER, attributes=standard | dict(attributes)
    ):
        yield carrier() | {"Nats-Msg-Id": id}


@contextmanager
def processing(
    kind: str,
    causes: Sequence[Mapping[str, str]],
    *,
    journey: str,
    event_id: str,
    prompt: bool,
    attributes: Mapping[str, Any],
) -> Iterator[trace.Span]:
    """A CONSUMER span for one message or several: linked to each cause, and a child of it if there is one and it is prompt.

    `causes` are trace contexts as they stand in the headers; the trace that a cause had before it was sent back is linked
    too, but never gone on with. An exception marks the span and goes on.
    """
    links = _links([_span_context(carrier) for carrier in causes])
    former = [_span_context({"traceparent": carrier[FORMER_TRACE]}) for carrier in causes if FORMER_TRACE in carrier]
    one_trace = len({link.context.trace_id for link in links}) == 1
    parent = propagate.extract(causes[-1], Context()) if prompt and one_trace else Context()
    within = baggage.set_baggage(EVENT, event_id, baggage.set_baggage(JOURNEY, journey, parent))
    standard = {
        "messaging.system": "nats",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": kind,
        "messaging.message.id": event_id,
    }
    token = context.attach(within)
    try:
        with tracer.start_as_current_span(
            f"process {kind}",
            context=within,
            kind=SpanKind.CONSUMER,
            attributes=standard | dict(attributes),
            links=[*links, *_links(former)],
        ) as span:
            yield span
    finally:
        context.detach(token)


def failed(span: trace.Span, error: BaseException) -> None:
    """Mark a span as failed by an error that is dealt with here."""
    span.record_exception(error)
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR, str(error)))


def carrier() -> dict[str, str]:
    """The present context, baggage included, as a dictionary that another process can go on from."""
    held: dict[str, str] = {}
    propagate.inject(held)
    return held


@contextmanager
def continued(name: str, carrier: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[trace.Span]:
    """A span in another process, under the one whose `carrier` was handed over; exported before this returns."""
    try:
        with tracer.start_as_current_span(
            name, context=propagate.extract(carrier), attributes=dict(attributes)
        ) as span:
            yield span
    finally:
        provider = trace.get_tracer_provider()
        if isinstance(provider, TracerProvider):
            provider.force_flush()


@contextmanager
def within(carrier: Mapping[str, str]) -> Iterator[None]:
    """In another process: be where the `carrier` was handed over, so that what is logged there carries its trace."""
    token = context.attach(propagate.extract(carrier, Context()))
    try:
        yield
    finally:
        context.detach(token)


def current_trace_id() -> str:
    """Trace id in hex of where we are; empty outside of any trace."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}" if span.is_valid else ""


def _links(origins: Sequence[SpanContext]) -> list[Link]:
    distinct = {(origin.trace_id, origin.span_id): origin for origin in origins if origin.is_valid}
    return [Link(origin) for origin in distinct.values()]


def _span_context(carrier: Mapping[str, str]) -> SpanContext:
    return trace.get_current_span(propagate.extract(carrier, Context())).get_span_context()

"""Traces of predictions: a span for the share of requests that is sampled, and for those whose callers want one."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind

from meguri_chassis import telemetry
from meguri_chassis.log import Message
from meguri_inference.answering import Finish

MAX_SPANS = 10.0
"""Spans a second without being asked to, on average: one costs as much as several predictions."""


@dataclass(frozen=True)
class Origin:
    """The rollout that put a model into service: where the model's own trace ends."""

    context: SpanContext
    journey: str


@dataclass(frozen=True)
class Origins:
    """The rollout of each model that is served."""

    _by_model: dict[str, Origin] = field(default_factory=dict)

    def set(self, model: str, message: Message) -> None:
        context = trace.get_current_span(propagate.extract(message.context, Context())).get_span_context()
        self._by_model[model] = Origin(context, message.journey)

    def get(self, model: str) -> Origin | None:
        return self._by_model.get(model)


class Tracing:
    """Decides which requests get a span. `sampling` is the share that gets one without being asked to, up to MAX_SPANS."""

    def __init__(self, origins: Origins, sampling: float) -> None:
        self._origins = origins
        self._sampling = sampling
        self._next = 0.0

    def __call__(self, headers: Mapping[str, str] | None) -> tuple[str, Finish | None]:
        """Return a trace id in hex, empty if any will do, and what ends the span if the request gets one.

        `headers` are those of a request that comes in a trace.
        """
        if headers is None:
            if random.random() >= self._sampling or not self._may():  # noqa: S311 - sampling is no secret
                return "", None
            return self._begin(Context())
        context = propagate.extract(headers, Context())
        caller = trace.get_current_span(context).get_span_context()
        if caller.is_valid and not caller.trace_flags.sampled:
            return f"{caller.trace_id:032x}", None
        return self._begin(context)

    def _may(self) -> bool:
        """Whether there is a span left: MAX_SPANS of them saved up at most."""
        now = time.monotonic()
        self._next = max(self._next, now - 1.0)
        if self._next > now:
            return False
        self._next += 1 / MAX_SPANS
        return True

    def _begin(self, context: Context) -> tuple[str, Finish]:
        span = telemetry.tracer.start_span("infer", context=context, kind=SpanKind.SERVER)

        def finish(status: int, attributes: dict[str, str | int]) -> None:
            model = str(attributes["model"])
            if origin := self._origins.get(model):
                span.add_link(origin.context, {"meguri.link.kind": "model"})
                span.set_attribute(telemetry.JOURNEY, origin.journey)
            span.set_attribute("http.response.status_code", status)
            span.set_attributes({_NAMES.get(name, name): value for name, value in attributes.items()})
            span.end()

        return f"{span.get_span_context().trace_id:032x}", finish


_NAMES: Mapping[str, str] = {
    "model": "meguri.model",
    "version": "meguri.model.version",
    "role": "meguri.role",
    "rows": "meguri.rows",
    "prediction_id": "meguri.prediction.id",
    "error": "error.type",
}

"""Traces of predictions: the trace id of every answer, and a span for the share of requests that is sampled."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import SpanContext, SpanKind

from meguri_chassis import telemetry
from meguri_chassis.log import Message
from meguri_inference.fast_path import Finish, Headers

_ids = RandomIdGenerator()


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
    """Gives each request its trace id. `sampling` is the share that gets a span without being asked to."""

    def __init__(self, origins: Origins, sampling: float) -> None:
        self._origins = origins
        self._sampling = sampling

    def __call__(self, headers: Headers) -> tuple[str, Finish | None]:
        """Return the trace id in hex, and what ends the span if the request is sampled."""
        traceparent = next((value for name, value in headers if name == b"traceparent"), None)
        if traceparent is None:
            if random.random() >= self._sampling:  # noqa: S311 - sampling is no secret
                return f"{_ids.generate_trace_id():032x}", None
            return self._begin(Context())
        context = propagate.extract(_text(headers), Context())
        caller = trace.get_current_span(context).get_span_context()
        if caller.is_valid and not caller.trace_flags.sampled:
            return f"{caller.trace_id:032x}", None
        return self._begin(context)

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
    "rows": "meguri.rows",
    "prediction_id": "meguri.prediction.id",
    "error": "error.type",
}


def _text(headers: Headers) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}

"""One trace while a reaction is prompt, linked traces otherwise, and one journey through all of them."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from meguri_chassis import bus, telemetry
from meguri_chassis.bus import hears
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import ModelRegistered, TrainingRequested, TrainingStarted, Trigger
from meguri_contracts.topology import FORMER_TRACE
from tests.chassis.hearing import REQUEST, hearing
from tests.chassis.toy import register, toy
from tests.conftest import until
from tests.contracts.kept import example
from tests.services import wire

REGISTERED = ModelRegistered(model="m", version=1, run="r")
ONE = {"traceparent": f"00-{1:032x}-{1:016x}-01"}
SAME_TRACE = {"traceparent": f"00-{1:032x}-{2:016x}-01"}
OTHER = {"traceparent": f"00-{2:032x}-{3:016x}-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(telemetry._JourneyOnEverySpan())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def processing(*causes, prompt=True, journey="j"):
    return telemetry.processing("k", causes, journey=journey, event_id="e", prompt=prompt, attributes={})


def publishing(event, *causes, journey="j"):
    return telemetry.publishing(event, id="said", cause="c", journey=journey, causes=causes)


def started(*triggers: str) -> TrainingStarted:
    causes = tuple(Trigger(event=f"e{i}", kind=kind) for i, kind in enumerate(triggers))
    return example(TrainingStarted).binary.event.model_copy(update={"triggers": causes})


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def test_a_prompt_reaction_goes_on_in_the_trace_of_its_cause(spans):
    with processing(ONE):
        pass
    span = only(spans)

    assert (span.context.trace_id, span.parent.span_id) == (1, 1)
    assert links(span) == [(1, 1)]
    assert span.kind is SpanKind.CONSUMER


def test_a_late_reaction_starts_a_trace_that_is_linked(spans):
    with processing(ONE, prompt=False):
        pass
    span = only(spans)

    assert span.parent is None
    assert span.context.trace_id != 1
    assert links(span) == [(1, 1)]


def test_causes_of_several_traces_are_linked_to_a_new_one(spans):
    with processing(ONE, OTHER):
        pass
    span = only(spans)

    assert span.parent is None
    assert span.context.trace_id not in (1, 2)
    assert links(span) == [(1, 1), (2, 3)]


def test_the_trace_that_a_message_had_before_it_was_sent_back_is_linked_and_not_gone_on_with(spans):
    with processing(OTHER | {FORMER_TRACE: ONE["traceparent"]}):
        pass
    with processing({FORMER_TRACE: ONE["traceparent"]}):
        pass
    own, without = spans.get_finished_spans()

    assert (own.context.trace_id, own.parent.span_id) == (2, 3)
    assert links(own) == [(2, 3), (1, 1)]
    assert without.parent is None
    assert without.context.trace_id != 1
    assert links(without) == [(1, 1)]


async def test_a_handler_of_a_message_that_was_sent_back_is_linked_to_its_former_trace(broker, spans):
    heard = []

    @hears(TrainingRequested)
    async def act(event, message):
        heard.append(event)

    async with wire(broker) as own, hearing(broker, act):
        headers = {**OTHER, FORMER_TRACE: ONE["traceparent"]}
        await own.publish("training-requested", "m", b'{"reason": "r", "actor": "a"}', headers)
        await until(lambda: any(span.name == "process training-requested" for span in spans.get_finished_spans()))

    assert links(only(spans)) == [(2, 3), (1, 1)]


def test_causes_of_one_trace_stay_in_it(spans):
    with processing(ONE, SAME_TRACE, SAME_TRACE):
        pass
    span = only(spans)

    assert (span.context.trace_id, span.parent.span_id) == (1, 2)
    assert links(span) == [(1, 1), (1, 2)]


@pytest.mark.parametrize("carrier", [{}, {"traceparent": "no"}, {"traceparent": "00-" + "0" * 32 + "-0-01"}])
def test_a_cause_without_a_trace_starts_one(spans, carrier):
    with processing(carrier):
        pass

    assert only(spans).parent is None
    assert links(only(spans)) == []


def test_what_is_said_in_a_reaction_is_a_part_of_it_and_carries_its_own_context(spans):
    with processing(ONE), publishing(REGISTERED) as (span, journey):
        carried = telemetry.carrier()
    said, reaction = spans.get_finished_spans()

    assert said.parent.span_id == reaction.context.span_id
    assert said.kind is SpanKind.PRODUCER
    assert carried["traceparent"].split("-")[2] == f"{span.get_span_context().span_id:016x}"
    assert journey == "j"


@pytest.mark.parametrize("triggers", [("data-committed", "data-committed"), ("drift-detected",)])
def test_an_event_of_several_or_long_past_causes_starts_trace_and_journey_and_names_where_it_came_from(spans, triggers):
    with processing(ONE), publishing(started(*triggers), OTHER) as (_, journey):
        pass
    said, reaction = spans.get_finished_spans()

    assert said.parent is None
    assert said.context.trace_id not in (1, 2)
    assert links(said) == [(1, reaction.context.span_id), (2, 3)]
    assert journey == said.attributes[telemetry.JOURNEY] == "said"
    assert said.attributes["meguri.journey.parent"] == "j"


def test_an_event_of_one_cause_stays_in_its_trace(spans):
    with processing(ONE), publishing(started("data-committed"), ONE) as (_, journey):
        pass

    assert {span.context.trace_id for span in spans.get_finished_spans()} == {1}
    assert journey == "j"


def test_journey_and_event_stand_on_every_span_below_a_reaction(spans):
    span = telemetry.tracer.start_as_current_span
    with processing(ONE), span("work"), publishing(REGISTERED), span("below"):
        pass
    on = {span.name: span.attributes for span in spans.get_finished_spans()}

    assert len(on) == 4
    assert {attributes[telemetry.JOURNEY] for attributes in on.values()} == {"j"}
    assert on["work"][telemetry.EVENT] == "e"
    assert on["below"][telemetry.EVENT] == "said"
    assert on["publish model-registered"][telemetry.CAUSE] == "c"


def test_journey_and_trace_go_on_in_another_process(spans):
    with processing(ONE):
        carried = telemetry.carrier()
    with telemetry.continued("fit", carried, {"rows": 3}):
        pass
    reaction, below = spans.get_finished_spans()

    assert below.parent.span_id == reaction.context.span_id
    assert below.attributes[telemetry.JOURNEY] == "j"


def test_nothing_is_left_behind_after_a_reaction(spans):
    with processing(ONE):
        assert telemetry.current_trace_id() == f"{1:032x}"

    assert telemetry.current_trace_id() == ""
    assert telemetry.carrier() == {}


def test_an_error_marks_the_span(spans):
    def fail():
        with processing(ONE):
            raise ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError):
        fail()

    assert not only(spans).status.is_ok
    assert only(spans).events[0].attributes["exception.message"] == "oops"


@pytest.mark.parametrize(
    ("event", "about"),
    [
        (REGISTERED, {"meguri.model": "m", "meguri.run.id": "r", "meguri.model.version": 1}),
        (REQUEST, {"meguri.model": "m"}),
    ],
)
def test_a_span_says_what_its_event_is_about(event, about):
    assert telemetry.lineage(event) == about


# --- through the bus


@hears(TrainingRequested)
def give_version(event, session):
    return register(event.model)(session)


async def test_a_reaction_to_the_log_is_one_trace_and_one_journey_from_cause_to_effect(spans, broker, tmp_path):
    async with (
        wire(broker) as own,
        toy(f"sqlite:///{tmp_path}/toy.db", own.js) as replica,
        hearing(broker, give_version, decider=replica.decider),
    ):
        await own.say(REQUEST, id="cause", journey="the journey")
        await until(lambda: len(spans.get_finished_spans()) == 3)
        (effect,) = await own.heard(ModelRegistered, "m")
    by_name = {span.name: span for span in spans.get_finished_spans()}
    said = by_name["publish training-requested"]
    reaction = by_name["process training-requested"]
    effected = by_name["publish model-registered"]

    assert reaction.parent.span_id == said.context.span_id
    assert effected.parent.span_id == reaction.context.span_id
    assert effect.context["traceparent"].split("-")[2] == f"{effected.context.span_id:016x}"
    assert {span.attributes[telemetry.JOURNEY] for span in by_name.values()} == {"the journey"} == {effect.journey}


async def test_an_old_message_and_one_that_comes_again_start_linked_traces(spans, broker, monkeypatch):
    monkeypatch.setattr(bus, "RETRY_DELAYS", (0.01,))
    tries = []

    @hears(TrainingRequested)
    async def act(event, message):
        tries.append(message.id)
        if tries == ["again"]:
            raise TemporaryError("later")

    body = REQUEST.model_dump_json().encode()
    async with wire(broker) as own, hearing(broker, act):
        await own.publish("training-requested", "m", body, ONE | {"ce-id": "again"})
        await until(lambda: tries == ["again", "again"])
        await own.publish("training-requested", "m", body, OTHER | {"ce-id": "old", "ce-time": "2026-01-01T00:00:00Z"})
        await until(lambda: len(spans.get_finished_spans()) == 3)
    prompt, again, old = spans.get_finished_spans()

    assert (prompt.context.trace_id, prompt.parent.span_id) == (1, 1)
    assert prompt.attributes["error.type"] == "TemporaryError"
    for late, cause in ((again, (1, 1)), (old, (2, 3))):
        assert late.parent is None
        assert links(late) == [cause]
    assert [span.attributes["nats.deliveries"] for span in (prompt, again, old)] == [1, 2, 1]

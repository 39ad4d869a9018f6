"""Traced end to end: each edge of the loop is a parent or a link between spans of two processes."""

from collections.abc import Iterator

import pytest

from meguri.traces import Span, read
from tests.system.conftest import Laptop

pytestmark = pytest.mark.timeout(600)

EDGES = [
    # who says, what -> who reacts, with what
    ("scanner-a", "publish data-arrived", "ingest", "process data-arrived"),
    ("ingest", "publish data-committed", "training", "process data-committed"),
    ("training", "publish training-started", "training", "process training-started"),
    ("training", "process training-started", "training", "fit"),
    ("training", "publish model-trained", "registry", "process model-trained"),
    ("registry", "publish rollout-changed", "inference", "process rollout-changed"),
    ("registry", "publish rollout-changed", "monitoring", "process rollout-changed"),
    ("registry", "publish rollout-changed", "training", "process rollout-changed"),
    ("registry", "publish rollout-changed", "inference", "infer"),
    ("inference", "publish predictions", "monitoring", "process predictions"),
    ("monitoring", "process predictions", "monitoring", "process windows"),
    ("monitoring", "process windows", "monitoring", "process judged-window"),
    ("monitoring", "process judged-window", "monitoring", "publish drift-detected"),
    ("monitoring", "publish drift-detected", "training", "process drift-detected"),
    ("monitoring", "publish drift-detected", "training", "publish training-started"),
    ("ingest", "publish data-committed", "training", "publish training-started"),
]
JOURNEYS = "meguri.journey.id"


@pytest.fixture(scope="module")
def spans(played: Laptop) -> list[Span]:
    return read(played.var / "traces")


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge[0]} {edge[1]} -> {edge[2]} {edge[3]}")
def test_an_edge_of_the_loop_is_traced(spans: list[Span], edge: tuple[str, str, str, str]):
    service, name, reacting, reaction = edge
    by_id = {(span.trace, span.id): span for span in spans}
    reactions = [span for span in spans if (span.service, span.name) == (reacting, reaction)]

    assert reactions, f"no span {reaction} of {reacting}"
    assert any(
        (cause.service, cause.name) == (service, name) for span in reactions for cause in _causes(span, by_id)
    ), f"{reaction} of {reacting} is caused by { {(c.service, c.name) for s in reactions for c in _causes(s, by_id)} }"


def test_a_prompt_reaction_goes_on_in_the_trace_of_the_publisher(spans: list[Span]):
    published = {span.trace: span for span in spans if span.service == "scanner-a"}

    taken = [span for span in spans if span.service == "ingest" and span.trace in published]

    assert {"process data-arrived", "publish data-committed"} <= {span.name for span in taken}


def test_what_drift_set_going_is_a_trace_of_its_own(spans: list[Span]):
    drift = {span.trace for span in spans if span.name == "publish drift-detected"}
    linked = [span for span in spans if span.name == "publish training-started" and drift & {t for t, _ in span.links}]

    assert len(linked) == 1
    assert linked[0].parent == ""
    assert linked[0].trace not in drift


def test_every_span_of_the_control_plane_stands_in_a_journey(spans: list[Span]):
    ours = [
        s
        for s in spans
        if not s.service.startswith("scanner") and s.name.startswith(("process", "publish", "fit", "load"))
    ]
    without = {(span.service, span.name) for span in ours if not span.attributes.get(JOURNEYS)}

    assert without <= {("inference", "publish predictions")}


def test_the_graph_from_publisher_to_prediction_is_connected(spans: list[Span]):
    by_id = {(span.trace, span.id): span for span in spans}
    prediction = next(span for span in spans if span.name == "infer" and span.links)

    reached = {span.service for span in _everything_before(prediction, by_id)}

    assert {"scanner-a", "scanner-b", "scanner-c", "ingest", "training", "registry"} <= reached


def _causes(span: Span, by_id: dict[tuple[str, str], Span]) -> Iterator[Span]:
    for where in ((span.trace, span.parent), *span.links):
        if where in by_id:
            yield by_id[where]


def _everything_before(span: Span, by_id: dict[tuple[str, str], Span]) -> list[Span]:
    found: dict[tuple[str, str], Span] = {}
    waiting = [span]
    while waiting:
        for cause in _causes(waiting.pop(), by_id):
            if (cause.trace, cause.id) not in found:
                found[cause.trace, cause.id] = cause
                waiting.append(cause)
    return list(found.values())

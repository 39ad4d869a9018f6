from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from meguri_chassis.service import Service
from meguri_contracts.events import LATENCY_BOUNDS
from meguri_inference.metrics import Metrics
from meguri_inference.prediction_log import PredictionIds, PredictionLog
from meguri_inference.settings import Settings
from meguri_inference.tallies import Tallies, since
from tests.inference.replicas import TRACE_ID, Outlet


def test_a_latency_is_counted_where_its_bound_is():
    tally = Tallies().of("iris", 3, "champion")
    for seconds in (0, LATENCY_BOUNDS[0], LATENCY_BOUNDS[0] * 1.01, LATENCY_BOUNDS[-1], LATENCY_BOUNDS[-1] + 1):
        tally.answered(seconds, 2)

    assert (tally.requests, tally.rows) == (5, 10)
    assert tally.latency == [2, 1, *[0] * (len(LATENCY_BOUNDS) - 3), 1, 1]


def test_a_failure_is_a_request_that_has_no_latency():
    tally = Tallies().of("iris", 3, "champion")
    tally.failed()

    assert (tally.requests, tally.errors, sum(tally.latency)) == (1, 1, 0)


def test_a_version_has_a_tally_for_each_of_its_roles():
    tallies = Tallies()
    canary, champion = (tallies.of("iris", 4, role) for role in ("canary", "champion"))

    assert canary is not champion
    assert tallies.of("iris", 4, "canary") is canary
    assert tallies.all() == [canary, champion]


def test_what_came_since_is_the_difference():
    tally = Tallies().of("iris", 4, "shadow")
    tally.answered(0.001, 1)
    tally.compared(1, 1, 0.5)
    before = tally.observed()
    assert since(before, before).requests == 0

    tally.answered(10, 3)
    tally.failed()
    tally.compared(3, 1, 0.25)
    came = since(tally.observed(), before)

    assert (came.requests, came.errors, came.pairs, came.disagreed) == (2, 1, 3, 1)
    assert came.difference == pytest.approx(0.25)
    assert came.latency == (*[0] * len(LATENCY_BOUNDS), 1)


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(outlet: Outlet) -> Iterator[Tallies]:
    """Tallies of this process that are collected, with something in them."""
    tallies = Tallies()
    log = PredictionLog(outlet.publish, PredictionIds())
    log.dropped = 7
    champion, shadow = tallies.of("iris", 3, "champion"), tallies.of("iris", 4, "shadow")
    for seconds in (0.0015, 0.003, 0.0031):
        champion.answered(seconds, 2)
    champion.traced(0.003, TRACE_ID)
    champion.failed()
    shadow.skipped = 5
    tallies.count("iris", 200, 3)
    tallies.count("", 404)
    metrics = Metrics(tallies, log)
    REGISTRY.register(metrics)
    yield tallies
    REGISTRY.unregister(metrics)


@pytest.fixture
async def metrics(measured, tmp_path) -> httpx.AsyncClient:
    app = Service(Settings(var=tmp_path), description="").app
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")


CHAMPION = {"model": "iris", "version": "3", "role": "champion"}


async def samples(metrics, parse, accept: str) -> dict:
    answer = await metrics.get("/metrics", headers={"Accept": accept})
    return {
        (sample.name, *sorted(sample.labels.items())): sample
        for family in parse(answer.text)
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("parse", "accept"),
    [(prometheus, "text/plain"), (openmetrics, "application/openmetrics-text; version=1.0.0")],
    ids=["Prometheus", "OpenMetrics"],
)
async def test_the_metrics_say_what_the_tallies_say(metrics, parse, accept):
    found = await samples(metrics, parse, accept)

    def value(name: str, **labels: str) -> float:
        return found[(name, *sorted(labels.items()))].value

    bounds = {"0.001": 0, "0.002": 1, "0.005": 3, "+Inf": 3}
    assert {le: value("meguri_infer_seconds_bucket", le=le, **CHAMPION) for le in bounds} == bounds
    assert value("meguri_infer_seconds_sum", **CHAMPION) == pytest.approx(0.0076)
    assert value("meguri_infer_rows_total", **CHAMPION) == 6
    assert value("meguri_infer_errors_total", **CHAMPION) == 1
    assert value("meguri_infer_requests_total", model="iris", status="200") == 3
    assert value("meguri_infer_requests_total", model="", status="404") == 1
    assert value("meguri_shadow_skipped_rows_total", model="iris", version="4", role="shadow") == 5
    assert value("meguri_predictions_dropped_rows_total") == 7


async def test_where_openmetrics_is_asked_for_a_bucket_has_a_trace_to_look_at(metrics):
    found = await samples(metrics, openmetrics, "application/openmetrics-text; version=1.0.0")

    exemplars = {sample.labels["le"]: sample.exemplar for sample in found.values() if sample.exemplar}
    assert list(exemplars) == ["0.005"]
    assert exemplars["0.005"].labels == {"trace_id": TRACE_ID}
    assert exemplars["0.005"].value == 0.003

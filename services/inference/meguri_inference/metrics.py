"""The tallies for Prometheus; where OpenMetrics is asked for, with a trace to look at in every bucket of latency."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from meguri_contracts.events import LATENCY_BOUNDS
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.tallies import Tallies, Tally


@asynccontextmanager
async def own_port(host: str, port: int, metrics: CollectorRegistry) -> AsyncIterator[None]:
    """Give metrics on a port of their own."""
    server, thread = start_http_server(port, host, metrics)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_LABELS = ["model", "version", "role"]


class Metrics(Collector):
    """Turns tallies into metrics when they are asked for."""

    def __init__(self, tallies: Tallies, log: PredictionLog) -> None:
        self._tallies = tallies
        self._log = log

    def collect(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "meguri_infer_seconds", "From the request's head to its answer.", labels=_LABELS
        )
        rows = CounterMetricFamily("meguri_infer_rows", "Rows that were answered.", labels=_LABELS)
        errors = CounterMetricFamily("meguri_infer_errors", "Requests that a version had no answer to.", labels=_LABELS)
        skipped = CounterMetricFamily("meguri_shadow_skipped_rows", "Rows that a shadow was not asked.", labels=_LABELS)
        for tally in self._tallies.all():
            labels = [tally.model, str(tally.version), tally.role]
            seconds.add_metric(labels, _buckets(tally), tally.seconds)
            rows.add_metric(labels, tally.rows)
            errors.add_metric(labels, tally.errors)
            if tally.role == "shadow":
                skipped.add_metric(labels, tally.skipped)
        requests = CounterMetricFamily("meguri_infer_requests", "By HTTP status.", labels=["model", "status"])
        for (model, status), count in list(self._tallies.statuses.items()):
            requests.add_metric([model, str(status)], count)
        dropped = CounterMetricFamily("meguri_predictions_dropped_rows", "Not logged, because they could not be.")
        dropped.add_metric([], self._log.dropped)
        yield from (seconds, rows, errors, skipped, requests, dropped)


def _buckets(tally: Tally) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
    bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
    counts = accumulate(tally.latency)
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    for at, (bound, count) in enumerate(zip(bounds, counts, strict=True)):
        exemplar = _exemplar(tally, at)
        buckets.append((bound, count, exemplar) if exemplar else (bound, count))
    return buckets


def _exemplar(tally: Tally, at: int) -> Exemplar | None:
    if (found := tally.exemplars.get(at)) is None:
        return None
    trace_id, seconds, time = found
    return Exemplar({"trace_id": trace_id}, seconds, time)

"""Counts and durations of predictions, for Prometheus."""

from functools import cache

from prometheus_client import Counter, Histogram

_SECONDS = Histogram(
    "meguri_infer_seconds",
    "From the request's head to its answer.",
    ["model", "version"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
_ROWS = Counter("meguri_infer_rows", "Rows that were answered.", ["model", "version"])
_REQUESTS = Counter("meguri_infer_requests", "Requests by HTTP status.", ["model", "status"])

# Looking a labelled child up by its strings costs more than counting.
_seconds = cache(lambda model, version: _SECONDS.labels(model, str(version)))
_rows = cache(lambda model, version: _ROWS.labels(model, str(version)))
_requests = cache(lambda model, status: _REQUESTS.labels(model, str(status)))


def observe(model: str, version: int, rows: int, seconds: float, status: int) -> None:
    """Count an answer."""
    _requests(model, status).inc()
    if status == 200:
        _seconds(model, version).observe(seconds)
        _rows(model, version).inc(rows)

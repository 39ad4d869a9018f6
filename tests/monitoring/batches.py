"""Predictions as they are sent and read, and tables as older releases wrote them."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, Transaction, write_deltalake

from meguri_monitoring.predictions.predictions import parts_of, read

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
OLDER = ("_entity", "_role", "_latency")


def table(ids, version=1, producers=None, **features) -> pa.Table:
    n = len(ids)
    features = features or {"x": [float(i) for i in range(n)], "y": [0.5] * n}
    return pa.table(
        {
            "prediction_id": list(ids),
            "time": pa.array([NOON + timedelta(seconds=i) for i in range(n)], pa.timestamp("us", "UTC")),
            "model": ["digits"] * n,
            "version": version if isinstance(version, list) else [version] * n,
            "producer": producers or ["scanner-a"] * n,
            "trace_id": ["4bf92f3577b34da6a3ce929d0e0e4736"] * n,
            **features,
            "label": ["7"] * n,
            "probability": [0.9] * n,
        }
    )


def sent(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def batches(ids, sequence, **more):
    return read(sent(table(ids, **more)), sequence)


def write_as_before(uri: str, sequence: int, *ids: str, **features) -> None:
    """Append to a table as releases did that knew of no roles, and had each feature as a number."""
    (batch,) = batches(ids, sequence, **features)
    frame = batch.frame.drop(OLDER).cast(dict.fromkeys(parts_of(batch.frame.columns)[0], pl.Float64))
    marker = CommitProperties(app_transactions=[Transaction("predictions", sequence)])
    write_deltalake(uri, frame.to_arrow(), mode="append", commit_properties=marker)

"""A message of predictions, unfolded into a row per prediction that says everything for itself.

What messages look like stands in `meguri_contracts.predictions`.
"""

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from meguri_contracts.errors import Malformed
from meguri_contracts.predictions import FEATURES, HEAD, PER_ROW, PredictionsHead

_TEXT = (pa.null(), pa.string())
_KINDS = ((pa.timestamp("us", "UTC"),), (pa.int32(),), (pa.int32(),), _TEXT, _TEXT, _TEXT, (pa.int64(),))
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def head_of(schema: pa.Schema) -> PredictionsHead | None:
    """Return what a message says of all its rows; None for one of an older release. Raises Malformed."""
    if (said := (schema.metadata or {}).get(HEAD)) is None:
        return None
    try:
        return PredictionsHead.model_validate_json(said)
    except ValidationError as error:
        raise Malformed(f"the head of a message of predictions: {error}") from error


def unfold(batch: pa.RecordBatch, head: PredictionsHead) -> pl.DataFrame:
    """Return the rows of a message with the columns that older releases send. Raises Malformed."""
    _check(batch, head)
    time, number, row, latency = (batch.column(at).to_numpy() for at in (0, 1, 2, 6))
    producer, trace_id, entity = (_text(batch.column(at)) for at in (3, 4, 5))
    ids, derived = _ids(time.view(np.int64), number, row, head)
    derived = derived if trace_id is None else pl.select(pl.when(trace_id != "").then(trace_id).otherwise(derived)).to_series()
    same = pl.Series([head.model]).new_from_index(0, batch.num_rows)
    about = {
        "prediction_id": ids,
        "time": pl.Series(time).dt.replace_time_zone("UTC"),
        "model": same,
        "version": np.full(batch.num_rows, head.version),
        "producer": _all(head.producer, batch.num_rows) if producer is None else producer.fill_null(head.producer or ""),
        "trace_id": derived,
        "_entity": _all(None, batch.num_rows) if entity is None else entity,
        "_role": _all(head.role, batch.num_rows),
        "_latency": latency,
    }
    return pl.DataFrame(about)

"""Predictions as inference sends them, and the Delta table of each model version that keeps them.

A message of the stream is an Arrow IPC stream with the columns of `ABOUT`, one number per feature, and the answer:
`label` and `probability`, or `prediction`. One request of several rows gives ids `<id>:0`, `<id>:1`, …
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from meguri_contracts.errors import Invalid, Malformed, TemporaryError

ABOUT = ("prediction_id", "time", "model", "version", "producer", "trace_id")
ANSWERS = (("label", "probability"), ("prediction",))
SEQUENCE = "sequence"
"""Column of the tables that holds the stream sequence a row came with: what the windows of events refer to."""
COMPACT_EVERY = 100
"""Commits of a table between two compactions; an append costs more with every small file."""

_WRITER = "predictions"
_TYPES = {
    "prediction_id": pl.String(),
    "time": pl.Datetime("us", "UTC"),
    "model": pl.String(),
    "version": pl.Int64(),
    "producer": pl.String(),
    "trace_id": pl.String(),
}


def table_uri(data_url: str, model: str, version: int) -> str:
    """Where the predictions of a version are kept."""
    return f"{data_url}/_predictions/{model}/v{version}"


class TableBusy(TemporaryError):
    """Another writer of the same table was faster."""


@dataclass(frozen=True)
class Batch:
    """Predictions of one model version out of one message, in their order."""

    model: str
    version: int
    sequence: int
    """Of the message in its stream."""
    features: tuple[str, ...]
    rows: np.ndarray
    """Values of the features, [n, features]; NaN where there is none."""
    ids: tuple[str, ...]
    producers: tuple[str, ...]
    frame: pl.DataFrame
    """The same rows with every column, as the table keeps them."""


def read(message: bytes, sequence: int) -> list[Batch]:
    """Return the predictions of a message, one batch per model version in it.

    Raises Malformed when it is no Arrow stream or its columns are others.
    """
    try:
        table = pa.ipc.open_stream(message).read_all()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise Malformed(f"not an Arrow IPC stream: {error}") from error
    features = _features(table.column_names)
    frame = _normalised(table, features).with_columns(pl.lit(sequence, pl.Int64).alias(SEQUENCE))
    return [
        Batch(
            model=str(model),
            version=int(str(version)),
            sequence=sequence,
            features=features,
            rows=part.select(features).fill_null(np.nan).to_numpy(),
            ids=tuple(part["prediction_id"]),
            producers=tuple(part["producer"]),
            frame=part,
        )
        for (model, version), part in frame.group_by("model", "version", maintain_order=True)
    ]


def append(table_uri: str, batches: Sequence[Batch]) -> int:
    """Add batches of one model version, in the order of the stream, to its table and return how many rows were new.

    Batches up to the last sequence that the table has are skipped, so a message that comes again changes nothing; one
    that comes late would be taken for a repeat. The table is made when there is none, and compacted now and then.
    Raises Invalid when the columns are not those of the table, TableBusy when another writer was faster.
    """
    if not batches:
        return 0
    try:
        return _append_new(table_uri, batches)
    except CommitFailedError as error:
        raise TableBusy(f"{table_uri} has another writer: {error}") from error


def kept_up_to(table_uri: str) -> int:
    """Return the last sequence that the table of a version has; 0 when there is no table."""
    try:
        return DeltaTable(table_uri).transaction_version(_WRITER) or 0
    except TableNotFoundError:
        return 0


def find(table_uri: str, prediction_id: str) -> dict[str, Any] | None:
    """Return the prediction with this id, column by column; the first row of a request when the id is the request's."""
    try:
        predictions = pl.scan_delta(DeltaTable(table_uri))
    except TableNotFoundError:
        return None
    column = pl.col("prediction_id")
    prefix = f"{prediction_id}:"
    number = pl.when(column.str.starts_with(prefix)).then(column.str.strip_prefix(prefix).str.to_integer(strict=False))
    found = predictions.filter((column == prediction_id) | number.is_not_null())
    first = found.sort(number, nulls_last=False).head(1).collect()
    return first.row(0, named=True) if first.height else None


def _append_new(table_uri: str, batches: Sequence[Batch]) -> int:
    # One handle from check to write: two writers of the same sequence conflict instead of both succeeding.
    table = _opened(table_uri, batches[0].frame)
    known = table.transaction_version(_WRITER) or 0
    fresh = [batch for batch in batches if batch.sequence > known]
    if not fresh:
        return 0
    # Where types differ the table would cut 0.5 to 0 without a word.
    columns = pl.scan_delta(table).collect_schema()
    _check_columns(columns, fresh)
    rows = pl.concat([batch.frame.select(columns.names()) for batch in fresh])
    marker = Transaction(_WRITER, max(batch.sequence for batch in fresh))
    properties = CommitProperties(app_transactions=[marker])
    write_deltalake(table, rows.to_arrow(), mode="append", commit_properties=properties)
    if table.version() % COMPACT_EVERY == 0:
        table.optimize.compact()
    return rows.height


def _features(columns: Sequence[str]) -> tuple[str, ...]:
    names = tuple(columns)
    for answer in ANSWERS:
        if names[: len(ABOUT)] == ABOUT and names[-len(answer) :] == answer:
            features = names[len(ABOUT) : -len(answer)]
            if taken := sorted({n for n in names if names.count(n) > 1} | ({SEQUENCE} & set(features))):
                raise Malformed(f"{taken[0]!r} cannot be a feature: predictions have a column of that name")
            if features:
                return features
    raise Malformed(f"predictions are {', '.join(ABOUT)}, features, and label, probability or prediction; not {names}")


def _normalised(table: pa.Table, features: tuple[str, ...]) -> pl.DataFrame:
    types: dict[str, pl.DataType] = _TYPES | dict.fromkeys(features, pl.Float64())
    try:
        frame = pl.DataFrame(table)
        for name in frame.columns[len(types) :]:
            types[name] = _answer_type(frame.schema[name])
        frame = frame.cast(types)  # type: ignore[arg-type]  # str is a column name
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise Malformed(f"a column of predictions has a wrong type: {error}") from error
    for name in ABOUT:
        if frame[name].null_count():
            raise Malformed(f"{name!r} is empty in {frame[name].null_count()} predictions")
    return frame


def _answer_type(given: pl.DataType) -> pl.DataType:
    if given.is_integer():
        return pl.Int64()
    if given.is_float():
        return pl.Float64()
    return given if given == pl.Boolean else pl.String()


def _opened(table_uri: str, like: pl.DataFrame) -> DeltaTable:
    try:
        return DeltaTable(table_uri)
    except TableNotFoundError:
        # Without tries of its own: of two that come first, the second would create the table over the first's.
        once = CommitProperties(max_commit_retries=0)
        schema = like.clear().to_arrow().schema
        return DeltaTable.create(table_uri, schema=schema, mode="ignore", commit_properties=once)


def _check_columns(expected: pl.Schema, batches: Sequence[Batch]) -> None:
    for batch in batches:
        if different := sorted(dict(set(batch.frame.schema.items()) ^ set(expected.items()))):
            ours, theirs = batch.frame.schema.get(different[0]), expected.get(different[0])
            raise Invalid(f"column {different[0]!r} is {ours} in predictions and {theirs} in their table")

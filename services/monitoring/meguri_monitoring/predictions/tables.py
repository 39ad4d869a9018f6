"""The Delta table of each model version that keeps its predictions, those that it made as a shadow included."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import polars as pl
from deltalake import ColumnProperties, CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, TableNotFoundError

from meguri_contracts.errors import Invalid, TemporaryError
from meguri_monitoring.predictions.predictions import CHAMPION, DETAIL_TYPES, ENTITY, ROLE, SEQUENCE, SHADOW, Batch

COMPACT_EVERY = 100
"""Commits of a table between two compactions; an append costs more with every small file."""

ROW_GROUP = 50_000
"""Rows that are read together at least."""

_WRITER = "predictions"
_FOUND_BY: dict[str, str | None] = {"delta.dataSkippingStatsColumns": f"prediction_id,time,{SEQUENCE}"}
"""Columns whose ranges stand beside each file, so that only those are read that may have what is looked for. Usual are 32."""
_ALIKE = {"time", "model", "version", "producer", ENTITY, ROLE, SEQUENCE, "label"}
"""Columns with few values. To look for those in a column of measurements costs more than all the rest of an append."""


class TableBusy(TemporaryError):
    """Another writer of the same table was faster."""


class TableGone(TemporaryError):
    """A table that has predictions is not there."""


def table_uri(data_url: str, model: str, version: int) -> str:
    """Where the predictions of a version are kept."""
    return f"{data_url}/_predictions/{model}/v{version}"


def append(table_uri: str, batches: Sequence[Batch]) -> int:
    """Add batches of one model version, in the order of the stream, to its table and return how many rows were new.

    Batches up to the last sequence that the table has are skipped, so a message that comes again changes nothing; one
    that comes late would be taken for a repeat. The table is made when there is none, gets the columns of
    `PREDICTION_DETAILS` when it is of before them, and is compacted now and then.
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


def scan(table_uri: str, *, shadow: bool | None = False) -> pl.LazyFrame | None:
    """Return the answers of a version that were given, or else those that it made as a shadow, or with None both; None
    without a table.

    Rows of before `PREDICTION_DETAILS` are of a champion.
    """
    try:
        rows = pl.scan_delta(DeltaTable(table_uri))
    except TableNotFoundError:
        return None
    columns = rows.collect_schema().names()
    rows = rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in DETAIL_TYPES.items() if name not in columns
    )
    rows = rows.with_columns(pl.col(ROLE).fill_null(CHAMPION))
    if shadow is None:
        return rows
    return rows.filter(pl.col(ROLE) == SHADOW if shadow else pl.col(ROLE) != SHADOW)


def between(table_uri: str, first: int, last: int) -> pl.DataFrame:
    """Return the answers that were given in the messages `first` to `last`, both included, in the order of the stream."""
    rows = scan(table_uri)
    if rows is None:
        raise TableGone(f"there is no table {table_uri}")
    found = rows.filter(pl.col(SEQUENCE).is_between(first, last)).collect()
    # Rows of one message stand in one file, in their order.
    return found.sort(SEQUENCE, maintain_order=True)


def count(rows: pl.LazyFrame) -> int:
    """Return how many rows these are."""
    return int(rows.select(pl.len()).collect(engine="streaming").item())


def find(table_uri: str, prediction_id: str, *, shadow: bool = False) -> dict[str, Any] | None:
    """Return the prediction with this id, column by column; the first row of a request when the id is the request's."""
    rows = scan(table_uri, shadow=shadow)
    if rows is None:
        return None
    column = pl.col("prediction_id")
    prefix = f"{prediction_id}:"
    number = pl.when(column.str.starts_with(prefix)).then(column.str.strip_prefix(prefix).str.to_integer(strict=False))
    # What lies between the id and what its rows can be called: files without any of that are not read.
    near = rows.filter((column >= prediction_id) & (column < f"{prediction_id};"))
    found = near.filter((column == prediction_id) | number.is_not_null())
    first = found.sort(number, nulls_last=False).head(1).collect()
    return first.row(0, named=True) if first.height else None


def _append_new(table_uri: str, batches: Sequence[Batch]) -> int:
    # One handle from check to write: two writers of the same sequence conflict instead of both succeeding.
    table = _opened(table_uri, batches[0].frame)
    known = table.transaction_version(_WRITER) or 0
    fresh = [batch for batch in batches if batch.sequence > known]
    if not fresh:
        return 0
    columns = dict(pl.scan_delta(table).collect_schema())
    added = {name: kind for name, kind in DETAIL_TYPES.items() if name not in columns}
    rows = pl.concat([_fitted(batch.frame, columns | added) for batch in fresh])
    marker = Transaction(_WRITER, max(batch.sequence for batch in fresh))
    properties = CommitProperties(app_transactions=[marker])
    mode = "merge" if added else None
    write_deltalake(
        table,
        rows.to_arrow(),
        mode="append",
        schema_mode=mode,
        commit_properties=properties,
        writer_properties=_written_as(tuple(columns | added)),
    )
    if table.version() % COMPACT_EVERY == 0:
        table.optimize.compact()
    return rows.height


@cache
def _written_as(columns: tuple[str, ...]) -> WriterProperties:
    alike = ColumnProperties(dictionary_enabled=True)
    return WriterProperties(
        compression="LZ4_RAW",
        max_row_group_size=ROW_GROUP,
        default_column_properties=ColumnProperties(dictionary_enabled=False),
        column_properties={name: alike for name in columns if name in _ALIKE},
    )


def _opened(table_uri: str, like: pl.DataFrame) -> DeltaTable:
    try:
        return DeltaTable(table_uri)
    except TableNotFoundError:
        # Without tries of its own: of two that come first, the second would create the table over the first's.
        once = CommitProperties(max_commit_retries=0)
        schema = like.clear().to_arrow().schema
        return DeltaTable.create(
            table_uri, schema=schema, mode="ignore", configuration=_FOUND_BY, commit_properties=once
        )


def _fitted(frame: pl.DataFrame, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return the rows in the columns of a table. Raises Invalid where it would have to cut or guess: it does without a word."""
    frame = frame.with_columns(
        pl.col(name).cast(kind)
        for name, kind in columns.items()
        if name in frame.columns and _is_safe(frame[name], kind)
    )
    if different := sorted(dict(set(frame.schema.items()) ^ set(columns.items()))):
        ours, theirs = frame.schema.get(different[0]), columns.get(different[0])
        raise Invalid(f"column {different[0]!r} is {ours} in predictions and {theirs} in their table")
    return frame.select(list(columns))


def _is_safe(given: pl.Series, kind: pl.DataType) -> bool:
    """Whether each value is the same in the other type: tables of before had every feature as a number."""
    return given.null_count() == len(given) or (given.dtype == pl.Int64 and kind == pl.Float64)

"""The Delta table of each model version that keeps its predictions, those that it made as a shadow included."""

from typing import Any

import polars as pl
from deltalake.exceptions import TableNotFoundError

from meguri_chassis.delta import Table
from meguri_contracts.errors import TemporaryError
from meguri_monitoring.predictions.predictions import CHAMPION, DETAIL_TYPES, ROLE, SEQUENCE, SHADOW

WRITER = "predictions"
"""Name under which a table says up to which sequence it has predictions."""


class TableGone(TemporaryError):
    """A table that has predictions is not there."""


def table_uri(data_url: str, model: str, version: int) -> str:
    """Where the predictions of a version are kept."""
    return f"{data_url}/_predictions/{model}/v{version}"


def kept_up_to(table_uri: str) -> int:
    """Return the last sequence that the table of a version has; 0 when there is no table."""
    try:
        return Table(table_uri).transaction_version(WRITER) or 0
    except TableNotFoundError:
        return 0


def scan(table_uri: str, *, shadow: bool | None = False) -> pl.LazyFrame | None:
    """Return the answers of a version that were given, or else those that it made as a shadow, or with None both; None
    without a table.

    Rows of before `PREDICTION_DETAILS` are of a champion.
    """
    try:
        rows = pl.scan_delta(Table(table_uri))
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

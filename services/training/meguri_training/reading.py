"""Rows of a dataset version, as the numbers and targets that an estimator takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from deltalake.exceptions import DeltaError
from numpy.typing import NDArray

from meguri_chassis.delta import Table
from meguri_contracts.errors import Invalid, NotFound

Target = NDArray[Any]
"""Shape [n]: int64 or str for classification, float64 for regression, 0 and 1 for outliers."""

MAX_TEXTS = 1000
"""Different texts that a feature may have; each becomes a column of the model's own."""


class MissingValues(Invalid):
    def __init__(self, column: str, count: int, rows: int) -> None:
        super().__init__(
            f"column {column!r} has no usable value in {count} of {rows} rows (null, NaN or infinite); "
            "make it non-nullable in the dataset, or leave it out of the features"
        )


def read(table_uri: str, version: int, columns: Sequence[str], optional: Sequence[str] = ()) -> pl.DataFrame:
    """Return these columns of one version of a Delta table, and the optional ones that it has, in the order of its files.

    Raises NotFound when table, version or files are gone, Invalid when it lacks a column, OSError when storage fails.
    """
    try:
        table = Table(table_uri, version=version)
        there = {field.name for field in table.schema().fields}
        if missing := [name for name in columns if name not in there]:
            raise Invalid(f"column {missing[0]!r} is not in version {version} of the dataset; send rows that have it")
        wanted = list(dict.fromkeys((*columns, *(name for name in optional if name in there))))
        return pl.scan_delta(table).select(wanted).collect()
    except (DeltaError, FileNotFoundError) as error:
        raise NotFound(f"version {version} of the table {table_uri} cannot be read: {error}") from error


def numbers(frame: pl.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    """Return the columns as doubles of shape [n, columns]; false is 0 and true is 1.

    Raises MissingValues, and Invalid for a column that holds no numbers.
    """
    schema = frame.schema
    for name in columns:
        if not (schema[name].is_numeric() or schema[name] == pl.Boolean):
            raise Invalid(f"column {name!r} holds {schema[name]}, where a number, an integer or a boolean is needed")
    rows = frame.select(pl.col(columns).cast(pl.Float64)).to_numpy()
    unusable = (~np.isfinite(rows)).sum(axis=0)
    if unusable.any():
        worst = int(unusable.argmax())
        raise MissingValues(columns[worst], int(unusable[worst]), len(rows))
    return np.ascontiguousarray(rows)


def texts(frame: pl.DataFrame, column: str) -> NDArray[np.object_]:
    """Return the texts of a feature; a missing one is the empty text.

    Raises Invalid for a column that holds no texts, or more different ones than MAX_TEXTS.
    """
    if frame.schema[column] != pl.String:
        raise Invalid(f"column {column!r} holds {frame.schema[column]}, where a string is needed")
    values = frame[column].fill_null("")
    if (distinct := values.n_unique()) > MAX_TEXTS:
        raise Invalid(
            f"feature {column!r} has {distinct} different texts, at most {MAX_TEXTS} can be categories; "
            "leave it out of the features"
        )
    return np.array(values.to_list(), dtype=object)


def flags(frame: pl.DataFrame, column: str) -> Target:
    """Return which rows are outliers: 1, and 0 for the others.

    Raises MissingValues, and Invalid for other values.
    """
    values = numbers(frame, [column])[:, 0]
    if not np.isin(values, (0, 1)).all():
        raise Invalid(f"target {column!r} of outliers must be true or 1 for outliers and false or 0 for others")
    return values.astype(np.int64)


def classes(frame: pl.DataFrame, column: str) -> Target:
    """Return class labels: text stays text, everything else becomes int64, false 0 and true 1.

    Raises MissingValues, and Invalid for numbers with fractions and for timestamps.
    """
    labels = frame[column]
    if labels.null_count():
        raise MissingValues(column, labels.null_count(), len(labels))
    if labels.dtype == pl.String:
        return np.array(labels.to_list(), dtype=object)
    values = numbers(frame, [column])[:, 0]
    if (values != np.floor(values)).any():
        raise Invalid(f"target {column!r} has fractions, so it names no classes; the task may be regression")
    return labels.cast(pl.Int64).to_numpy()

"""Predictions as whole requests: a request of several rows has ids `<id>:0`, `<id>:1`, …, and may come in several messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from meguri_monitoring.predictions.predictions import SEQUENCE

MAX_ROWS = 200_000
"""Rows read at once, unless one request has more."""

_ROW = r":(\d+)$"
_NUMBERED = pl.col("prediction_id").str.extract(_ROW).cast(pl.Int64)


@dataclass(frozen=True)
class Part:
    """Consecutive predictions of a model in which no request is cut in two. Sequences are those of the stream."""

    first: int
    last: int
    rows: Mapping[int, pl.DataFrame]
    """By version, newest first: request by request in the order of the stream, the rows of each in their order, `numbered`."""
    incomplete: int
    """Requests left out because some of their rows are not there."""


def next_part(versions: Mapping[int, pl.LazyFrame], after: int, upto: int, max_rows: int = MAX_ROWS) -> Part | None:
    """Return the predictions that follow on sequence `after`, up to `upto` or before; None if there are none yet.

    Later predictions must be in `versions` too, as far as there are any: they tell which requests are still coming.
    """
    if not versions:
        return None
    ids = _ids(versions, after).sort(SEQUENCE).head(max_rows).collect()
    end = _end(ids, upto, whole=ids.height < max_rows)
    if end is None and ids.height == max_rows:
        # One request has more than that.
        ids = _ids(versions, after).collect()
        end = _end(ids, upto, whole=True)
    if end is None:
        return None
    found = {version: _ordered(_between(rows, after, end).collect()) for version, rows in versions.items()}
    complete = {version: rows.filter(_is_complete()) for version, rows in found.items()}
    lost = sum(_requests(found[version]) - _requests(complete[version]) for version in found)
    rows = {version: rows for version, rows in complete.items() if rows.height}
    return Part(int(str(ids[SEQUENCE].min())), end, rows, lost)


def ids(rows: Mapping[int, pl.DataFrame]) -> list[str]:
    """Return the ids of the requests, version by version, in their order."""
    return pl.concat([one["_request"] for one in rows.values()]).unique(maintain_order=True).to_list()


def only(rows: Mapping[int, pl.DataFrame], wanted: Sequence[str]) -> dict[int, pl.DataFrame]:
    """Return the rows of the requests with the ids that are wanted."""
    found = {version: one.filter(pl.col("_request").is_in(wanted)) for version, one in rows.items()}
    return {version: one for version, one in found.items() if one.height}


def numbered(rows: pl.DataFrame) -> pl.DataFrame:
    """Add to predictions which request each is of, in `_request`, and which row of it from 0 on, in `_row`."""
    return rows.with_columns(_request=request_of(pl.col("prediction_id")), _row=_NUMBERED.fill_null(0))


def request_of(prediction_id: pl.Expr) -> pl.Expr:
    """The id of the request that a row belongs to."""
    return prediction_id.str.replace(_ROW, "")


def _ids(versions: Mapping[int, pl.LazyFrame], after: int) -> pl.LazyFrame:
    columns = [rows.filter(pl.col(SEQUENCE) > after).select(SEQUENCE, "prediction_id") for rows in versions.values()]
    return pl.concat(columns)


def _between(rows: pl.LazyFrame, after: int, end: int) -> pl.LazyFrame:
    return rows.filter((pl.col(SEQUENCE) > after) & (pl.col(SEQUENCE) <= end))


def _end(ids: pl.DataFrame, upto: int, *, whole: bool) -> int | None:
    """Return the last sequence up to which all requests that began have ended; None if there is none."""
    if ids.is_empty():
        return None
    sequences = ids[SEQUENCE].unique().sort().to_numpy()
    if not whole:
        # Rows of the last message may have been left out, and with them requests that go on there.
        sequences = sequences[:-1]
    spans = ids.group_by(request_of(pl.col("prediction_id"))).agg(
        pl.col(SEQUENCE).min().alias("first"), pl.col(SEQUENCE).max().alias("last")
    )
    long = spans.filter(pl.col("first") < pl.col("last"))
    first, last = long["first"].to_numpy(), long["last"].to_numpy()
    for end in sequences[sequences <= upto][::-1]:
        if not np.any((first <= end) & (end < last)):
            return int(end)
    return None


def _ordered(rows: pl.DataFrame) -> pl.DataFrame:
    began = pl.col(SEQUENCE).min().over("_request")
    # Of a prediction that was published twice the first stands.
    return (
        numbered(rows)
        .sort(began, "_request", "_row", SEQUENCE)
        .unique("prediction_id", keep="first", maintain_order=True)
    )


def _is_complete() -> pl.Expr:
    rows = pl.len().over("_request")
    # Only one of several rows has a number.
    is_alone = (rows == 1) & (pl.col("prediction_id") != pl.col("_request"))
    return ((pl.col("_row").max().over("_request") + 1) == rows) & ~is_alone


def _requests(rows: pl.DataFrame) -> int:
    return rows["_request"].n_unique()

"""The latest requests of a model as they were recorded, for whoever wants to ask another version the same."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from meguri_contracts.errors import Invalid
from meguri_monitoring.predictions.predictions import ENTITY, parts_of

ABOUT = ("prediction_id", "time", "version", "producer", ENTITY, "trace_id")
MAX_ROWS = 1_000_000
MAX_VALUES = 50_000_000
"""Values held in memory at once: rows by columns."""
ROWS_AT_A_TIME = 10_000
"""Rows of a record batch."""


def latest(tables: Sequence[pl.LazyFrame], last: int) -> pl.DataFrame:
    """Return the `last` latest answers that were given, by time and id: `ABOUT`, features, answer.

    `tables` are of one version each, the newest first, whose columns come first; what a version does not have is null.
    Raises Invalid when that is more than can be held.
    """
    columns = _columns(tables)
    if last * len(columns) > MAX_VALUES:
        raise Invalid(
            f"last: of {len(columns)} columns at most {MAX_VALUES // len(columns):,} rows are given at a time"
        )
    # Times first, so that only the rows that are wanted are read whole.
    times = pl.concat([one.select("time") for one in tables]).select(pl.col("time").top_k(last))
    oldest = times.collect(engine="streaming")["time"].min()
    wanted = [one.filter(pl.col("time") >= oldest) if oldest else one for one in tables]
    rows = pl.concat([one.select(_present(one, columns)) for one in wanted], how="diagonal_relaxed")
    return rows.collect(engine="streaming").sort("time", "prediction_id", "version").tail(last).select(columns)


def arrow_stream(rows: pl.DataFrame) -> Iterator[bytes]:
    """Yield the rows as an Arrow IPC stream, piece by piece."""
    sink = _Sink()
    # Types that every reader of Arrow knows.
    plain = pl.CompatLevel.oldest()
    with pa.ipc.new_stream(sink, rows.clear().to_arrow(compat_level=plain).schema) as stream:
        for part in rows.iter_slices(ROWS_AT_A_TIME):
            stream.write_table(part.to_arrow(compat_level=plain))
            yield sink.taken()
    yield sink.taken()


class _Sink:
    """A file that forgets what was taken from it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _columns(tables: Sequence[pl.LazyFrame]) -> list[str]:
    parts = [parts_of(one.collect_schema().names()) for one in tables]
    features = [name for own, _ in parts for name in own]
    answers = [name for _, own in parts for name in own]
    return list(dict.fromkeys([*ABOUT, *features, *answers]))


def _present(table: pl.LazyFrame, columns: Sequence[str]) -> list[str]:
    own = set(table.collect_schema().names())
    return [name for name in columns if name in own]

"""Reads a Parquet or Arrow file in a process of its own: `python -m meguri_ingest.unpacking parquet <bytes> < file > stream`.

A single flipped byte can make the reader abort its process or ask for more memory than there is; so can a small file that
unpacks to a huge one. Here that ends a child, and the service says what happened.
"""

import io
import resource
import sys

import polars as pl

MEMORY = 4 * 1024**3
"""Bytes of address space that the child may take."""
REFUSED = 3
"""Exit code when the reason stands in the output instead of rows."""


_SECONDS = (-62_135_596_800, 253_402_300_799)
"""First and last second of the years 1 to 9999, counted from 1970: what Python can tell."""


def unpack(data: bytes, kind: str) -> pl.DataFrame:
    """Return the rows of a `parquet` or `arrow` file; of Arrow, both the file and the stream format.

    Columns are numeric, Boolean, String, Datetime("us", "UTC") or Null. Raises ValueError for one that is nothing like it.
    """
    return pl.DataFrame({column.name: _simple(column) for column in _read(data, kind)})


def _read(data: bytes, kind: str) -> pl.DataFrame:
    if kind == "parquet":
        return pl.read_parquet(io.BytesIO(data))
    if data.startswith(b"ARROW1"):
        return pl.read_ipc(io.BytesIO(data))
    return pl.read_ipc_stream(io.BytesIO(data))


def _simple(column: pl.Series) -> pl.Series:
    match column.dtype:
        case pl.Boolean() | pl.String() | pl.Null():
            return column
        case pl.Categorical() | pl.Enum():
            return column.cast(pl.String)
        case pl.Date():
            return _utc(column, 1 / 86_400, None)
        case pl.Datetime(time_unit=unit, time_zone=zone):
            return _utc(column, {"ms": 10**3, "us": 10**6, "ns": 10**9}[unit], zone)
        case dtype if dtype.is_numeric():
            return column
    raise ValueError(
        f"column {column.name!r} is of type {column.dtype}; known are numbers, text, booleans and timestamps"
    )


def _utc(column: pl.Series, per_second: float, zone: str | None) -> pl.Series:
    first, last = (bound * per_second for bound in _SECONDS)
    if not column.to_physical().cast(pl.Float64).drop_nulls().is_between(first, last).all():
        raise ValueError(f"column {column.name!r} has a timestamp outside of the years 1 to 9999")
    times = column.cast(pl.Datetime("us", zone))
    return times.dt.convert_time_zone("UTC") if zone else times.dt.replace_time_zone("UTC")


def main(kind: str, memory: int) -> None:
    """Unpack standard input to an Arrow stream on standard output, in at most `memory` bytes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        frame = unpack(sys.stdin.buffer.read(), kind)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        sys.stdout.write(str(error))
        sys.exit(REFUSED)
    frame.write_ipc_stream(sys.stdout.buffer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

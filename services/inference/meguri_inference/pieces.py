"""The rows of a file, always in the same pieces, and as the arrays that a model takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from meguri_contracts.events import Signature
from meguri_inference.formats import PIECE_ROWS, TYPES, BadRows, datatypes, read
from meguri_inference.tensors import Array


def pieces(
    path: Path, format: str, signature: Signature, *, first: int = 0, rows: int | None = None, all_columns: bool = True
) -> Iterator[pa.Table]:
    """Yield `rows` rows of a file from row `first` on, or all, PIECE_ROWS at a time; else only the model's columns.

    The pieces are the same whatever the format and however the file is laid out. Raises BadRows.
    """
    with _reading(format):
        source = read(path, format, signature, first=first, all_columns=all_columns)
        yield from _in_pieces(_cut(source, first, rows))


def features(table: pa.Table, signature: Signature, *, first: int = 0) -> dict[str, Array]:
    """Return what a model takes of rows, an array per feature. `first` is the number of the first of them, for what is said.

    Raises BadRows that names column and row: the model's own protocol takes no row without a value either.
    """
    return {name: _values(table.column(name), name, datatype, first) for name, datatype in datatypes(signature).items()}


def _values(column: pa.ChunkedArray, name: str, datatype: str, first: int) -> Array:
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise BadRows(f"row {first + row}: column {name!r} has no value")
    try:
        values: Array = column.cast(TYPES[datatype]).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise BadRows(f"column {name!r}, after row {first}: {error}; the model takes {datatype}") from error
    if datatype in ("FP32", "FP64") and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise BadRows(f"row {first + row}: column {name!r} is {column[row]}, no finite number of {datatype}")
    return values


# --- pieces -----------------------------------------------------------------------------------------------------------


def _cut(source: Iterator[tuple[int, pa.RecordBatch]], first: int, rows: int | None) -> Iterator[pa.RecordBatch]:
    """Leave out what comes before `first`, and what comes after `rows` rows."""
    end = None if rows is None else first + rows
    for begin, batch in source:
        until = begin + batch.num_rows
        if until > first:
            keep_from, keep_to = (
                max(first - begin, 0),
                batch.num_rows if end is None else min(end - begin, batch.num_rows),
            )
            yield batch.slice(keep_from, keep_to - keep_from)
        if end is not None and until >= end:
            return


def _in_pieces(source: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in source:
        waiting.append(batch)
        count += batch.num_rows
        while count >= PIECE_ROWS:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, PIECE_ROWS).combine_chunks()
            waiting, count = table.slice(PIECE_ROWS).to_batches(), count - PIECE_ROWS
    if waiting and count:
        yield pa.Table.from_batches(waiting).combine_chunks()


@contextmanager
def _reading(format: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as error:
        raise BadRows(f"{format}: {str(error).partition(chr(10))[0][:300]}") from error
    except UnicodeDecodeError as error:
        raise BadRows(f"{format}: byte 0x{error.object[error.start]:02x} is not UTF-8") from error
    except OSError as error:  # pyarrow's own, of damaged files
        raise BadRows(f"{format}: {error}") from error

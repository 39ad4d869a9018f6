"""Digests of rows that anyone can compute again, with any library, from the values alone."""

import hashlib
import struct

import polars as pl

from meguri_contracts.errors import Invalid

_NAMES: dict[pl.DataType, bytes] = {
    pl.Float64(): b"number",
    pl.Int64(): b"integer",
    pl.String(): b"string",
    pl.Boolean(): b"boolean",
    pl.Datetime("us", "UTC"): b"timestamp",
}


def content_digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of names, types and values, in hex. The order of columns and rows counts.

    What is hashed: the number of rows; then per column the name, the type (`number`, `integer`, `string`, `boolean`,
    `timestamp`), one byte per row that is 1 where the value is null, and the values. Counts and lengths are unsigned 64-bit,
    names and types are preceded by their length in bytes, everything is little-endian. Values are IEEE doubles, 64-bit
    integers, single bytes, microseconds since 1970 in UTC; a null is 0. Strings are all lengths in bytes, then all UTF-8.
    Raises Invalid for a column of another type.
    """
    if odd := [column for column in frame if column.dtype not in _NAMES]:
        raise Invalid(f"column {odd[0].name!r}: no digest of type {odd[0].dtype}")
    nulls = frame.select(pl.all().is_null().cast(pl.UInt8))
    filled = frame.select(_without_nulls(column) for column in frame)
    digest = hashlib.sha256(struct.pack("<Q", frame.height))
    for column in frame:
        digest.update(_sized(column.name.encode()) + _sized(_NAMES[column.dtype]))
        digest.update(nulls[column.name].to_numpy().tobytes())
        for part in _encoded(filled[column.name]):
            digest.update(part)
    return digest.hexdigest()


def chained(previous: str, digest: str) -> str:
    """Return the digest of a history: the one before, "" at the beginning, followed by what `digest` stands for."""
    return hashlib.sha256(bytes.fromhex(previous) + bytes.fromhex(digest)).hexdigest()


def _without_nulls(column: pl.Series) -> pl.Expr:
    same = pl.col(column.name)
    if column.dtype == pl.String:
        return same.fill_null("")
    if column.dtype == pl.Boolean:
        return same.fill_null(value=False).cast(pl.UInt8)
    return same.to_physical().fill_null(0)


def _encoded(column: pl.Series) -> tuple[bytes, ...]:
    if column.dtype == pl.String:
        return column.str.len_bytes().to_numpy().astype("<u8").tobytes(), "".join(column).encode()
    values = column.to_numpy()
    return (values.astype(values.dtype.newbyteorder("<")).tobytes(),)


def _sized(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text

"""Digests of rows that anyone can compute again, with any library, from the values alone."""

import hashlib
import struct

import polars as pl
from meguri_contracts.errors import Invalid

_NAMES = {
    pl.Float64(): (b"number", "<f8"),
    pl.Int64(): (b"integer", "<i8"),
    pl.Boolean(): (b"boolean", "|u1"),
    pl.Datetime("us", "UTC"): (b"timestamp", "<i8"),
}


def content_digest(frame: pl.DataFrame) -> str:
    """Return the SHA-256 of names, types and values, in hex. The order of columns and rows counts.

    What is hashed: the number of rows; then per column the name, the type (`number`, `integer`, `string`, `boolean`,
    `timestamp`), one byte per row that is 1 where the value is null, and the values. Counts and lengths are unsigned 64-bit,
    names and types are preceded by their length in bytes, everything is little-endian. Values are IEEE doubles, 64-bit
    integers, single bytes, microseconds since 1970 in UTC; a null is 0. Strings are all lengths in bytes, then all UTF-8.
    Raises Invalid for a column of another type.
    """
    digest = hashlib.sha256(struct.pack("<Q", frame.height))
    for column in frame:
        name, values = _encoded(column)
        digest.update(_sized(column.name.encode()) + _sized(name))
        digest.update(column.is_null().to_numpy().astype("|u1").tobytes())
        digest.update(values)
    return digest.hexdigest()


def chained(previous: str, digest: str) -> str:
    """Return the digest of a history: the one before, "" at the beginning, followed by what `digest` stands for."""
    return hashlib.sha256(bytes.fromhex(previous) + bytes.fromhex(digest)).hexdigest()


def _encoded(column: pl.Series) -> tuple[bytes, bytes]:
    if column.dtype == pl.String:
        text = column.fill_null("")
        lengths = text.str.len_bytes().to_numpy().astype("<u8").tobytes()
        return b"string", lengths + "".join(text).encode()
    if column.dtype not in _NAMES:
        raise Invalid(f"column {column.name!r}: no digest of type {column.dtype}")
    name, dtype = _NAMES[column.dtype]
    values = column.to_physical().fill_null(value=False if column.dtype == pl.Boolean else 0)
    return name, values.to_numpy().astype(dtype).tobytes()


def _sized(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text

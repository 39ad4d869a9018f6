"""The bytes behind a uri, from the roots that an operator allows and from nowhere else."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import obstore

from meguri_chassis.places import Object, Unreadable, below, file_errors, open_at_once, store_errors
from meguri_contracts.errors import TooLarge


def size_of(uri: str, roots: Sequence[str]) -> int:
    """Return how many bytes are at `uri`. Raises what `open_uri` raises."""
    where = below(uri, roots)
    if isinstance(where, Path):
        with file_errors(uri):
            return where.stat().st_size
    with store_errors(uri):
        return int(obstore.head(where.store, where.key)["size"])


def open_uri(uri: str, roots: Sequence[str], *, limit: int) -> bytes:
    """Return the bytes at `uri`, at most `limit` of them.

    `roots` are URLs such as file:///srv/incoming or s3://bucket/prefix. Raises NotAllowed outside of all of them, NotFound,
    TooLarge, Unreadable, and Unreachable when the store is in trouble.
    """
    where = below(uri, roots)
    return _open_file(where, uri, limit) if isinstance(where, Path) else _open_object(where, uri, limit)


def _open_file(path: Path, uri: str, limit: int) -> bytes:
    with file_errors(uri), open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{uri!r} is not a plain file")
        if status.st_size > limit:
            raise _too_large(uri, status.st_size, limit)
        return file.read(status.st_size)


def _open_object(where: Object, uri: str, limit: int) -> bytes:
    with store_errors(uri):
        found = obstore.get(where.store, where.key)
        if found.meta["size"] > limit:
            raise _too_large(uri, found.meta["size"], limit)
        return bytes(found.bytes())


def _too_large(uri: str, size: int, limit: int) -> TooLarge:
    return TooLarge(f"{uri!r} has {size} bytes, at most {limit} are taken; send it in parts")

"""The bytes behind a uri, from the roots that an operator allows and from nowhere else."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
import obstore.exceptions

from meguri_contracts.errors import Malformed, NotFound, PermanentError, TemporaryError, TooLarge

_CLIENT = {"allow_http": True, "connect_timeout": "5s", "timeout": "60s"}
_RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}


class NotAllowed(PermanentError):
    """A uri outside of the allowed roots."""

    def __init__(self, uri: str, roots: Sequence[str]) -> None:
        super().__init__(f"{uri!r} is not under an allowed root; allowed are {', '.join(roots) or 'none'}")


class Unreadable(PermanentError):
    """A file that is there but cannot be opened as one."""


class Unreachable(TemporaryError):
    """The store that a uri names does not answer, or not as it should."""


def size_of(uri: str, roots: Sequence[str]) -> int:
    """Return how many bytes are at `uri`. Raises what `open_uri` raises."""
    where = _below(uri, roots)
    if isinstance(where, Path):
        with _file_errors(uri):
            return where.stat().st_size
    with _store_errors(uri):
        return int(obstore.head(_store(where), where.key)["size"])


def open_uri(uri: str, roots: Sequence[str], *, limit: int) -> bytes:
    """Return the bytes at `uri`, at most `limit` of them.

    `roots` are URLs such as file:///srv/incoming or s3://bucket/prefix. Raises NotAllowed outside of all of them, NotFound,
    TooLarge, Unreadable, and Unreachable when the store is in trouble.
    """
    where = _below(uri, roots)
    return _open_file(where, uri, limit) if isinstance(where, Path) else _open_object(where, uri, limit)


@dataclass(frozen=True)
class _Object:
    """A key in an object store."""

    root: str
    key: str


def _below(uri: str, roots: Sequence[str]) -> Path | _Object:
    """Where `uri` points to. Raises NotAllowed unless that is below a root."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise Malformed(f"{uri!r} is not a uri: {error}") from error
    if parts.query or parts.fragment:
        raise Malformed(f"{uri!r}: write ? and # in a name as %3F and %23")
    for root in map(urlsplit, roots):
        if root.scheme != parts.scheme:
            continue
        if parts.scheme == "file":
            path = _path(parts)
            if path is not None and (base := _path(root)) is not None and path.is_relative_to(base):
                return path
        elif root.netloc == parts.netloc and (key := _key(parts, root)) is not None:
            return _Object(root.geturl(), key)
    raise NotAllowed(uri, roots)


def _path(parts: SplitResult) -> Path | None:
    """The file that a file: uri names in the end, links and dots followed; None if it names none of this machine."""
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        return None
    return Path(os.path.realpath(path))


def _open_file(path: Path, uri: str, limit: int) -> bytes:
    with _file_errors(uri), open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{uri!r} is not a plain file")
        if status.st_size > limit:
            raise _too_large(uri, status.st_size, limit)
        return file.read(status.st_size)


@contextmanager
def _file_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is nothing at {uri!r}") from error
    except OSError as error:
        raise Unreadable(f"{uri!r} cannot be opened: {error.strerror}") from error


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would hold us for ever without O_NONBLOCK; a link can only have come after the path was resolved.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _key(parts: SplitResult, root: SplitResult) -> str | None:
    """The path of an object below `root`; None if it is not below, or names its way with dots."""
    steps, base = ([unquote(step) for step in path.strip("/").split("/")] for path in (parts.path, root.path))
    base = [step for step in base if step]
    below = steps[len(base) :]
    if steps[: len(base)] != base or not below or any(step in ("", ".", "..") or "/" in step for step in below):
        return None
    return "/".join(below)


def _open_object(where: _Object, uri: str, limit: int) -> bytes:
    with _store_errors(uri):
        found = obstore.get(_store(where), where.key)
        if found.meta["size"] > limit:
            raise _too_large(uri, found.meta["size"], limit)
        return bytes(found.bytes())


def _store(where: _Object) -> obstore.store.ObjectStore:
    return obstore.store.from_url(where.root, client_options=_CLIENT, retry_config=_RETRIES)


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is nothing at {uri!r}") from error
    except ValueError as error:
        raise Malformed(f"{uri!r}: {_first_line(error)}") from error
    except (obstore.exceptions.BaseError, OSError) as error:
        raise Unreachable(f"{uri!r} cannot be fetched now: {_first_line(error)}") from error


def _too_large(uri: str, size: int, limit: int) -> TooLarge:
    return TooLarge(f"{uri!r} has {size} bytes, at most {limit} are taken; send it in parts")


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0][:300]

"""Where a uri points to, if that is below a root that an operator allows: a file of this machine, or an object in a store."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

import obstore
import obstore.exceptions

from meguri_contracts.errors import Malformed, NotFound, PermanentError, TemporaryError

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


@dataclass(frozen=True)
class Object:
    """A key in an object store."""

    root: str
    key: str

    @property
    def store(self) -> obstore.store.ObjectStore:
        return obstore.store.from_url(self.root, client_options=_CLIENT, retry_config=_RETRIES)


def below(uri: str, roots: Sequence[str]) -> Path | Object:
    """Where `uri` points to. Raises NotAllowed unless that is below a root.

    `roots` are URLs such as file:///srv/incoming or s3://bucket/prefix.
    """
    try:
        uri.encode()  # half a surrogate pair is in no name
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
            return Object(root.geturl(), key)
    raise NotAllowed(uri, roots)


@contextmanager
def file_errors(uri: str) -> Iterator[None]:
    """Say of a file that cannot be read why. Raises NotFound, Unreadable."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is nothing at {uri!r}") from error
    except OSError as error:
        raise Unreadable(f"{uri!r} cannot be opened: {error.strerror}") from error


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Say of an object that cannot be had why. Raises NotFound, Malformed, Unreachable."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"there is nothing at {uri!r}") from error
    except ValueError as error:
        raise Malformed(f"{uri!r}: {_first_line(error)}") from error
    except (obstore.exceptions.BaseError, OSError) as error:
        raise Unreachable(f"{uri!r} cannot be fetched now: {_first_line(error)}") from error


def open_at_once(path: str, flags: int) -> int:
    """Opener of a plain file: a pipe would hold us for ever without O_NONBLOCK; a link can only have come after `below`."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _path(parts: SplitResult) -> Path | None:
    """The file that a file: uri names in the end, links and dots followed; None if it names none of this machine."""
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        return None
    return Path(os.path.realpath(path))


def _key(parts: SplitResult, root: SplitResult) -> str | None:
    """The path of an object below `root`; None if it is not below, or names its way with dots."""
    steps, base = ([unquote(step) for step in path.strip("/").split("/")] for path in (parts.path, root.path))
    base = [step for step in base if step]
    below = steps[len(base) :]
    if steps[: len(base)] != base or not below or any(step in ("", ".", "..") or "/" in step for step in below):
        return None
    return "/".join(below)


def _first_line(error: object) -> str:
    return str(error).partition("\n")[0][:300]

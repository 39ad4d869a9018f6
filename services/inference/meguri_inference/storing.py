"""The files that batches read and write: below the roots that an operator allows, and never seen half written."""

import hashlib
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from meguri_chassis.places import Object, Unreadable, below, file_errors, store_errors
from meguri_contracts.errors import Conflict, TemporaryError
from meguri_inference.parts import sha256

SETTLED = 2.0
"""Seconds after which another write to a file has another time: only of such a file the digest is remembered."""
_REMEMBERED = 64
_UNFINISHED = re.compile(r"\.(part|_shard|_batch)\b.*\.[0-9a-f]{32}")
"""Names under which files are written until they are whole."""


class InputChanged(Conflict):
    def __init__(self, uri: str, before: str, now: str) -> None:
        super().__init__(
            f"the input {uri!r} has changed since the batch began: its SHA-256 was {before[:12]}… and is {now[:12]}…; "
            "ask for another batch"
        )


class OutputUnavailable(TemporaryError):
    """The place for the predictions takes nothing at the moment."""


@dataclass(frozen=True)
class Input:
    """A file of rows as it was found. `path` is on this machine."""

    uri: str
    path: Path
    digest: str
    """SHA-256 of its bytes, in hex."""


class Inputs:
    """Files of rows below `roots`. Objects are fetched into a folder of this process (see TMPDIR), the latest is kept."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._digests: dict[tuple[object, ...], str] = {}
        self._one_by_one = threading.Lock()

    def require_allowed(self, uri: str) -> None:
        """Raise NotAllowed if `uri` is not below a root."""
        below(uri, self._roots)

    def open(self, uri: str) -> Input:
        """Return the file at `uri` with its digest. Raises NotAllowed, NotFound, Unreadable, Unreachable."""
        with self._one_by_one:
            where = below(uri, self._roots)
            path = where if isinstance(where, Path) else self._fetched(uri, where)
            with file_errors(uri):
                return Input(uri, path, self._digest(path, uri))

    def require_unchanged(self, uri: str, digest: str) -> Input:
        """Return the file at `uri`. Raises InputChanged if it has another digest."""
        found = self.open(uri)
        if found.digest != digest:
            raise InputChanged(uri, digest, found.digest)
        return found

    def _digest(self, path: Path, uri: str) -> str:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable(f"{uri!r} is not a plain file")
        identity = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if (known := self._digests.get(identity)) is None:
            known = sha256(path)
            if time.time() - status.st_mtime > SETTLED:
                self._digests[identity] = known
                while len(self._digests) > _REMEMBERED:
                    del self._digests[next(iter(self._digests))]
        return known

    def _fetched(self, uri: str, where: Object) -> Path:
        with store_errors(uri):
            found = obstore.get(where.store, where.key)
            meta = found.meta
            identity = f"{uri}\n{meta['e_tag']}\n{meta['last_modified']}\n{meta['size']}"
            name = f"{hashlib.sha256(identity.encode()).hexdigest()}{Path(where.key).suffix}"
            self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="meguri-fetched-")
            kept = Path(self._scratch.name) / name
            if kept.exists():
                return kept
            for old in kept.parent.iterdir():
                old.unlink()
            with _written(kept) as path, path.open("wb") as file:
                for block in found.stream():
                    file.write(block)
        return kept


class Outputs:
    """Folders for predictions below `roots`."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots

    def open(self, uri: str) -> "Output":
        """Return the folder at `uri`. Raises NotAllowed."""
        where = below(uri, self._roots)
        return Folder(uri, where) if isinstance(where, Path) else Bucket(uri, where)


class Folder:
    """A folder of this machine, or of one that it shares."""

    def __init__(self, uri: str, path: Path) -> None:
        self.uri = uri.rstrip("/")
        self._path = path

    def get(self, name: str) -> bytes | None:
        """Return a file that is there, or None."""
        with _write_errors(self.uri):
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def claim(self, name: str, content: bytes) -> bytes:
        """Write a file if there is none yet, and return what it holds: of several that do this at once one prevails."""
        with _write_errors(self.uri):
            self._path.mkdir(parents=True, exist_ok=True)
            own = self._path / f".{name}.{uuid4().hex}"
            try:
                own.write_bytes(content)
                with suppress(FileExistsError):
                    os.link(own, self._path / name)
            finally:
                own.unlink(missing_ok=True)
            return (self._path / name).read_bytes()

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        """A path to write to; what stands there becomes the file `name` as a whole when the block is left."""
        with _write_errors(self.uri):
            self._path.mkdir(parents=True, exist_ok=True)
            with _written(self._path / name) as path:
                yield path

    def tidy(self) -> None:
        """Remove what was begun here by those that were killed over it; who still writes finds it gone, and tries again."""
        with _write_errors(self.uri):
            for left in self._path.iterdir():
                if _UNFINISHED.fullmatch(left.name):
                    left.unlink(missing_ok=True)


class Bucket:
    """A prefix in an object store, whose objects are there as a whole or not at all."""

    def __init__(self, uri: str, where: Object) -> None:
        self.uri = uri.rstrip("/")
        self._where = where

    def get(self, name: str) -> bytes | None:
        with _write_errors(self.uri):
            try:
                return bytes(obstore.get(self._where.store, self._key(name)).bytes())
            except FileNotFoundError:
                return None

    def claim(self, name: str, content: bytes) -> bytes:
        with _write_errors(self.uri), suppress(AlreadyExistsError):
            obstore.put(self._where.store, self._key(name), content, mode="create")
        return self.get(name) or b""

    @contextmanager
    def written(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            yield path
            with _write_errors(self.uri):
                obstore.put(self._where.store, self._key(name), path)

    def tidy(self) -> None:
        """Nothing to do: a store shows what is whole."""

    def _key(self, name: str) -> str:
        return f"{self._where.key.rstrip('/')}/{name}"


Output = Folder | Bucket


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    own = path.parent / f".{path.name}.{uuid4().hex}"
    try:
        yield own
        with own.open("rb") as file:
            os.fsync(file.fileno())
        own.replace(path)
        _keep_name(path.parent)
    finally:
        own.unlink(missing_ok=True)


def _keep_name(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _write_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise OutputUnavailable(f"cannot write to {uri!r}: {str(error).partition(chr(10))[0][:300]}") from error

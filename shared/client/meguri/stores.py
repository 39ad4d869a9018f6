"""Delta tables and artifacts, in folders or object stores, out of them and back."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from meguri.client import MeguriClientError

LOG_FOLDER = "_delta_log"
LAST_CHECKPOINT = "_last_checkpoint"
"""A hint for readers, which may name a checkpoint that a copy does not have."""

UNUSED_HOURS = 1
"""Hours for which files stay that a table of predictions no longer needs."""


class StoreTrouble(MeguriClientError):
    """A folder or object store does not do as asked."""


def data_url() -> str:
    """Where the Delta tables are: MEGURI_DATA_URL, or the folder data below MEGURI_VAR."""
    return os.environ.get("MEGURI_DATA_URL") or str(_var() / "data")


def artifacts_url() -> str:
    """Where the artifacts are: MEGURI_ARTIFACTS_URL, or the folder artifacts below MEGURI_VAR."""
    return os.environ.get("MEGURI_ARTIFACTS_URL") or str(_var() / "artifacts")


def is_empty(url: str) -> bool:
    with _translated(url):
        return not _paths(_opened(url))


def copy_artifacts(url: str, folder: Path) -> None:
    """Copy everything below `url`; content-addressed files never change."""
    with _translated(url):
        store = _opened(url)
        for path in _paths(store):
            _fetch(store, path, folder)


def copy_tables(url: str, folder: Path, versions: Mapping[str, int]) -> None:
    """Copy the Delta tables below `url`: those of datasets up to the stated version, all others as they are now.

    A table of a dataset that has no version yet is left out.
    """
    with _translated(url):
        store = _opened(url)
        tables = sorted({path.partition(f"/{LOG_FOLDER}/")[0] for path in _paths(store) if f"/{LOG_FOLDER}/" in path})
        for table in tables:
            is_dataset = not table.startswith("_")
            _copy_table(store, table, folder, versions.get(table, -1) if is_dataset else None)


def put_back(folder: Path, url: str) -> None:
    """Copy every file below `folder` to `url`."""
    with _translated(url):
        store = _opened(url)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                obstore.put(store, path.relative_to(folder).as_posix(), path)


def _copy_table(store: ObjectStore, table: str, folder: Path, upto: int | None) -> None:
    commits = _versions(_paths(store, f"{table}/{LOG_FOLDER}"))
    last = max(commits, default=-1) if upto is None else upto
    if last < 0:
        return
    # Looked for after the commits, so that what they name is there.
    paths, looked = _paths(store, table), time.monotonic()
    if upto is None:
        _copy_present(store, table, paths, last, folder)
        if time.monotonic() - looked > UNUSED_HOURS * 3600:
            raise StoreTrouble(f"copying {table} took longer than its files are sure to stay: {UNUSED_HOURS} hours")
        return
    later = {version: path for version, path in _versions(paths).items() if version > last}
    not_yet = {f"{table}/{added}" for path in later.values() for added in _added(store, path)}
    for path in paths:
        name = path.rpartition("/")[2]
        in_log = path.startswith(f"{table}/{LOG_FOLDER}/")
        is_wanted = (name != LAST_CHECKPOINT and _version(name) <= last) if in_log else path not in not_yet
        if is_wanted:
            _fetch(store, path, folder)


def _copy_present(store: ObjectStore, table: str, paths: list[str], last: int, folder: Path) -> None:
    """Copy a table whose owner removes what it no longer needs while we look: what has gone meanwhile was not needed."""
    log = {path: _version(path.rpartition("/")[2]) for path in paths if path.startswith(f"{table}/{LOG_FOLDER}/")}
    begins = max((version for path, version in log.items() if ".checkpoint" in path and version <= last), default=0)
    for path in paths:
        if path not in log:
            with suppress(FileNotFoundError):
                _fetch(store, path, folder)
        elif begins <= log[path] <= last:
            _fetch(store, path, folder)


def _versions(paths: list[str]) -> dict[int, str]:
    """Commits by version."""
    names = {path: path.rpartition("/")[2] for path in paths if f"/{LOG_FOLDER}/" in path}
    return {_version(name): path for path, name in names.items() if name.endswith(".json") and name[:20].isdigit()}


def _version(name: str) -> int:
    return int(name[:20]) if name[:20].isdigit() else -1


def _added(store: ObjectStore, commit: str) -> Iterator[str]:
    for line in bytes(obstore.get(store, commit).bytes()).splitlines():
        if add := json.loads(line).get("add"):
            yield unquote(add["path"])


def _fetch(store: ObjectStore, path: str, folder: Path) -> None:
    found = obstore.get(store, path).stream()
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for chunk in found:
            out.write(chunk)


def _paths(store: ObjectStore, below: str | None = None) -> list[str]:
    return sorted(found["path"] for chunk in obstore.list(store, below) for found in chunk)


def _opened(url: str) -> ObjectStore:
    if "://" not in url:
        url = Path(url).absolute().as_uri()
    if url.startswith("file://"):
        Path(unquote(urlparse(url).path)).mkdir(parents=True, exist_ok=True)
    return from_url(url)


def _var() -> Path:
    return Path(os.environ.get("MEGURI_VAR", "var"))


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise StoreTrouble(f"{url}: {str(error).partition(chr(10))[0][:300]}") from error

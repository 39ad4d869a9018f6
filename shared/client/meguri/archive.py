"""A backup as a folder: files, and at last a manifest with their digests. A folder without a manifest is no backup."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meguri.client import MeguriClientError

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1024 * 1024


class NotEmpty(MeguriClientError):
    """Something stands where something is to be put."""


class NoBackup(MeguriClientError):
    """The folder holds no whole backup."""


class Damaged(NoBackup):
    """A file is not what the manifest says."""


def begin(folder: Path) -> None:
    """Make the folder of a backup. Raises NotEmpty."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise NotEmpty(f"{folder} is not empty: a backup needs a folder of its own")


def finish(folder: Path, contents: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest, the last of all files; from then on the folder is a backup."""
    files = {path: _described(folder / path) for path in _files(folder)}
    manifest = {"format": FORMAT, **contents, "files": files}
    unfinished = folder / f"{MANIFEST}.unfinished"
    with unfinished.open("w", encoding="utf-8") as out:
        json.dump(manifest, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    unfinished.rename(folder / MANIFEST)
    return manifest


def manifest(folder: Path) -> dict[str, Any]:
    """Return what the manifest says. Raises NoBackup."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NoBackup(f"{folder} has no {MANIFEST}: it is no backup, or one that was not finished") from error
    except ValueError as error:
        raise Damaged(f"{folder / MANIFEST} cannot be read: {error}") from error
    if found.get("format") != FORMAT:
        raise NoBackup(f"{folder} is of format {found.get('format')}, this is for format {FORMAT}")
    return dict(found)


def check(folder: Path) -> dict[str, Any]:
    """Return the manifest if every file is there and as it was written. Raises NoBackup, Damaged."""
    found = manifest(folder)
    for path, said in found["files"].items():
        file = folder / path
        if not file.is_file() or _described(file) != said:
            raise Damaged(f"{file} is not the file that was backed up; nothing was changed")
    return found


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def _described(file: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}

"""Lets an operator put a message right in an editor."""

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from meguri.client import MeguriClientError


class NotEdited(MeguriClientError):
    """What came out of the editor is nothing to send."""


def edited(body: bytes) -> bytes:
    """Open $VISUAL, $EDITOR or vi on a body, JSON with indents, and return what was saved. Raises NotEdited."""
    shown = _indented(body)
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="meguri-") as folder:
        file = Path(folder) / "body.json"
        file.write_bytes(shown)
        if subprocess.run([*command, str(file)], check=False).returncode:  # noqa: S603 - the operator's own editor
            raise NotEdited(f"{command[0]} failed, nothing was sent")
        found = file.read_bytes()
    if found.strip() in (b"", shown.strip()):
        raise NotEdited("nothing was changed, so nothing was sent")
    return require_json(found)


def require_json(body: bytes) -> bytes:
    """Return a body without indents. Raises NotEdited for one that no service could read."""
    try:
        return json.dumps(json.loads(body), separators=(",", ":"), ensure_ascii=False).encode()
    except ValueError as error:
        raise NotEdited(f"the new body is not JSON, so nothing was sent: {error}") from error


def _indented(body: bytes) -> bytes:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False).encode() + b"\n"
    except ValueError:
        return body

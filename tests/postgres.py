"""A PostgreSQL of the tests' own, out of the binaries of Debian's package."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BINARIES = next((p.parent for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
HAS_POSTGRES = _BINARIES is not None


@contextmanager
def running_postgres(folder: Path, port: int) -> Iterator[str]:
    """Run a server in an empty folder; yields its address, without a database name. Its files are not synced."""
    assert _BINARIES is not None
    # PostgreSQL refuses to run as root; the user of Debian's package is there where its binaries are.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011) if parent.owner() == "root" and parent != Path("/") else None
    data = folder / "data"
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
    _as(user, _BINARIES / "initdb", "-D", data, "-U", "meguri", "-A", "trust", "-E", "UTF8", "--no-sync")
    _as(user, _BINARIES / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
    try:
        yield f"postgresql://meguri@127.0.0.1:{port}"
    finally:
        stop = [str(_BINARIES / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(stop, check=False, user=user, stdout=subprocess.DEVNULL, cwd="/")


def _as(user: str | None, *command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")

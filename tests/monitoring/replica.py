"""Monitoring in a process of its own, which may be killed."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import ROOT, Broker, free_port


class Replica:
    """A process of monitoring with tables and files of the test's own."""

    def __init__(self, broker: Broker, folder: Path, database_url: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._env = os.environ | {
            "MEGURI_NATS_URL": broker.url,
            "MEGURI_DATABASE_URL": database_url,
            "MEGURI_VAR": str(folder),
            "MEGURI_PORT": str(self.port),
        }
        self._log = folder / "monitoring.log"

    @contextmanager
    def living(self) -> Iterator[subprocess.Popen[bytes]]:
        """Until the block is left; then it is killed, whatever it does."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "meguri_monitoring"]
            process = subprocess.Popen(command, env=self._env, cwd=ROOT, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    async def ready(self) -> bool:
        async with httpx.AsyncClient() as http:
            try:
                return (await http.get(f"{self.url}/health/ready")).is_success
            except httpx.HTTPError:
                return False

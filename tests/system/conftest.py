"""A whole meguri as a user starts it: `make run`'s processes on free ports, the story played once for all tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from meguri.client import Meguri
from meguri_contracts.topology import PORTS
from tests.conftest import PATIENCE, ROOT, free_port

NEXT_REPLICA = 10
"""How much further on the port of a service's second replica is."""
STORY_PATIENCE = 400
"""Seconds in which the story must have been played."""


@dataclass(frozen=True)
class Laptop:
    """The running system: its environment, its folder, and what the story printed."""

    env: dict[str, str]
    var: Path
    printed: Path

    @property
    def story(self) -> str:
        return self.printed.read_text()

    def pid(self, name: str) -> int:
        command = [
            sys.executable,
            "-m",
            "supervisor.supervisorctl",
            "-c",
            str(self.var / "supervisord.conf"),
            "pid",
            name,
        ]
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
        return int(found) if found.isdigit() else 0


def environment(var: Path) -> dict[str, str]:
    """Return the environment of a system of its own: free ports, its own folder."""
    ports = {f"MEGURI_{service.upper()}_PORT": str(free_port(NEXT_REPLICA)) for service in PORTS}
    ports |= {"MEGURI_NATS_PORT": str(free_port()), "MEGURI_NATS_MONITOR_PORT": str(free_port())}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEGURI_", "OTEL_"))}
    return kept | ports | {"MEGURI_VAR": str(var)}


@contextmanager
def started(env: dict[str, str], printed: Path, option: str, until: str) -> Iterator[None]:
    """Run what `make run` runs, from when it has printed `until` on."""
    with printed.open("w") as out:
        command = [sys.executable, "-m", "infra.local.run", *([option] if option else [])]
        running = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + STORY_PATIENCE
        while until not in printed.read_text():
            assert running.poll() is None, printed.read_text()
            assert time.monotonic() < end, printed.read_text()
            time.sleep(0.1)
        yield
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(PATIENCE)


@pytest.fixture(scope="session")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """The system after its story, still running."""
    folder = tmp_path_factory.mktemp("system")
    # Where somebody's home may be.
    var = folder / "巡り no. 1"
    laptop = Laptop(environment(var), var, folder / "printed")
    with started(laptop.env, laptop.printed, "", "goes on running"):
        yield laptop


@pytest.fixture
def laptop(played: Laptop, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    """The same, with this test's environment pointing to it."""
    for name, value in played.env.items():
        if name.startswith("MEGURI_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("MEGURI_NATS_URL", f"nats://127.0.0.1:{played.env['MEGURI_NATS_PORT']}")
    return played


@pytest.fixture
def meguri(laptop: Laptop) -> Iterator[Meguri]:
    with Meguri(actor="test") as client:
        yield client

"""A service starts in any order, says what it waits for, and goes when it is told to. The registry stands for all of them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from meguri.provisioning import provision
from meguri_chassis.store import StoreUnavailable
from meguri_contracts.topology import LOG
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.conftest import PATIENCE, ROOT, Broker, free_port, until
from tests.services import running


class Process:
    """A registry of its own, as an operator starts it."""

    def __init__(self, folder: Path, nats_url: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "registry.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEGURI_", "OTEL_"))}
        env = kept | {
            "MEGURI_NATS_URL": nats_url,
            "MEGURI_VAR": str(folder / "var"),
            "MEGURI_REGISTRY_PORT": self.url.rpartition(":")[2],
            # Whoever waited for it would not have ended when patience does.
            "MEGURI_GRACEFUL_TIMEOUT": str(10 * PATIENCE),
        }
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "meguri_registry"]
            self.process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log)

    def get(self, path: str) -> httpx.Response | None:
        """The answer; none while nobody listens."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}{path}")
        except httpx.TransportError:
            return None

    def reasons(self) -> str:
        """Why it is not ready; empty when it is."""
        answer = self.get("/health/ready")
        assert answer is not None
        assert answer.is_success is answer.json()["ready"]
        assert answer.status_code in (200, 503)
        return "; ".join(answer.json()["reasons"])

    def ends_well(self) -> bool:
        """Tell it to stop, and wait until it has."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return "Application shutdown complete" in self.log.read_text()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    started = []

    def start(nats_url: str) -> Process:
        started.append(Process(tmp_path, nats_url))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()


def says(process: Process, words: str) -> Callable[[], Any]:
    return lambda: words in process.reasons()


async def test_a_service_that_comes_first_waits_and_says_for_what_until_all_is_there(registry, tmp_path):
    folder = tmp_path / "nats"
    folder.mkdir()
    broker = Broker(folder)
    process = registry(broker.url)
    live = await until(lambda: process.get("/health/live"))
    assert (live.status_code, live.json()) == (200, {"live": True})
    await until(says(process, f"waiting for the broker at {broker.url}"))
    assert process.get("/metrics").status_code == 200
    assert process.get("/health/live").status_code == 200

    broker.start()
    try:
        await until(says(process, "stream MEGURI is missing: run `meguri provision`"))
        await provision(broker.url)
        await until(lambda: process.reasons() == "", "readiness")
    finally:
        broker.kill()


async def test_a_service_is_not_ready_while_the_broker_is_away_and_stops_when_it_has_nothing_to_do(registry, broker):
    process = registry(broker.url)
    await until(lambda: process.get("/health/live"))
    await until(lambda: process.reasons() == "", "readiness")
    broker.kill()
    await until(says(process, f"no connection to the broker at {broker.url}"))
    broker.start()
    await until(lambda: process.reasons() == "", "readiness again")

    assert process.ends_well()


async def test_a_service_stops_when_it_has_nothing_to_do_also_while_the_broker_is_away(registry, broker):
    process = registry(broker.url)
    await until(lambda: process.get("/health/live"))
    await until(lambda: process.reasons() == "", "readiness")
    broker.kill()
    await until(says(process, "no connection to the broker"))

    assert process.ends_well()


async def test_a_service_stops_although_a_task_of_it_has_lost_its_cancellation(broker, tmp_path):
    service = build(Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/r.db", var=tmp_path))
    began = asyncio.Event()

    async def deaf_once() -> None:
        with suppress(asyncio.CancelledError):
            began.set()
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    service.follow(service.reader(LOG, ["meguri.events.>"], "deaf"), deaf_once)
    async with asyncio.timeout(PATIENCE), running(service):
        await began.wait()


async def test_a_warning_that_cannot_be_looked_up_says_why_and_the_replica_stays_ready(broker, tmp_path):
    service = build(Settings(nats_url=broker.url, var=tmp_path))

    def away() -> str:
        raise StoreUnavailable("the database does not answer: it is away")

    service.warnings += [away, lambda: "look here"]
    async with running(service) as http:
        answer = await http.get("/health/ready")

    assert answer.status_code == 200
    assert answer.json()["warnings"] == ["the database does not answer: it is away", "look here"]

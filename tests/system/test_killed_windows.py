"""Two replicas of monitoring share a model, and one of them is killed in every window: the windows are those of a calm day."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from meguri.provisioning import provision
from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import DriftDetected, EpisodeResolved
from tests.conftest import Broker, until
from tests.monitoring.conftest import WINDOW, Monitoring, message, values
from tests.monitoring.test_killed import Replica
from tests.services import wire

pytestmark = pytest.mark.timeout(600)

MODEL = "shared"
KILLS = int(os.environ.get("MEGURI_KILLS", "6"))
"""One for each window. A restart takes its time: MEGURI_KILLS=20 is for those who have it."""
MOVED = range(KILLS * 2 // 5, KILLS * 13 // 20 + 1)
"""Windows in which one producer's rows are moved: what follows must be the same, too."""
WITHIN = 120.0
"""Seconds for a window: a task of a replica that was killed is delivered again after a while only."""


class Pair:
    """Two replicas on one broker and one database, of which one is killed at a time."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._living = [ExitStack() for _ in replicas]

    @property
    def urls(self) -> list[str]:
        return [replica.url for replica in self._replicas]

    def __enter__(self) -> "Pair":
        for nth in range(len(self._replicas)):
            self._start(nth)
        return self

    def __exit__(self, *_: object) -> None:
        for living in self._living:
            living.close()

    async def ready(self, nth: int) -> None:
        await until(self._replicas[nth].ready, f"readiness of replica {nth}", within=WITHIN)

    def kill(self, nth: int) -> None:
        """Kill one with -9, and start it again."""
        self._living[nth].close()
        self._start(nth)

    def _start(self, nth: int) -> None:
        self._living[nth].enter_context(self._replicas[nth].living())


async def test_windows_are_the_same_whoever_is_killed_in_them(own_broker, tmp_path, database_url):
    for name in ("disturbed", "calm", "calm-nats"):
        (tmp_path / name).mkdir()
    disturbed = await counted(own_broker, tmp_path / "disturbed", database_url, kills=True)
    async with broker_in(tmp_path / "calm-nats") as broker:
        calm = await counted(broker, tmp_path / "calm", f"sqlite:///{tmp_path}/calm.db", kills=False)

    assert disturbed == calm
    assert len(calm["windows"]) == KILLS
    assert (calm["began"], calm["ended"]) == (1, 1)


async def counted(broker: Broker, folder: Path, database_url: str, *, kills: bool) -> dict[str, Any]:
    """Have all predictions counted; return the windows and how many episodes began and ended."""
    with Pair([Replica(broker, folder, database_url) for _ in range(2 if kills else 1)]) as pair:
        await pair.ready(0)
        async with beside(broker, folder) as monitoring:
            await monitoring.watch()
            for number in range(KILLS):
                await predict_a_window(monitoring, number, pair if kills else None)
            windows = await until(lambda: judged(pair, monitoring), f"{KILLS} windows", within=WITHIN)
            return {
                "windows": windows,
                "began": len(await monitoring.wire.said(DriftDetected, MODEL)),
                "ended": len(await monitoring.wire.said(EpisodeResolved, MODEL)),
            }


@asynccontextmanager
async def broker_in(folder: Path) -> AsyncIterator[Broker]:
    broker = Broker(folder)
    broker.start()
    try:
        await provision(broker.url)
        yield broker
    finally:
        broker.kill()


async def predict_a_window(monitoring: Monitoring, number: int, pair: Pair | None) -> None:
    """Publish a window's rows; in the middle of it a replica is killed, each in turn."""
    bodies = list(messages(number))
    middle = 1 + number % (len(bodies) - 1)
    if pair:
        await pair.ready(number % 2)
    await monitoring.predict(*bodies[:middle])
    if pair:
        pair.kill(number % 2)
    await monitoring.predict(*bodies[middle:])


def messages(number: int) -> Iterator[bytes]:
    """The rows of a window, of three producers, in messages that end somewhere in it."""
    random = np.random.default_rng(number)
    cuts = [0, *(nth * WINDOW // 6 + int(random.integers(-4, 5)) for nth in range(1, 6)), WINDOW]
    rows = values(WINDOW, number)
    for nth, (first, last) in enumerate(pairwise(cuts)):
        producer = f"camera-{nth % 3}"
        part = rows[first:last] + (3.0 if number in MOVED and nth % 3 == 1 else 0.0) * np.array([1, 0])
        ids = [f"p-{number}-{row}" for row in range(first, last)]
        yield message(MODEL, part, producer, ids=ids, time=datetime(2026, 5, 1, 12, number, tzinfo=UTC))


@asynccontextmanager
async def beside(broker: Broker, folder: Path) -> AsyncIterator[Monitoring]:
    async with wire(broker) as own, httpx.AsyncClient() as http:
        yield Monitoring(http, own, Artifacts(f"file://{folder}/artifacts"), folder, MODEL)


async def judged(pair: Pair, monitoring: Monitoring) -> list[dict[str, Any]] | None:
    """All windows as one of the replicas tells of them, once it was concluded from each."""
    for url in pair.urls:
        try:
            answer = await monitoring.http.get(f"{url}/models/{MODEL}/windows", params={"limit": 1000})
        except httpx.HTTPError:
            continue
        found = [one for one in answer.json() if one["decided"]]
        if len(found) == KILLS:
            return sorted(({**one, "window_id": None} for one in found), key=lambda one: one["number"])
    return None

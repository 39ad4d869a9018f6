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
from meguri_chassis.profiles import RANK_ERROR
from meguri_contracts.events import DriftDetected, EpisodeResolved
from tests.conftest import Broker, until
from tests.monitoring.conftest import WINDOW, Monitoring, message, values
from tests.monitoring.replica import Replica
from tests.services import wire

pytestmark = pytest.mark.timeout(600)

MODEL = "shared"
KILLS = int(os.environ.get("MEGURI_KILLS", "6"))
"""One for each window. A restart takes its time: MEGURI_KILLS=20 is for those who have it."""
MOVED = range(KILLS * 2 // 5, KILLS * 13 // 20 + 1)
"""Windows in which one producer's rows are moved: what follows must be the same, too."""
LARGE, LARGE_WINDOWS = 45_000, 1
"""Rows of a window of three parts, in which each producer has far more than profiles keep one by one."""
OF_SKETCHES = ("ks", "p_value", "score", "wasserstein")
"""What is estimated of such a window, but for the scores of columns that are judged by their counts alone."""
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


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_windows_are_the_same_whoever_is_killed_in_them(broker, tmp_path, database_url):
    for name in ("disturbed", "calm", "calm-nats"):
        (tmp_path / name).mkdir()
    disturbed = await counted(broker, tmp_path / "disturbed", database_url, kills=True)
    async with broker_in(tmp_path / "calm-nats") as broker:
        calm = await counted(broker, tmp_path / "calm", f"sqlite:///{tmp_path}/calm.db", kills=False)

    assert disturbed == calm
    assert len(calm["windows"]) == KILLS
    assert (calm["began"], calm["ended"]) == (1, 1)


async def test_large_windows_have_the_same_counts_and_distances_within_the_bound_of_sketches(broker, tmp_path):
    large = {"rows": LARGE, "windows": LARGE_WINDOWS}
    for name in ("disturbed", "calm", "calm-nats"):
        (tmp_path / name).mkdir()
    disturbed = await counted(broker, tmp_path / "disturbed", f"sqlite:///{tmp_path}/disturbed.db", kills=True, **large)
    async with broker_in(tmp_path / "calm-nats") as broker:
        calm = await counted(broker, tmp_path / "calm", f"sqlite:///{tmp_path}/calm.db", kills=False, **large)

    assert [one["window"]["rows"] for one in calm["windows"]] == [LARGE] * LARGE_WINDOWS
    for one, other in zip(disturbed["windows"], calm["windows"], strict=True):
        assert exact(one) == exact(other)
        for ours, theirs in zip(one["findings"], other["findings"], strict=True):
            assert ours["ks"] == pytest.approx(theirs["ks"], abs=2 * RANK_ERROR)
            assert ours["wasserstein"] == pytest.approx(theirs["wasserstein"], abs=0.1)


def exact(window: dict[str, Any]) -> dict[str, Any]:
    """What does not come from sketches."""

    def of(finding: dict[str, Any]) -> dict[str, Any]:
        by_counts = ("score",) if finding["method"] not in ("ks or wasserstein", "ks", "wasserstein") else ()
        return {key: value for key, value in finding.items() if key not in OF_SKETCHES or key in by_counts}

    return {**window, **{found: [of(one) for one in window[found]] for found in ("findings", "drifted")}}


async def counted(
    broker: Broker, folder: Path, database_url: str, *, kills: bool, rows: int = WINDOW, windows: int = KILLS
) -> dict[str, Any]:
    """Have all predictions counted; return the windows and how many episodes began and ended."""
    with Pair([Replica(broker, folder, database_url) for _ in range(2 if kills else 1)]) as pair:
        await pair.ready(0)
        async with beside(broker, folder) as monitoring:
            by_counts = {"y": {"method": "psi", "threshold": 0.2}} if rows == LARGE else {}
            await monitoring.watch(window_rows=rows, methods=by_counts)
            for number in range(windows):
                await predict_a_window(monitoring, number, rows, pair if kills else None)
            found = await until(lambda: judged(pair, monitoring, windows), f"{windows} windows", within=WITHIN)
            return {
                "windows": found,
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


async def predict_a_window(monitoring: Monitoring, number: int, rows: int, pair: Pair | None) -> None:
    """Publish a window's rows; in the middle of it a replica is killed, each in turn."""
    bodies = list(messages(number, rows))
    middle = 1 + number % (len(bodies) - 1)
    if pair:
        await pair.ready(number % 2)
    await monitoring.predict(*bodies[:middle])
    if pair:
        pair.kill(number % 2)
    await monitoring.predict(*bodies[middle:])


def messages(number: int, window: int) -> Iterator[bytes]:
    """The rows of a window, of three producers, in messages that end somewhere in it."""
    random, count = np.random.default_rng(number), max(6, window // 2500)
    cuts = [0, *(nth * window // count + int(random.integers(-4, 5)) for nth in range(1, count)), window]
    rows = values(window, number)
    for nth, (first, last) in enumerate(pairwise(cuts)):
        producer = f"camera-{nth % 3}"
        part = rows[first:last] + (3.0 if number in MOVED and nth % 3 == 1 else 0.0) * np.array([1, 0])
        ids = [f"p-{number}-{row}" for row in range(first, last)]
        yield message(MODEL, part, producer, ids=ids, time=datetime(2026, 5, 1, 12, number, tzinfo=UTC))


@asynccontextmanager
async def beside(broker: Broker, folder: Path) -> AsyncIterator[Monitoring]:
    async with wire(broker) as own, httpx.AsyncClient() as http:
        yield Monitoring(http, own, Artifacts(f"file://{folder}/artifacts"), folder, MODEL)


async def judged(pair: Pair, monitoring: Monitoring, windows: int) -> list[dict[str, Any]] | None:
    """All windows as one of the replicas tells of them, once it was concluded from each."""
    for url in pair.urls:
        try:
            answer = await monitoring.http.get(f"{url}/models/{MODEL}/windows", params={"limit": 1000})
        except httpx.HTTPError:
            continue
        found = [one for one in answer.json() if one["decided"]]
        if len(found) == windows:
            return sorted(({**one, "window_id": None} for one in found), key=lambda one: one["number"])
    return None

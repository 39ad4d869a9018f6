"""Whenever a replica is killed while labels and predictions come, each label has counted once in the end."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import QualityMeasured
from tests.conftest import ROOT, Broker, free_port, until
from tests.monitoring.conftest import Monitoring, message, values
from tests.monitoring.test_quality import label, measured, sums
from tests.services import name, wire

KILLS = 3
ROWS = 25


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


@pytest.fixture
def replica(broker: Broker, tmp_path: Path, database_url: str) -> Replica:
    return Replica(broker, tmp_path, database_url)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_replica_that_is_killed_again_and_again_counts_each_label_once(replica, broker, tmp_path):
    chance = random.Random(7)
    async with wire(broker) as beside, httpx.AsyncClient(base_url=replica.url) as http:
        model = name("m")
        monitoring = Monitoring(http, beside, Artifacts(f"file://{tmp_path}/artifacts"), tmp_path, model)
        with replica.living():
            await until(replica.ready, "readiness")
            await monitoring.watch()
            await monitoring.roll_out(1, canary=2)
        for killed in range(1, KILLS + 1):
            with replica.living():
                await until(replica.ready, "readiness")
                await at_once(monitoring, chance)
                # From the first of them counted on it may be killed at any step of the rest.
                await until(lambda so_far=killed: counted(monitoring, ROWS * (so_far - 1)), "some labels")
        with replica.living():
            await until(replica.ready, "readiness")
            arms = await measured(monitoring, KILLS * ROWS, KILLS * ROWS)
            said = await beside.said(QualityMeasured, model)

    assert sums(arms) == [(1, KILLS * ROWS, KILLS * ROWS, KILLS * ROWS), (2, KILLS * ROWS, 0.0, 0.0)]
    totals = [sum(arm.labels for arm in one.arms) for one in said]
    assert totals == sorted(set(totals))


async def at_once(monitoring: Monitoring, chance: random.Random) -> None:
    """Answers of both versions, one right and one wrong, and their labels, in any order."""
    ids = {version: [name(f"v{version}") for _ in range(ROWS)] for version in (1, 2)}
    bodies = [
        message(
            monitoring.model,
            values(1, 1),
            version=version,
            ids=[one],
            role="champion" if version == 1 else "canary",
            time=datetime.now(UTC),
        )
        for version, own in ids.items()
        for one in own
    ]
    labels = {one: 7 if version == 1 else 8 for version, own in ids.items() for one in own}
    steps = [lambda body=body: monitoring.predict(body) for body in bodies]
    steps += [lambda one=one, true=true: label(monitoring, {one: true}) for one, true in labels.items()]
    chance.shuffle(steps)
    for step in steps:
        await step()


async def counted(monitoring: Monitoring, more_than: int) -> bool:
    said = await monitoring.wire.said(QualityMeasured, monitoring.model)
    return bool(said) and sum(arm.labels for arm in said[-1].arms) > 2 * more_than

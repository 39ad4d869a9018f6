"""Whenever a replica is killed while labels and predictions come, each label has counted once in the end."""

import random
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import QualityMeasured
from tests.conftest import Broker, until
from tests.monitoring.answers import label, measured, sums
from tests.monitoring.conftest import Monitoring, message, values
from tests.monitoring.replica import Replica
from tests.services import name, wire

KILLS = 3
ROWS = 25


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

"""The broker is killed under load: all go on, nothing accepted is lost."""

import asyncio
import json
import os
import signal
from uuid import uuid4

import nats
import pytest
from nats.errors import Error as NatsError

from examples.digits.publish import images
from meguri.client import Meguri
from tests.conftest import until
from tests.system.conftest import Laptop

pytestmark = pytest.mark.timeout(600)

ARRIVALS = 60
KILL_AFTER = (20, 40)


async def test_the_broker_is_killed_under_load_and_every_accepted_arrival_is_committed_once(
    laptop: Laptop, meguri: Meguri
):
    rows = images(0, 3)
    events = [f"{uuid4()}" for _ in range(ARRIVALS)]
    client = await nats.connect(os.environ["MEGURI_NATS_URL"], max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        for number, event in enumerate(events):
            if number in KILL_AFTER:
                os.kill(laptop.pid("nats"), signal.SIGKILL)
            await _publish(client, json.dumps({"records": rows}).encode(), event)
    finally:
        await client.close()

    receipts = [await asyncio.to_thread(meguri.receipt, event, wait=20) for event in events]
    assert {receipt["status"] for receipt in receipts} == {"committed"}
    assert sum(receipt["rows"] for receipt in receipts) == ARRIVALS * len(rows)
    await until(
        lambda: all(meguri.health(s)["ready"] for s in ("ingest", "training", "registry", "inference", "monitoring"))
    )


async def _publish(client: nats.NATS, payload: bytes, event: str) -> None:
    """What a good upstream does: try again with the same id until the broker says that it is on disk."""

    async def accepted() -> bool:
        try:
            headers = {"Nats-Msg-Id": event, "ce-source": "restart"}
            await client.jetstream().publish("meguri.events.data-arrived.digits", payload, headers=headers, timeout=2)
        except NatsError:
            return False
        return True

    await until(accepted, f"the acceptance of {event}")

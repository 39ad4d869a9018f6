"""A log at its limit refuses what comes, in words, and keeps what it has; with more room everything goes on."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from nats.js.errors import APIError

from meguri import client as sdk
from meguri import provisioning
from meguri.provisioning import provision
from meguri_chassis import bus
from meguri_chassis.log import LogFull
from meguri_contracts.events import DataArrived
from meguri_contracts.topology import LOG, STREAMS
from tests.conftest import PATIENCE, ROOT, Broker, small_disk, until
from tests.ingest.upstream import Ingest, body, headers, ingesting, spec
from tests.services import name, wire


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "RETRY_DELAYS", (0.2,))


@pytest.fixture
async def ingest(broker, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGURI_NATS_URL", broker.url)
    dataset = name("d")
    async with ingesting(broker, f"sqlite:///{tmp_path}/ingest.db", tmp_path, dataset) as ingest:
        await ingest.wire.apply(spec(dataset))
        yield ingest


async def fill(ingest: Ingest, url: str) -> None:
    """Give the log the limit that it has reached already."""
    state = (await ingest.wire.js.stream_info(LOG)).state
    await provision(url, log_max_bytes=state.bytes)


async def warnings(ingest: Ingest) -> str:
    answer = await ingest.http.get("/health/ready")
    assert answer.status_code == 200
    return " ".join(answer.json()["warnings"])


async def test_who_publishes_into_a_full_log_is_told_at_once_what_to_do(ingest, broker):
    await fill(ingest, broker.url)

    with pytest.raises(
        sdk.LogFull, match=r"^the log is full.*maximum bytes exceeded; raise MEGURI_LOG_MAX_BYTES.*repeat$"
    ):
        await sdk.publish(ingest.dataset, records=[{"x": 1.0, "label": 1}], producer="me")
    with pytest.raises(APIError, match="maximum bytes exceeded"):
        await ingest.send(body(1), headers(name("e")))
    async with asyncio.timeout(5):
        answer = await ingest.http.post(
            "/events", content=body(1), headers=headers(name("e")) | {"ce-subject": ingest.dataset}
        )
    assert answer.status_code == 503
    assert "MEGURI is full, the event was not accepted: maximum bytes exceeded; raise" in answer.json()["error"]
    assert "MEGURI is full" in await warnings(ingest)


async def test_what_was_accepted_before_the_log_was_full_is_committed_once_it_has_room(ingest, broker):
    ids = [name("e") for _ in range(20)]
    async with ingest.stuck():
        for n, id_ in enumerate(ids):
            await ingest.send(body(n), headers(id_))
        await fill(ingest, broker.url)
    await until(lambda: mentions(ingest, "MEGURI is full"))
    receipt = (await ingest.http.get(f"/receipts/{ids[0]}")).json()
    assert receipt["status"] == "waiting"
    await provision(broker.url)

    assert {(await ingest.receipt(id_))["status"] for id_ in ids} == {"committed"}
    assert ingest.stored()["x"].to_list() == [float(n) for n in range(20)]
    assert await warnings(ingest) == ""


async def mentions(ingest: Ingest, what: str) -> bool:
    return what in await warnings(ingest)


async def test_what_is_parked_while_the_log_is_full_is_said_once_it_has_room(ingest, broker):
    id_ = name("e")
    await ingest.send(b"no JSON", headers(id_))
    parked = await ingest.receipt(id_)
    other = name("e")
    # Room for the message, and none for the word that it was parked.
    state = (await ingest.wire.js.stream_info(LOG)).state
    await provision(broker.url, log_max_bytes=state.bytes + 400)
    await ingest.send(b"no JSON", headers(other))
    await until(lambda: mentions(ingest, "MEGURI is full"))
    await provision(broker.url)

    receipt = await ingest.receipt(other)
    assert (parked["status"], receipt["status"]) == ("parked", "parked")


@pytest.fixture
def small_broker(tmp_path, monkeypatch) -> Iterator[Broker]:
    """A broker on a disk of 20 MB, of which it uses three quarters."""
    with small_disk(tmp_path / "disk", "20m") as folder:
        broker = Broker(folder)
        broker.start()
        monkeypatch.setenv("MEGURI_NATS_URL", broker.url)
        yield broker
        broker.kill()


async def test_a_broker_whose_disk_is_full_says_so_at_once_and_keeps_what_it_took(small_broker, monkeypatch):
    small = tuple(replace(stream, max_bytes=min(stream.max_bytes, 10**6)) for stream in STREAMS)
    monkeypatch.setattr(provisioning, "STREAMS", small)
    await provision(small_broker.url)
    rows = [{"x": "x" * 900_000}]
    taken: list[str] = []
    async with wire(small_broker) as beside, asyncio.timeout(PATIENCE):
        with pytest.raises(sdk.LogFull, match="insufficient resources"):
            await publish_for_ever(rows, taken)
        with pytest.raises(LogFull, match="insufficient resources"):
            await beside.say(DataArrived(dataset="d", records=tuple(rows)))
        assert (await beside.js.stream_info(LOG)).state.messages == len(taken) > 0


async def publish_for_ever(rows: list[dict[str, str]], taken: list[str]) -> None:
    while True:
        taken.append(await sdk.publish("d", records=rows, producer="me"))


async def test_a_disk_that_is_too_small_for_the_streams_is_told_in_a_line(small_broker):
    with pytest.raises(provisioning.NoRoom, match="no room for stream PREDICTIONS of up to 8,589,934,592 bytes"):
        await provision(small_broker.url)


async def test_the_limit_comes_from_the_environment_of_provision(broker, monkeypatch, ingest):
    monkeypatch.setenv("MEGURI_LOG_MAX_BYTES", "123456")
    command = [sys.executable, "-m", "meguri", "provision", "--json"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0

    config = (await ingest.wire.js.stream_info(LOG)).config
    assert config.max_bytes == 123456

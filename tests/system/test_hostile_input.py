"""What a careless upstream sends ends in a receipt or a dead letter that says why, and disturbs nothing else."""

import json
import os
from collections.abc import Callable
from uuid import uuid4

import nats
import pytest

from examples.digits.publish import images
from meguri.client import Meguri
from meguri_contracts.topology import DEAD, DEAD_PREFIX
from tests.conftest import PATIENCE, until
from tests.system.conftest import Laptop

pytestmark = pytest.mark.timeout(600)

ROW = images(0, 1)[0]


def body(**fields: object) -> bytes:
    return json.dumps(fields).encode()


PARKED: dict[str, tuple[bytes, str]] = {
    "bad JSON": (b'{"records": [', "not JSON"),
    "no object": (b"[1, 2]", "an object is expected"),
    "invalid UTF-8": (b'{"records": "\xff"}', "not JSON"),
    "wrong type": (body(records="all of them"), "records"),
    "another dataset": (body(dataset="other", records=[ROW]), "dataset is 'other' in the body"),
    "2 MB body": (body(records=[ROW], padding="x" * 2**21), "put the rows into a file"),
}
REFUSED: dict[str, tuple[str, Callable[[Laptop], bytes], str]] = {
    "wrong schema": ("digits", lambda _: body(records=[{"pixel_0": 1}]), "pixel_1"),
    "only bad rows": ("digits", lambda _: body(records=[ROW | {"pixel_0": 99}]), "pixel_0 is above the maximum 16"),
    "unknown dataset": ("nowhere", lambda _: body(records=[ROW]), "unknown dataset 'nowhere'"),
    "unknown file": ("digits", lambda laptop: body(uri=f"file://{laptop.var}/incoming/gone.csv"), "gone.csv"),
    "a path outside of the roots": ("digits", lambda _: body(uri="file:///etc/passwd", format="csv"), "/etc/passwd"),
    "a path that climbs out": (
        "digits",
        lambda laptop: body(uri=f"file://{laptop.var}/incoming/../registry.db", format="csv"),
        "registry.db",
    ),
}


@pytest.mark.parametrize("what", PARKED)
async def test_what_cannot_be_read_is_kept_for_repair_with_a_receipt_that_says_why(what: str, meguri: Meguri):
    payload, reason = PARKED[what]
    event = f"{uuid4()}"

    await publish("meguri.events.data-arrived.digits", payload, {"Nats-Msg-Id": event})
    receipt = meguri.receipt(event, wait=20)

    assert (receipt["status"], receipt["dataset"]) == ("parked", "digits")
    assert reason in receipt["reason"]


@pytest.mark.parametrize("what", REFUSED)
async def test_a_careless_message_gets_a_receipt_that_says_why(what: str, laptop: Laptop, meguri: Meguri):
    dataset, payload, reason = REFUSED[what]
    event = f"{uuid4()}"

    await publish(f"meguri.events.data-arrived.{dataset}", payload(laptop), {"Nats-Msg-Id": event})
    receipt = meguri.receipt(event, wait=20)

    assert receipt["status"] == "rejected"
    assert reason in receipt["reason"]


async def test_bare_json_without_headers_is_taken_under_the_id_of_its_sequence(laptop: Laptop, meguri: Meguri):
    payload = body(producer="careless", records=[ROW | {"pixel_0": 99}, ROW])

    sequence = await publish("meguri.events.data-arrived.digits", payload, None)
    receipt = meguri.receipt(f"meguri-{sequence}", wait=20)

    assert (receipt["status"], receipt["producer"]) == ("committed", "careless")
    assert (receipt["rows"], receipt["quarantined"]) == (1, 1)


async def test_an_event_sent_twice_is_taken_once(laptop: Laptop, meguri: Meguri):
    event = f"{uuid4()}"
    # Without Nats-Msg-Id the broker stores both, as it does when the second comes after its memory of the first.
    for _ in range(2):
        await publish("meguri.events.data-arrived.digits", body(records=[ROW]), {"ce-id": event, "ce-source": "twice"})
    receipt = meguri.receipt(event, wait=20)

    assert (receipt["status"], receipt["rows"]) == ("committed", 1)
    # Ingest knows it first; the registry hears of it a moment later.
    arrivals = await until(lambda: meguri.used_in(event), "the arrival in the registry")
    assert sum(arrival["event"] == event for arrival in arrivals) == 1


async def test_a_subject_that_is_no_name_ends_as_a_dead_letter_with_the_reason(laptop: Laptop):
    payload = body(records=[ROW], mark=f"{uuid4()}")
    client = await nats.connect(os.environ["MEGURI_NATS_URL"])
    try:
        js = client.jetstream()
        dead = await js.pull_subscribe(f"{DEAD_PREFIX}.ingest-arrivals.>", stream=DEAD)
        await js.publish("meguri.events.data-arrived.Not.A.Name", payload)
        while True:
            [letter] = await dead.fetch(1, timeout=PATIENCE)
            if letter.data == payload:
                break
    finally:
        await client.close()

    assert "is no name" in letter.headers["meguri-reason"].replace("%20", " ")


async def test_what_is_as_large_as_the_broker_takes_can_be_set_aside_too(laptop: Laptop):
    mark = f"{uuid4()}".encode()
    client = await nats.connect(os.environ["MEGURI_NATS_URL"])
    try:
        js = client.jetstream()
        dead = await js.pull_subscribe(f"{DEAD_PREFIX}.ingest-arrivals.>", stream=DEAD)
        await js.publish(
            "meguri.events.data-arrived.Not.A.Name", mark.ljust(client.max_payload - 100), timeout=PATIENCE
        )
        while True:
            [letter] = await dead.fetch(1, timeout=PATIENCE)
            if letter.data.startswith(mark):
                break
    finally:
        await client.close()

    assert letter.headers["meguri-cut"] == f"the first {len(letter.data)} of {client.max_payload - 100} bytes"


def test_nothing_else_was_disturbed(meguri: Meguri):
    answer = meguri.infer("digits", [[ROW[f"pixel_{i}"] for i in range(64)]], producer="scanner-a")

    assert answer["outputs"][0]["data"] == [ROW["digit"]]
    assert all(
        meguri.health(service)["ready"] for service in ("ingest", "training", "registry", "inference", "monitoring")
    )


async def publish(subject: str, payload: bytes, headers: dict[str, str] | None) -> int:
    client = await nats.connect(os.environ["MEGURI_NATS_URL"])
    try:
        return (await client.jetstream().publish(subject, payload, headers=headers)).seq
    finally:
        await client.close()

"""An upstream that is faster than ingest is told so, and what is in memory stays bounded."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from meguri_contracts.events import DataArrived, DataCommitted, SpecApplied
from meguri_ingest import arrivals
from tests.conftest import until
from tests.ingest.upstream import Ingest, body, headers, ingesting, spec
from tests.services import name


@pytest.fixture
async def small(broker, tmp_path) -> AsyncIterator[Ingest]:
    """An ingest where two arrivals may wait, and 1,000 bytes be in memory."""
    dataset = name("d")
    url = f"sqlite:///{tmp_path}/ingest.db"
    async with ingesting(broker, url, tmp_path, dataset, max_waiting=2, memory_bytes=1000) as ingest:
        await ingest.wire.apply(spec(dataset))
        yield ingest


async def post(ingest: Ingest, id: str) -> httpx.Response:
    return await ingest.http.post("/events", content=body(1), headers=headers(id) | {"ce-subject": ingest.dataset})


async def test_who_posts_more_than_may_wait_is_told_when_to_come_back_and_nothing_is_lost(small):
    ids = [name("e") for _ in range(3)]
    async with small.held():
        assert [(await post(small, id_)).status_code for id_ in ids] == [202, 202, 429]
        refused = await post(small, ids[2])
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "2 arrivals wait, at most 2 may" in refused.json()["error"]
        warnings = (await small.http.get("/health/ready")).json()["warnings"]
        assert any("whoever sends over HTTP is told to wait" in warning for warning in warnings)

    await until(lambda: accepted(small, ids[2]))
    assert {(await small.receipt(id_))["status"] for id_ in ids} == {"committed"}


async def accepted(ingest: Ingest, id: str) -> bool:
    return (await post(ingest, id)).status_code == 202


async def test_an_upload_is_refused_before_it_is_read(small):
    read = 0

    async def file() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 1000

    async with small.held():
        for _ in range(2):
            await post(small, name("e"))
        answer = await small.http.post(
            f"/datasets/{small.dataset}/data",
            content=file(),
            headers={"content-type": "multipart/form-data; boundary=b"},
        )

    assert answer.status_code == 429
    assert read == 0


async def test_a_request_that_says_that_it_is_too_large_is_refused_before_it_is_read(small):
    answer = await small.http.post("/events", content=b"", headers={"content-length": str(2**40)})

    assert answer.status_code == 413
    assert "send it in parts" in answer.json()["error"]


async def test_a_receipt_says_what_a_waiting_arrival_waits_for(small):
    id_ = name("e")
    async with small.held():
        await small.send(body(1), headers(id_))
        await until(lambda: waits_for(small, id_, f"{small.folder}/data/{small.dataset}: "))
        warnings = (await small.http.get("/health/ready")).json()["warnings"]
        assert any(f"arrivals for {small.dataset} wait" in warning for warning in warnings)

    receipt = await small.receipt(id_)
    assert (receipt["status"], receipt["waits_for"]) == ("committed", "")
    assert (await small.http.get("/health/ready")).json()["warnings"] == []


async def test_an_arrival_that_nobody_has_in_hand_yet_has_a_place_in_the_queue(broker, tmp_path):
    dataset = name("d")
    url = f"sqlite:///{tmp_path}/ingest.db"
    async with ingesting(broker, url, tmp_path, dataset, arrivals_in_hand=1) as ingest:
        await ingest.wire.apply(spec(dataset))
        ids = [name("e") for _ in range(4)]
        async with ingest.stuck():
            for id_ in ids:
                await ingest.send(body(1), headers(id_))
            await until(lambda: waits_for(ingest, ids[0], "its commit: it is in hand"))
            assert await waits_for(ingest, ids[2], "its turn: it is number 2 of 3 in the log that wait")
        assert (await ingest.receipt(ids[3]))["status"] == "committed"


async def waits_for(ingest: Ingest, id: str, what: str) -> bool:
    return what in (await ingest.http.get(f"/receipts/{id}")).json()["waits_for"]


# --- memory -----------------------------------------------------------------------------------------------------------


def written(ingest: Ingest, file: str, size: int) -> bytes:
    """The body of an event that names a file of so many bytes."""
    incoming = ingest.folder / "incoming"
    incoming.mkdir(exist_ok=True)
    rows = b"x,label\n" + b"1.0,1\n" * (size // 6)
    (incoming / file).write_bytes(rows.ljust(size, b"\n"))
    return json.dumps({"uri": (incoming / file).as_uri()}).encode()


async def test_no_more_is_in_memory_than_the_budget_allows_and_all_is_committed(small, monkeypatch):
    held, most = 0, 0
    read, commit = arrivals.fetching.open_uri, arrivals.DatasetTable.commit

    def open_uri(*args: Any, **more: Any) -> bytes:
        nonlocal held, most
        data = read(*args, **more)
        held += len(data)
        most = max(most, held)
        return data

    def committing(*args: Any) -> DataCommitted:
        nonlocal held
        held = 0
        return commit(*args)

    monkeypatch.setattr(arrivals.fetching, "open_uri", open_uri)
    monkeypatch.setattr(arrivals.DatasetTable, "commit", committing)
    ids = [name("e") for _ in range(12)]
    await asyncio.gather(
        *(small.send(written(small, f"{i}.csv", 400), headers(id_)) for i, id_ in enumerate(ids)),
    )

    receipts = [await small.receipt(id_) for id_ in ids]
    assert {receipt["status"] for receipt in receipts} == {"committed"}
    assert most <= 1000


async def test_a_file_that_is_larger_than_the_budget_gets_through_between_others(small):
    ids = [name("e") for _ in range(5)]
    sizes = (400, 5000, 400, 7000, 60)
    for i, (id_, size) in enumerate(zip(ids, sizes, strict=True)):
        await small.send(written(small, f"{i}.csv", size), headers(id_))

    assert {(await small.receipt(id_))["status"] for id_ in ids} == {"committed"}


async def test_lanes_that_need_more_than_there_is_do_not_wait_for_each_other(small):
    other = name("d")
    await small.wire.apply(spec(other))
    ids = [name("e") for _ in range(20)]
    await asyncio.gather(
        *(
            small.send(written(small, f"{i}.csv", 600), headers(id_), dataset=(small.dataset, other)[i % 2])
            for i, id_ in enumerate(ids)
        )
    )

    assert {(await small.receipt(id_))["status"] for id_ in ids} == {"committed"}


# --- loops ------------------------------------------------------------------------------------------------------------


async def reaction(ingest: Ingest, hops: int) -> str:
    """An event that ingest hears, so many reactions from outside; returns its id."""
    cause, model = name("cause"), name("m")
    applied = SpecApplied(model=model, spec=spec(model), version=1, digest="0" * 64, actor="test")
    await ingest.wire.say(applied, id=cause, hops=hops)
    return cause


@pytest.mark.parametrize(
    ("more", "hops"),
    [({}, 1), ({"ce-hops": "4"}, 5), ({"ce-causeid": "nobody-knows-it"}, 1)],
    ids=["from-outside", "that-says-it", "of-an-unknown-cause"],
)
async def test_a_version_is_one_reaction_further_from_outside_than_its_arrival(ingest, more, hops):
    id_ = name("e")
    await ingest.send(body(1), headers(id_, **more))

    await ingest.receipt(id_)
    (committed,) = await ingest.wire.heard(DataCommitted, ingest.dataset)
    assert committed.hops == hops


async def test_an_arrival_that_names_its_cause_only_is_one_reaction_further_than_that(ingest):
    id_, cause = name("e"), await reaction(ingest, hops=7)
    await ingest.send(body(1), headers(id_, **{"ce-causeid": cause}))

    await ingest.receipt(id_)
    (committed,) = await ingest.wire.heard(DataCommitted, ingest.dataset)
    assert committed.hops == 9


async def test_a_version_of_several_arrivals_counts_from_the_one_that_is_nearest_to_outside(ingest):
    hops = {name("e"): n for n in (6, 2, 4)}
    async with ingest.stuck():
        for id_, n in hops.items():
            await ingest.send(body(n), headers(id_, **{"ce-hops": str(n)}))
    for id_ in hops:
        await ingest.receipt(id_)

    for committed in await ingest.wire.heard(DataCommitted, ingest.dataset):
        assert committed.hops == 1 + min(hops[cause] for cause in committed.event.causes)


async def test_what_is_posted_over_http_may_say_its_cause_and_hops_too(ingest):
    id_ = name("e")
    sent = headers(id_, **{"ce-subject": ingest.dataset, "ce-hops": "3", "ce-causeid": "a-drift"})
    await ingest.http.post("/events", content=body(1), headers=sent)

    await ingest.receipt(id_)
    (arrived,) = await ingest.wire.heard(DataArrived, ingest.dataset)
    (committed,) = await ingest.wire.heard(DataCommitted, ingest.dataset)
    assert (arrived.hops, arrived.cause, committed.hops) == (3, "a-drift", 4)

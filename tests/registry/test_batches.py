from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from meguri_contracts.events import (
    Artifact,
    BatchCompleted,
    BatchFailed,
    BatchRequested,
    Deployed,
    ShardPlanned,
    ShardScored,
    Signature,
    Tensor,
)
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.services import Wire, name, running, wire

ARTIFACT = Artifact(uri="file:///a", digest="a", size=1)
TENSOR = Tensor(name="x", datatype="FP64", shape=(-1, 1))
DEPLOYED = Deployed(
    version=3,
    run="run-3",
    onnx=ARTIFACT,
    profile=ARTIFACT,
    signature=Signature(features=("x",), input=TENSOR, outputs=(TENSOR,)),
)


class Batch:
    """A batch of a test's own, and what inference says about it."""

    def __init__(self, http: httpx.AsyncClient, wire: Wire) -> None:
        self.http, self.wire = http, wire
        self.of = {"model": name("m"), "batch": name("b")}
        self.last = 0

    async def requested(self) -> None:
        event = BatchRequested(**self.of, input="file:///in.csv", output="file:///out", actor="ada")
        self.last = await self.wire.say(event)

    async def planned(self, shard: int) -> None:
        event = ShardPlanned(
            **self.of,
            shard=shard,
            shards=2,
            first=shard * 10,
            rows=10,
            input="file:///in.csv",
            input_digest="d",
            output="file:///out",
            deployed=DEPLOYED,
        )
        self.last = await self.wire.say(event)

    async def scored(self, shard: int) -> None:
        file = f"file:///out/part-{shard}"
        event = ShardScored(
            **self.of, shard=shard, shards=2, rows=10, uri=file, digest=f"d{shard}", replica="r", seconds=1
        )
        self.last = await self.wire.say(event)

    async def ended(self, kind: type[Any], **how: Any) -> None:
        self.last = await self.wire.say(kind(**self.of, **how))

    async def get(self, path: str = "", **params: str) -> Any:
        answer = await self.http.get(f"/batches{path}", params=params, headers={"Meguri-After": str(self.last)})
        return answer.json()

    async def known(self) -> Any:
        return await self.get(f"/{self.of['batch']}")


@pytest.fixture
async def batch(broker, tmp_path, database_url) -> AsyncIterator[Batch]:
    settings = Settings(nats_url=broker.url, var=tmp_path, database_url=database_url)
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Batch(http, beside)


COMPLETED = {
    "version": 3,
    "run": "run-3",
    "input": "file:///in.csv",
    "input_digest": "d",
    "output": "file:///out",
    "rows": 20,
    "shards": 2,
    "digest": "whole",
}


async def test_a_batch_is_known_from_its_request_to_its_end_with_what_it_was_made_from(batch):
    await batch.requested()
    assert (await batch.known())["status"] == "requested"
    for shard in range(2):
        await batch.planned(shard)
    await batch.scored(1)
    running = await batch.known()
    await batch.scored(0)
    await batch.ended(BatchCompleted, **COMPLETED)
    completed = await batch.known()

    assert (running["status"], running["version"], running["run"], running["input_digest"]) == (
        "running",
        3,
        "run-3",
        "d",
    )
    assert (running["shards"], running["shards_done"], running["rows_done"]) == (2, 1, 10)
    assert (completed["status"], completed["digest"], completed["rows"], completed["actor"]) == (
        "completed",
        "whole",
        20,
        "ada",
    )
    assert [(part["shard"], part["digest"], part["replica"]) for part in completed["parts"]] == [
        (0, "d0", "r"),
        (1, "d1", "r"),
    ]


async def test_a_batch_ends_once(batch):
    await batch.requested()
    await batch.ended(BatchFailed, reason="column 'x' is missing")
    await batch.planned(0)
    await batch.ended(BatchCompleted, **COMPLETED)
    failed = await batch.known()

    assert (failed["status"], failed["reason"], failed["digest"]) == ("failed", "column 'x' is missing", "")


async def test_batches_are_listed_newest_first_and_of_one_model(batch, request):
    await batch.requested()
    other = Batch(batch.http, batch.wire)
    await other.requested()
    names = [one["batch"] for one in await other.get()]

    assert names.index(other.of["batch"]) < names.index(batch.of["batch"])
    assert [one["batch"] for one in await other.get(model=batch.of["model"])] == [batch.of["batch"]]
    assert "no batch 'nobody' is known" in (await batch.get("/nobody"))["error"]

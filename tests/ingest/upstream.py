"""A running ingest and an upstream beside it."""

import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import polars as pl

from meguri_contracts.events import DataArrived, MessageParked, MessageRedriven
from meguri_contracts.names import derived_id
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import INGEST_ARRIVALS, LOG, subject
from meguri_ingest import arrivals
from meguri_ingest.app import build
from meguri_ingest.settings import Settings
from meguri_ingest.tables import DatasetTable
from tests.conftest import Broker, until
from tests.services import Wire, name, running, wire

ARRIVED = DataArrived.kind()


def spec(dataset: str) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "model": dataset,
            "task": "classification",
            "dataset": {
                "name": dataset,
                "columns": {"x": {"type": "number", "max": 100}, "label": {"type": "integer"}},
            },
            "target": "label",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0",
            "retrain": {"rows": None},
        }
    )


def rows(*values: float) -> list[dict[str, Any]]:
    return [{"x": float(value), "label": 1} for value in values]


def body(*values: float, **more: Any) -> bytes:
    return json.dumps({"records": rows(*values), **more}).encode()


def headers(id: str, source: str = "sensor-1", **more: str) -> dict[str, str]:
    """Binary mode, without the header that the broker deduplicates by."""
    return {"ce-specversion": "1.0", "ce-id": id, "ce-source": source, "ce-type": DataArrived.type, **more}


@dataclass(frozen=True)
class Ingest:
    """A running ingest, a declared dataset, and what to look at."""

    http: httpx.AsyncClient
    wire: Wire
    dataset: str
    folder: Path

    async def send(self, body: bytes, headers: dict[str, str] | None = None, dataset: str | None = None) -> int:
        return await self.wire.publish(ARRIVED, dataset or self.dataset, body, headers)

    async def receipt(self, id: str) -> dict[str, Any]:
        """The receipt of an event once it is no longer waiting."""
        answer = await self.http.get(f"/receipts/{id}", params={"wait": 30})
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] != "waiting"
        return answer.json()

    async def redrive(self, parked: int, id: str, body: bytes, source: str | None = "sensor-1") -> int:
        """Send a dead letter back, as `meguri redrive` does."""
        sent = headers(id, source) if source else {"ce-id": id}
        sequence = await self.send(body, sent)
        redriven = MessageRedriven(
            consumer=INGEST_ARRIVALS.name, stream=LOG, sequence=parked, event=id, edited=True, actor="test"
        )
        await self.wire.say(redriven, id=derived_id(str(parked), redriven.type))
        return sequence

    async def park(self, sequence: int, id: str) -> None:
        """Say that an arrival was parked, as ingest does after errors that nobody expects."""
        parked = MessageParked(
            consumer=INGEST_ARRIVALS.name,
            stream=LOG,
            sequence=sequence,
            subject=subject(ARRIVED, self.dataset),
            event=id,
            producer="sensor-1",
            deliveries=5,
            reason="KeyError: 'x'",
        )
        await self.wire.say(parked)

    async def has_letter(self, id: str, sequence: int) -> bool:
        return (await self.receipt(id))["letter"] == sequence

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Let nothing be committed until the block is left: the tables cannot be written."""
        data, away = self.folder / "data", self.folder / "away"
        data.mkdir(exist_ok=True)
        data.rename(away)
        data.write_text("no folder")
        try:
            yield
        finally:
            data.unlink()
            away.rename(data)

    @asynccontextmanager
    async def stuck(self) -> AsyncIterator[None]:
        """Let a first look at the tables take until the block is left: their folder answers nothing."""
        released = threading.Event()
        opened = arrivals.DatasetTable

        def opening(uri: str) -> DatasetTable:
            released.wait()
            return opened(uri)

        arrivals.DatasetTable = opening  # type: ignore[assignment,misc]
        try:
            yield
        finally:
            arrivals.DatasetTable = opened  # type: ignore[misc]
            released.set()

    async def settle(self) -> None:
        """Return when everything that was sent before is dealt with."""
        last = name("e")
        await self.send(body(100), headers(last))
        await self.receipt(last)

    async def parked(self, sequence: int) -> dict[str, str]:
        """The dead letter that a message became."""

        async def letters() -> list[dict[str, str]]:
            found = await self.wire.parked(INGEST_ARRIVALS.name)
            return [letter for letter in found if letter["meguri-sequence"] == str(sequence)]

        return (await until(letters, f"a dead letter of {sequence}"))[0]

    async def versions(self) -> list[dict[str, Any]]:
        return (await self.http.get(f"/datasets/{self.dataset}/versions")).json()

    def stored(self) -> pl.DataFrame:
        return pl.read_delta(str(self.folder / "data" / self.dataset)).sort("x")

    def quarantined(self) -> pl.DataFrame:
        return pl.read_delta(str(self.folder / "data/_quarantine" / self.dataset))


@asynccontextmanager
async def ingesting(
    broker: Broker, database_url: str, folder: Path, dataset: str, **more: Any
) -> AsyncIterator[Ingest]:
    settings = Settings(nats_url=broker.url, database_url=database_url, var=folder, **more)
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Ingest(http, beside, dataset, folder)

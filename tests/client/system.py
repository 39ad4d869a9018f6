"""Services in the test's own process, answering on real ports, as the command line needs them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from meguri_chassis.service import Service
from meguri_contracts.events import DataArrived
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import CONSUMERS, LOG
from tests.conftest import Broker, until
from tests.services import Wire, running, wire

WITH_TABLES = ("ingest", "training", "registry", "monitoring")


@dataclass(frozen=True)
class System:
    """Running services, the wire beside them, and where they keep things."""

    services: Mapping[str, Service]
    http: Mapping[str, httpx.AsyncClient]
    wire: Wire
    var: Path

    async def apply(self, dataset: str) -> None:
        answer = await self.http["registry"].post("/specs", content=spec(dataset).model_dump_json())
        assert answer.status_code < 300, answer.text

    async def arrive(self, dataset: str, id: str, *values: float) -> dict[str, Any]:
        """Send rows and return their receipt once they are no longer waiting."""
        records = [{"x": float(value), "label": int(value) % 2} for value in values]
        event = DataArrived.model_validate({"dataset": dataset, "records": records})
        await self.wire.say(event, id=id, source="sensor")
        return await self.receipt(id)

    async def receipt(self, id: str) -> dict[str, Any]:
        answer = await self.http["ingest"].get(f"/receipts/{id}", params={"wait": 30})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def digests(self) -> dict[str, str]:
        return {name: (await self.http[name].get("/log/digest")).json()["digest"] for name in self.services}

    async def quiet(self) -> int:
        """Return the log's last sequence once nobody has anything left to say, and all tables contain it."""
        last = int(await until(self._last_if_quiet, "quiet"))
        for service in self.services.values():
            assert service.projection is not None
            await service.projection.reached(last)
        return last

    async def _last_if_quiet(self) -> int:
        before = (await self.wire.js.stream_info(LOG)).state.last_seq
        for consumer in CONSUMERS:
            info = await self.wire.js.consumer_info(consumer.stream, consumer.name)
            if info.num_pending or info.num_ack_pending:
                return 0
        return before if before == (await self.wire.js.stream_info(LOG)).state.last_seq else 0


def spec(dataset: str, **changes: Any) -> ModelSpec:
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
            **changes,
        }
    )


@asynccontextmanager
async def system(broker: Broker, var: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[System]:
    """The services that have tables, on real ports; the environment is that of an operator beside them."""
    monkeypatch.setenv("MEGURI_NATS_URL", broker.url)
    monkeypatch.setenv("MEGURI_VAR", str(var))
    services, http = {}, {}
    async with AsyncExitStack() as stack:
        for name in WITH_TABLES:
            settings = import_module(f"meguri_{name}.settings").Settings(nats_url=broker.url, var=var)
            services[name] = import_module(f"meguri_{name}.app").build(settings)
            http[name] = await stack.enter_async_context(running(services[name]))
            port = await stack.enter_async_context(_listening(services[name]))
            monkeypatch.setenv(f"MEGURI_{name.upper()}_URL", f"http://127.0.0.1:{port}")
        # Inference has no tables, which is all that is asked of it here.
        port = await stack.enter_async_context(_listening(import_module("meguri_inference.app").build()))
        monkeypatch.setenv("MEGURI_INFERENCE_URL", f"http://127.0.0.1:{port}")
        beside = await stack.enter_async_context(wire(broker))
        yield System(services, http, beside, var)


@asynccontextmanager
async def _listening(service: Service) -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(service.app, lifespan="off", log_config=None))
        serving = asyncio.create_task(server._serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            with suppress(asyncio.CancelledError):
                await serving

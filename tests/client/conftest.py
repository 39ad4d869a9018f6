"""What the tests of the command line share: commands as an operator runs them, a broker and services of the test's own."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from meguri.cli import app
from meguri_chassis.service import Service
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.conftest import Broker, free_port, until
from tests.registry.registering import model_trained, spec
from tests.services import Wire, running, wire

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    error: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


async def meguri(*words: object) -> Ran:
    """Run `meguri` with these words, while services go on in this process."""
    result = await asyncio.to_thread(CliRunner().invoke, app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@asynccontextmanager
async def reachable(service: Service, setting: Callable[[str, str], None]) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service at an address where commands find it."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(service.app, HOST, port, lifespan="off", log_config=None))
    async with running(service) as http:
        serving = asyncio.ensure_future(server.serve())
        await until(lambda: server.started, "the server")
        setting(f"MEGURI_{service.name.upper()}_URL", f"http://{HOST}:{port}")
        try:
            yield http
        finally:
            server.should_exit = True
            await serving


async def apply(registry: httpx.AsyncClient, model: str, **changes: object) -> None:
    assert (await registry.post("/specs", content=yaml.safe_dump(spec(model, **changes)))).is_success


async def train(own: Wire, registry: httpx.AsyncClient, model: str, run: str, accuracy: float) -> None:
    """Have a model trained and judged."""
    champion = (await registry.get(f"/models/{model}")).json()["champion"]
    await own.say(model_trained(model, run, accuracy, champion, 1))

    async def judged() -> bool:
        versions = (await registry.get(f"/models/{model}")).json()["versions"]
        return any(one["run"] == run and one["verdict"] != "none yet" for one in versions)

    await until(judged, "the verdict")


@pytest.fixture
async def own(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """A wire to a broker of the test's own, which the commands find."""
    monkeypatch.setenv("MEGURI_NATS_URL", broker.url)
    monkeypatch.setenv("MEGURI_ACTOR", "ada")
    async with wire(broker) as own:
        yield own


@pytest.fixture
async def registry(
    own: Wire, broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A registry that the commands find."""
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/registry.db", var=tmp_path)
    async with reachable(build(settings), monkeypatch.setenv) as http:
        yield http

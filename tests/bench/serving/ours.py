"""Our side: a broker and inference as `make run` starts them, and models that come to it by the log."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import nats
from nats.js import JetStreamContext

from meguri.provisioning import provision
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import EventLog
from meguri_contracts.events import Deployed, Event, Plan, RolloutChanged, SpecApplied
from meguri_contracts.spec import PredictionLog
from meguri_contracts.topology import LOG, PREDICTION_PREFIX, PREDICTIONS, subject
from tests.bench.serving.models import Model
from tests.bench.serving.servers import CLIENT, SERVER, Server, on_core, running
from tests.conftest import Broker, free_port, until


class Ours:
    """Inference with its broker."""

    def __init__(self, broker: Broker, server: Server, var: Path) -> None:
        self.broker = broker
        self.server = server
        self.var = var
        self._artifacts = Artifacts(f"file://{var / 'artifacts'}")

    async def deploy(self, model: Model, version: int = 1) -> None:
        """Roll a version out and wait until it serves."""
        await self.roll_out(model, version)
        await self.serves(model, version)

    async def roll_out(self, model: Model, version: int) -> None:
        """Say what the registry says when it promotes."""
        fitted = model.fitted
        deployed = Deployed(
            version=version,
            run=f"{model.name}-{version}",
            onnx=await self._artifacts.put(fitted.onnx),
            skops=await self._artifacts.put(fitted.skops),
            profile=await self._artifacts.put(fitted.profile),
            signature=fitted.signature,
        )
        plan = Plan(champion=deployed)
        await self._say(RolloutChanged(model=model.name, plan=plan, reason="to be measured", actor="bench"))

    async def serves(self, model: Model, version: int) -> None:
        """Wait until a version serves."""
        async with httpx.AsyncClient() as http:
            url = f"http://127.0.0.1:{self.server.port}/v2/models/{model.name}/versions/{version}/ready"

            async def ready() -> bool:
                return (await http.get(url)).is_success

            await until(ready, f"{model.name} version {version} serving")

    async def stored(self, kind: type[Event], model: Model) -> int:
        """Return how many events of a kind the log has about a model."""
        return await self._count(LOG, subject(kind.kind(), model.name))

    async def stored_predictions(self, model: Model) -> int:
        """Return how many messages the stream of predictions has of a model."""
        return await self._count(PREDICTIONS, f"{PREDICTION_PREFIX}.{model.name}")

    async def keep(self, model: Model, sampled: float) -> None:
        """Apply the model's spec with a share of the predictions that are kept, as the registry does."""
        spec = model.spec.model_copy(update={"log": PredictionLog(sampled=sampled)})
        version = await self.stored(SpecApplied, model) + 1
        await self._say(SpecApplied(model=model.name, spec=spec, version=version, digest="0" * 64, actor="bench"))

    async def last_sequence(self, stream: str) -> int:
        async with self._jetstream() as js:
            return (await js.stream_info(stream)).state.last_seq

    async def _say(self, event: Event) -> None:
        async with self._jetstream() as js:
            log = EventLog(lambda: js, "bench")
            id_ = secrets.token_hex(16)
            await log.append(event, id=id_, cause=id_, journey=id_, hops=0)

    async def _count(self, stream: str, subject: str) -> int:
        async with self._jetstream() as js:
            info = await js.stream_info(stream, subjects_filter=subject)
            return sum((info.state.subjects or {}).values())

    @asynccontextmanager
    async def _jetstream(self) -> AsyncIterator[JetStreamContext]:
        client = await nats.connect(self.broker.url)
        try:
            yield client.jetstream(timeout=10)
        finally:
            await client.close()


@contextmanager
def inference(var: Path) -> Iterator[Ours]:
    """Run a broker beside the client and inference on the server's core."""
    store = var / "nats"
    store.mkdir(parents=True)
    broker = Broker(store)
    with on_core(CLIENT):
        broker.start()
    try:
        asyncio.run(provision(broker.url))
        with service("inference", broker, var, SERVER) as server:
            yield Ours(broker, server, var)
    finally:
        broker.kill()


@contextmanager
def service(name: str, broker: Broker, var: Path, core: int) -> Iterator[Server]:
    """Run one of the services on a core."""
    port = free_port()
    env = {"MEGURI_NATS_URL": broker.url, "MEGURI_VAR": str(var), f"MEGURI_{name.upper()}_PORT": str(port)}
    log = var / f"{name}.log"
    with running(f"meguri_{name}", port=port, ready="/health/ready", log=log, env=env, core=core) as server:
        yield server

"""A replica of inference from the request's bytes inward: everything but HTTP and the event log."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import polars as pl
import pyarrow as pa
from onnx import TensorProto, helper

from meguri_contracts.events import Arm, Canary, Deployed, Plan, Shadow, Tensor, Trial
from meguri_contracts.spec import CanaryPolicy, TrialPolicy
from meguri_contracts.spec import PredictionLog as Logging
from meguri_inference.answering import Answering, Finish, Head, Limits, Reply
from meguri_inference.connection import speaking
from meguri_inference.fast_path import FastPath
from meguri_inference.models import Models, Seat, Served
from meguri_inference.predicting import LoadedModel
from meguri_inference.prediction_ids import PredictionIds
from meguri_inference.prediction_log import PredictionLog
from meguri_inference.protocol import Array
from meguri_inference.shadowing import Shadowing
from meguri_inference.tallies import Tallies
from meguri_monitoring.predictions.predictions import read
from tests.conftest import PATIENCE

PREDICTION = Tensor(name="prediction", datatype="FP32", shape=(-1,))
MAX_BODY = 64 * 1024
MAX_ROWS = 300
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


def as_version(fitted: Any, version: int, like: Any = None) -> Any:
    """`fitted` as another version of a model, by default of its own."""
    deployed = fitted.deployed.model_copy(update={"version": version, "run": f"run-{version}"})
    return type(fitted)((like or fitted).name, fitted.estimator, fitted.x, deployed, fitted.onnx)


def plan(
    champion: Any,
    *,
    canary: tuple[Any, float] | None = None,
    arms: tuple[tuple[Any, float], ...] = (),
    shadows: tuple[tuple[Any, float], ...] = (),
) -> Plan:
    """A traffic plan of fitted models, with their shares."""
    policy = CanaryPolicy()
    return Plan(
        champion=champion.deployed,
        canary=Canary(candidate=canary[0].deployed, weight=canary[1], step=0, policy=policy) if canary else None,
        trial=Trial(arms=tuple(Arm(candidate=one.deployed, weight=w) for one, w in arms), policy=TrialPolicy())
        if arms
        else None,
        shadows=tuple(Shadow(candidate=one.deployed, share=share) for one, share in shadows),
    )


def rows_of(message: bytes) -> pa.Table:
    """The rows of a published message, as monitoring understands it."""
    (batch,) = read(message, 0)
    return batch.frame.drop("sequence").to_arrow(compat_level=pl.CompatLevel.oldest())


@dataclass
class Outlet:
    """Keeps what is published; refuses while `errors` last, and holds everything back while it is not `open`."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    tries: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Condition()
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, model: str, _: str, body: bytes) -> None:
        async with self._news:
            self.tries += 1
            self._news.notify_all()
            if self.errors:
                raise self.errors.pop(0)
        await self.open.wait()
        async with self._news:
            self.messages.append((model, body))
            self._news.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._news:
            await asyncio.wait_for(self._news.wait_for(condition), PATIENCE)

    @property
    def tables(self) -> list[pa.Table]:
        return [rows_of(body) for _, body in self.messages]


class Noted:
    """An engine that notes how many rows each call has, and may fail."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls: list[int] = []
        self.error: Exception | None = None

    blocks = False

    def run(self, x: Array) -> list[Array]:
        self.calls.append(len(x))
        if self.error:
            raise self.error
        outputs: list[Array] = self._engine.run(x)
        return outputs


@dataclass
class Replica:
    """Answers by the plans it is given; what it publishes and which spans it ends is kept."""

    max_waiting: int = 10_000
    max_model_bytes: int = 2**40
    linger: float = 3600.0
    outlet: Outlet = field(default_factory=Outlet)
    finished: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    loads: list[tuple[str, int]] = field(default_factory=list)
    """Every model and version that was loaded, in order."""
    load_error: Exception | None = None
    """Why nothing can be loaded at the moment."""

    def __post_init__(self) -> None:
        self._fitted: dict[tuple[str, int], Any] = {}
        self.tallies, self.ids = Tallies(), PredictionIds()
        self.log = PredictionLog(self.outlet.publish, self.ids, linger=self.linger)
        self.models = Models(self._load, max_bytes=self.max_model_bytes)
        self.shadowing = Shadowing(self.log)
        self.answering = Answering(
            self.models,
            self.log,
            self.ids,
            self.tallies,
            self.shadowing,
            trace=self._trace,
            limits=Limits(MAX_BODY, MAX_ROWS, self.max_waiting),
        )
        self.app = FastPath(control_plane, self.answering)
        self.protocol = speaking(self.answering)

    def _trace(self, headers: Mapping[str, str] | None) -> tuple[str, Finish | None]:
        if headers is None:
            return "", None
        return TRACE_ID, lambda *told: self.finished.append(told)

    async def _load(self, name: str, deployed: Deployed) -> LoadedModel:
        await asyncio.sleep(0)
        if self.load_error:
            raise self.load_error
        self.loads.append((name, deployed.version))
        found: LoadedModel = self._fitted[name, deployed.version].load()
        return found

    async def follow(self, champion: Any, logging: Logging | None = None, **others: Any) -> Served:
        """Load what a plan needs and follow it."""
        beside = [others["canary"]] if others.get("canary") else []
        for one, _ in (*beside, *others.get("arms", ()), *others.get("shadows", ()), (champion, 1)):
            self._fitted[champion.name, one.deployed.version] = type(champion)(
                champion.name, one.estimator, one.x, one.deployed, one.onnx
            )
        served = Served(champion.name, plan(champion, **others), "rollout-1", self.tallies)
        served.logging = logging or Logging()
        for seat in served.seats:
            await self.models.loaded(champion.name, seat.deployed)
        self.models.swap(served)
        return served

    async def answer(self, fitted: Any, rows: Array, *, entity: str | None = None, **more: Any) -> Reply:
        """Ask the model of this name for the answer to some rows."""
        body = orjson.dumps(fitted.body(rows, **more))
        return await self.answering.answer(Head(fitted.name, entity=entity), body)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://inference")

    async def predictions(self) -> pa.Table:
        """Everything that was logged. The log is closed."""
        await self.log.close()
        return pa.concat_tables(self.outlet.tables)


def noted(seat: Seat) -> Noted:
    """Put an engine of ours before that of a seat; returns it."""
    assert seat.batcher is not None
    engine = Noted(seat.batcher.model._engine)
    seat.batcher.model._engine = engine
    return engine


async def control_plane(scope: Any, receive: Any, send: Any) -> None:
    """Stands for the FastAPI application: says which path it was asked for, and how many bytes came."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"%s %d" % (scope["path"].encode(), size)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 418, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def graph(deployed: Deployed, nodes: Any, initializers: Any = (), shape: Any = (None,)) -> bytes:
    """An ONNX graph of one output, the prediction."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, len(deployed.signature.features)])
    told = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, shape)
    made = helper.make_graph(nodes, "g", [given], [told], list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()

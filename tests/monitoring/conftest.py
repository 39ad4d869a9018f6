"""Monitoring in the test's own process, and predictions as inference publishes them."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.profiles import profile_of
from meguri_contracts.events import (
    Arm,
    Canary,
    Deployed,
    Event,
    Plan,
    RolloutChanged,
    Shadow,
    Signature,
    Tensor,
    Trial,
)
from meguri_contracts.spec import CanaryPolicy, ModelSpec, TrialPolicy
from meguri_contracts.topology import DEAD, DEAD_PREFIX, PREDICTION_PREFIX, PREDICTIONS
from meguri_monitoring.app import build
from meguri_monitoring.recording import NAME
from meguri_monitoring.settings import Settings
from tests.conftest import Broker, until
from tests.monitoring.sizes import ENTRY_POINTS, PLUGIN
from tests.services import Wire, name, running, wire

FEATURES = ("x", "y")
WINDOW = 100
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def values(rows: int, seed: int, moved: float = 0.0) -> np.ndarray:
    """Rows as in training; `moved` shifts the first feature, in its standard deviations."""
    return np.random.default_rng(seed).normal(size=(rows, 2)) + np.array([moved, 0.0])


def message(
    model: str,
    rows: np.ndarray,
    producer: str = "camera-a",
    version: int = 1,
    *,
    ids: Sequence[str] | None = None,
    role: str | None = None,
    entity: str = "customer-7",
    time: datetime = datetime(2026, 5, 1, tzinfo=UTC),
    answer: Mapping[str, Sequence[Any]] | None = None,
    **columns: Any,
) -> bytes:
    """Predictions as inference publishes them; without a role, as a replica does that knows of none."""
    n = len(rows)
    details = {"_entity": [entity] * n, "_role": [role] * n, "_latency": [1500] * n} if role else {}
    table = pa.table(
        {
            "prediction_id": ids or [name("p") for _ in range(n)],
            "time": pa.array([time] * n, pa.timestamp("us", "UTC")),
            "model": [model] * n,
            "version": [version] * n,
            "producer": [producer] * n,
            "trace_id": [TRACE] * n,
            **details,
            **(columns or dict(zip(FEATURES, rows.T, strict=True))),
            **(answer or {"label": [7] * n, "probability": [0.9] * n}),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


@dataclass(frozen=True)
class Monitoring:
    """A running monitoring service, and what inference and the registry do beside it."""

    http: httpx.AsyncClient
    wire: Wire
    artifacts: Artifacts
    folder: Path
    model: str

    async def watch(self, **rule: Any) -> None:
        """Apply a spec with small windows and whatever else its rule is to say, and roll version 1 out."""
        await self.apply(**rule)
        await self.roll_out(1)

    async def apply(self, version: int = 1, **rule: Any) -> int:
        """Apply a spec with small windows and whatever else its rule is to say; returns the event's sequence."""
        spec = {
            "model": self.model,
            "task": "classification",
            "dataset": {
                "name": self.model,
                "columns": {"x": {"type": "number"}, "y": {"type": "number"}, "label": {"type": "integer"}},
            },
            "target": "label",
            "estimator": {"name": "LogisticRegression"},
            "gate": "accuracy > 0",
            "monitor": {"window_rows": WINDOW, "min_rows": 50, "windows": 2} | rule,
        }
        return await self.wire.apply(ModelSpec.model_validate(spec), version)

    async def roll_out(
        self,
        version: int,
        seed: int = 0,
        *,
        canary: int | None = None,
        arms: Sequence[int] = (),
        shadow: int | None = None,
    ) -> int:
        """Say a traffic plan; returns its sequence. The references of all versions are alike, but for the champion's seed."""
        candidate = await self.deployed(canary) if canary else None
        trial = [Arm(candidate=await self.deployed(arm), weight=0.3) for arm in arms]
        plan = Plan(
            champion=await self.deployed(version, seed),
            canary=Canary(candidate=candidate, weight=0.1, step=0, policy=CanaryPolicy()) if candidate else None,
            trial=Trial(arms=trial, policy=TrialPolicy()) if trial else None,
            shadows=[Shadow(candidate=await self.deployed(shadow))] if shadow else [],
        )
        changed = RolloutChanged(model=self.model, plan=plan, previous=1, reason="the gate holds", actor="registry")
        return await self.wire.say(changed)

    async def deployed(self, version: int, seed: int = 0) -> Deployed:
        profile = await self.artifacts.put(profile_of(FEATURES, values(1000, seed)).to_json())
        tensor = Tensor(name="x", datatype="FP64", shape=(-1, 2))
        signature = Signature(features=FEATURES, input=tensor, outputs=(tensor,))
        return Deployed(version=version, run=f"run-{version}", onnx=profile, profile=profile, signature=signature)

    async def predict(self, *messages: bytes) -> int:
        """Publish messages of predictions; returns the sequence of the last."""
        acks = [
            await self.wire.js.publish(f"{PREDICTION_PREFIX}.{self.model}", body, stream=PREDICTIONS)
            for body in messages
        ]
        return int(acks[-1].seq)

    async def windows(self, count: int) -> list[dict[str, Any]]:
        """The judged windows once there are as many, oldest first."""

        async def enough() -> list[dict[str, Any]] | None:
            found = (await self.http.get(f"/models/{self.model}/windows")).json()
            return found[::-1] if len(found) >= count else None

        return await until(enough, f"{count} windows")

    async def said(self, kind: type[Event], count: int = 1) -> list[Any]:
        async def enough() -> list[Any] | None:
            found = await self.wire.said(kind, self.model)
            return found if len(found) >= count else None

        return await until(enough, f"{count} {kind.kind()}")

    async def warnings(self) -> list[str]:
        """What an operator should look at."""
        return (await self.http.get("/health/ready")).json()["warnings"]

    async def dead_letters(self) -> list[tuple[int, str]]:
        """Sequence and reason of each message that was set aside."""
        letters = [msg.headers or {} for msg in await self.wire.stored(DEAD, f"{DEAD_PREFIX}.{NAME}.>")]
        return [(int(letter["meguri-sequence"]), unquote(letter["meguri-reason"])) for letter in letters]

    def kept(self, version: int = 1) -> pl.DataFrame:
        return pl.read_delta(str(self.folder / f"data/_predictions/{self.model}/v{version}")).sort("prediction_id")


@asynccontextmanager
async def monitoring_in(
    folder: Path, broker: Broker, database_url: str, artifacts: Path, model: str
) -> AsyncIterator[Monitoring]:
    settings = Settings(nats_url=broker.url, database_url=database_url, var=folder, artifacts_url=f"file://{artifacts}")
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Monitoring(http, beside, Artifacts(settings.artifacts_url), folder, model)


@pytest.fixture
async def monitoring(broker, tmp_path) -> AsyncIterator[Monitoring]:
    database_url, artifacts = f"sqlite:///{tmp_path}/monitoring.db", tmp_path / "artifacts"
    async with monitoring_in(tmp_path, broker, database_url, artifacts, name("m")) as monitoring:
        await monitoring.watch()
        yield monitoring


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An evaluator `sizes` that is installed: a row per request, with its number of rows and its rounded first value."""
    folder = tmp_path / "plugins"
    about = folder / "sizes_plugin-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: sizes-plugin\nVersion: 1\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "sizes_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delitem(__import__("sys").modules, "sizes_plugin", raising=False)
    return folder


@pytest.fixture
def at(broker: Broker, database_url: str, tmp_path: Path) -> Any:
    """Start a replica on the same broker, database and files; a folder of its own has no tables of predictions."""
    model = name("m")

    @asynccontextmanager
    async def start(folder: str = "var", url: str = database_url) -> AsyncIterator[Monitoring]:
        async with monitoring_in(tmp_path / folder, broker, url, tmp_path / "artifacts", model) as monitoring:
            yield monitoring

    return start

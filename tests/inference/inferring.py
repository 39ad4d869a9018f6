"""A running replica of inference, and plans as the registry says them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import Deployed, Plan, RolloutChanged
from meguri_contracts.spec import ModelSpec
from meguri_contracts.topology import PREDICTION_PREFIX, PREDICTIONS
from meguri_inference.app import build
from meguri_inference.settings import Settings
from tests.conftest import ROOT, Broker, until
from tests.inference.replicas import rows_of
from tests.services import Wire, running, wire


@dataclass(frozen=True)
class Inference:
    """A running replica, and what the registry does beside it."""

    http: httpx.AsyncClient
    wire: Wire
    artifacts: Artifacts
    model: str

    async def deployed(self, fitted: Any, version: int) -> Deployed:
        onnx = await self.artifacts.put(fitted.onnx)
        return fitted.deployed.model_copy(update={"version": version, "onnx": onnx})

    async def roll_out(self, champion: Deployed, **more: str) -> None:
        await self.wire.say(rollout(self.model, champion), **more)

    async def follow(self, champion: Deployed, **others: Any) -> None:
        """Roll a plan out and wait until it is followed."""
        await self.wire.say(rollout(self.model, champion, **others))
        versions = [one.version for one in Plan(champion=champion, **others).deployed]
        await until(lambda: self.serves_just(versions), f"versions {versions} serving")

    async def serves_just(self, versions: list[int]) -> bool:
        served = (await self.http.get("/models")).json()
        return [one["version"] for one in served if one["model"] == self.model] == versions

    async def apply(self, **logging: Any) -> None:
        """Apply a spec that says this of the log."""
        example = yaml.safe_load((ROOT / "models/digits.yaml").read_text())
        await self.wire.apply(ModelSpec(**example | {"model": self.model, "log": logging}))

    async def logged(self) -> list[dict[str, Any]]:
        """All rows of the prediction log."""
        stored = await self.wire.stored(PREDICTIONS, f"{PREDICTION_PREFIX}.{self.model}")
        return [row for message in stored for row in rows_of(message.data).to_pylist()]

    async def serve(self, fitted: Any, version: int) -> None:
        """Roll a version out and wait until it serves."""
        await self.roll_out(await self.deployed(fitted, version))
        await until(lambda: self.serves(version), f"version {version} serving")

    async def serves(self, version: int) -> bool:
        return (await self.http.get(f"/v2/models/{self.model}/versions/{version}/ready")).status_code == 200

    async def infer(self, fitted: Any, rows: int = 1, **headers: str) -> httpx.Response:
        body = fitted.body(fitted.x[:rows])
        return await self.http.post(f"/v2/models/{self.model}/infer", json=body, headers=headers)

    async def not_ready(self) -> list[str]:
        return (await self.http.get("/health/ready")).json()["reasons"]

    async def warnings(self) -> list[str]:
        return (await self.http.get("/health/ready")).json()["warnings"]


def rollout(model: str, champion: Deployed, **others: Any) -> RolloutChanged:
    return RolloutChanged(
        model=model, plan=Plan(champion=champion, **others), reason="the gate holds", actor="registry"
    )


@asynccontextmanager
async def inferring(broker: Broker, folder: Path, model: str) -> AsyncIterator[Inference]:
    settings = Settings(nats_url=broker.url, var=folder, replica="replica-1", linger=0.01, sampling=0)
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Inference(http, beside, Artifacts(settings.artifacts_url), model)

"""Batches that are asked for, replicas that do them, and the files beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meguri_chassis.artifacts import Artifacts
from meguri_contracts.events import (
    BatchCompleted,
    BatchFailed,
    BatchRequested,
    Deployed,
    Evaluation,
    ModelRegistered,
    ModelTrained,
    Plan,
    RolloutChanged,
)
from meguri_inference.app import build
from meguri_inference.settings import Settings
from tests.conftest import Broker, until
from tests.services import Wire, running


@dataclass
class Batching:
    """The folder of a test, replicas beside it, and what others say."""

    wire: Wire
    folder: Path
    broker: Broker
    model: str

    @property
    def artifacts(self) -> Artifacts:
        return Artifacts(self.settings("anyone").artifacts_url)

    def settings(self, replica: str) -> Settings:
        return Settings(nats_url=self.broker.url, var=self.folder, replica=replica, sampling=0, graceful_timeout=0.5)

    @asynccontextmanager
    async def replica(self, replica: str = "replica-1") -> AsyncIterator[httpx.AsyncClient]:
        async with running(build(self.settings(replica))) as http:
            yield http

    async def deployed(self, fitted: Any, version: int) -> Deployed:
        onnx = await self.artifacts.put(fitted.onnx)
        return fitted.deployed.model_copy(update={"version": version, "onnx": onnx, "run": f"run-{version}"})

    async def champion(self, fitted: Any, version: int = 1) -> Deployed:
        deployed = await self.deployed(fitted, version)
        await self.wire.say(
            RolloutChanged(model=self.model, plan=Plan(champion=deployed), reason="gate held", actor="registry")
        )
        return deployed

    async def register(self, fitted: Any, version: int) -> None:
        """Have a version that is in no plan, as training and registry say it."""
        await self.wire.say(trained(self.model, await self.deployed(fitted, version)))
        await self.wire.say(ModelRegistered(model=self.model, version=version, run=f"run-{version}"))

    def input(self, file: str) -> Path:
        (self.folder / "incoming").mkdir(exist_ok=True)
        return self.folder / "incoming" / file

    def rows(self, fitted: Any, count: int, file: str = "rows.parquet", **more: Any) -> Path:
        """A Parquet file with `count` rows of a model, one different from the next."""
        path = self.input(file)
        pq.write_table(table(fitted, count, **more), path)
        return path

    async def request(self, path: Path, batch: str = "b", output: str = "", **more: Any) -> str:
        """Ask for a batch as any client of the broker; returns the folder."""
        folder = (self.folder / "batches" / (output or batch)).as_uri()
        more = {"shard_rows": 1000, "actor": "ada"} | more
        await self.wire.say(BatchRequested(model=self.model, batch=batch, input=path.as_uri(), output=folder, **more))
        return folder

    async def completed(self, batch: str = "b") -> BatchCompleted:
        return await self._outcome(BatchCompleted, batch)

    async def failed(self, batch: str = "b") -> BatchFailed:
        return await self._outcome(BatchFailed, batch)

    async def _outcome(self, kind: Any, batch: str) -> Any:
        async def said() -> Any:
            found = [one for one in await self.wire.said(kind, self.model) if one.batch == batch]
            assert len(found) <= 1
            return found[0] if found else None

        return await until(said, f"{kind.kind()} of {batch}")

    def predictions(self, folder: str) -> pa.Table:
        return pa.dataset.dataset(folder.removeprefix("file://"), format="parquet").to_table().sort_by("row")


def path(folder: str, *file: str) -> Path:
    return Path(folder.removeprefix("file://"), *file)


def table(fitted: Any, count: int, **more: Any) -> pa.Table:
    base = np.resize(fitted.x, (count, fitted.x.shape[1]))
    x = base + np.linspace(0, 0.5, count, dtype=base.dtype)[:, None]
    columns = dict(zip(fitted.deployed.signature.features, x.T, strict=True))
    return pa.table({"customer": [f"c-{row}" for row in range(count)], **columns, **more})


def trained(model: str, deployed: Deployed) -> ModelTrained:
    return ModelTrained(
        model=model,
        run=deployed.run,
        spec_version=1,
        dataset="d",
        dataset_version=0,
        dataset_digest="0" * 64,
        train_rows=1,
        holdout_rows=1,
        candidate=Evaluation(version=0, metrics={}),
        onnx=deployed.onnx,
        skops=deployed.profile,
        profile=deployed.profile,
        signature=deployed.signature,
        parity=0,
        environment={},
        seconds=0,
        fit_seconds=0,
    )

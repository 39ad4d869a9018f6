"""A running registry, what happens around it, and what is in its tables."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy
import yaml

from meguri_contracts.events import (
    Artifact,
    Contribution,
    DataCommitted,
    Evaluation,
    ModelTrained,
    Signature,
    Tensor,
    TrainingStarted,
    Trigger,
)
from meguri_contracts.spec import ModelSpec
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.conftest import Broker, until
from tests.services import Wire, name, running, wire


def spec(model: str, **changes: Any) -> dict[str, Any]:
    return {
        "model": model,
        "task": "classification",
        "dataset": {"name": model, "columns": {"x": {"type": "number"}, "digit": {"type": "integer"}}},
        "target": "digit",
        "estimator": {"name": "LogisticRegression"},
        "gate": "accuracy >= 0.8",
        **changes,
    }


@dataclass(frozen=True)
class Registry:
    """A running registry, and what happens around a model of this test's own."""

    http: httpx.AsyncClient
    wire: Wire
    model: str

    async def apply(self, spec: dict[str, Any], **headers: str) -> httpx.Response:
        return await self.http.post("/specs", content=yaml.safe_dump(spec), headers=headers)

    async def command(self, what: str, body: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
        return await self.http.post(f"/models/{self.model}/{what}", json=body or {}, headers=headers)

    async def get(self, path: str = "", **params: Any) -> httpx.Response:
        return await self.http.get(f"/models/{self.model}{path}", params=params)

    async def data(self, version: int, *arrivals: str) -> str:
        """A new version of the dataset; returns the id of its event."""
        id_ = name("committed")
        parts = tuple(Contribution(event=arrival, producer="sensor-1", rows=10) for arrival in arrivals)
        total = 10 * version * len(parts)
        event = DataCommitted(
            dataset=self.model, version=version, digest="d", rows=10 * len(parts), total_rows=total, events=parts
        )
        await self.wire.say(event, id=id_)
        return id_

    async def run(self, cause: str = "", dataset_version: int = 1) -> str:
        """A run that was started because of an event; returns its id."""
        run = name("run")
        event = TrainingStarted(
            model=self.model,
            run=run,
            spec=ModelSpec.model_validate(spec(self.model)),
            spec_version=1,
            dataset_version=dataset_version,
            dataset_digest="d",
            dataset_rows=10,
            triggers=(Trigger(event=cause, kind="data-committed"),) if cause else (),
        )
        await self.wire.say(event)
        return run

    async def trained(self, accuracy: float, run: str | None = None, dataset_version: int = 1) -> dict[str, Any]:
        """A run ends with a model that was compared with the champion; returns its version once it has its verdict."""
        champion = (await self.get()).json()["champion"]
        event = model_trained(self.model, run or await self.run(), accuracy, champion, dataset_version)
        await self.wire.say(event)

        async def judged() -> dict[str, Any] | None:
            versions = (await self.get()).json()["versions"]
            return next((v for v in versions if v["run"] == event.run and v["verdict"] != "none yet"), None)

        return await until(judged, "the verdict")


def model_trained(model: str, run: str, accuracy: float, champion: int | None, dataset_version: int) -> ModelTrained:
    artifact = Artifact(uri=f"file:///{run}", digest=run, size=1)
    return ModelTrained(
        model=model,
        run=run,
        spec_version=1,
        dataset=model,
        dataset_version=dataset_version,
        dataset_digest="d",
        train_rows=75,
        holdout_rows=25,
        candidate=Evaluation(version=0, metrics={"accuracy": accuracy}),
        champion=Evaluation(version=champion, metrics={"accuracy": 0.8}) if champion else None,
        onnx=artifact,
        skops=artifact,
        profile=artifact,
        signature=Signature(
            features=("x",),
            input=Tensor(name="x", datatype="FP64", shape=(-1, 1)),
            outputs=(Tensor(name="label", datatype="INT64", shape=(-1,)),),
        ),
        parity=0,
        environment={"python": "3.11"},
        seconds=2,
        fit_seconds=1,
    )


@asynccontextmanager
async def registering(broker: Broker, database_url: str, folder: Any) -> AsyncIterator[Registry]:
    settings = Settings(nats_url=broker.url, database_url=database_url, var=folder)
    async with running(build(settings)) as http, wire(broker) as beside:
        yield Registry(http, beside, name("m"))


def kinds(said: httpx.Response) -> list[str]:
    assert said.is_success, said.text
    return [event["type"] for event in said.json()["events"]]


def tables(database_url: str, *, drop: bool = False) -> dict[str, list[tuple]]:
    """The rows of every table of the registry's own; afterwards there is no table any more if asked for."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        found = {
            table.name: sorted(map(repr, connection.execute(sqlalchemy.select(table))))
            for table in metadata.sorted_tables
            if table.name.startswith("registry_")
        }
        if drop:
            metadata.drop_all(connection)
    engine.dispose()
    return found

"""Several replicas of training: how many fits at a time, and one outcome of each, whoever is slow."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from nats.js.api import StreamConfig

from meguri.provisioning import provision
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.processes import Home
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.events import ModelTrained, TrainingFailed, TrainingStarted
from meguri_contracts.topology import LOG, subject
from meguri_training import projection, store
from meguri_training.app import MIGRATIONS, build
from meguri_training.fitting import Fitted, Job
from meguri_training.handlers import Fitter
from meguri_training.settings import Settings
from meguri_training.workers import WorkerDied, Workers
from tests.conftest import Broker, until
from tests.services import Wire, name, running, wire
from tests.training.flowers import FLOWERS, Fit, Training, fits, slow, spec

MODELS = 6


@asynccontextmanager
async def replicas(count: int, broker: Broker, folder: Path):
    """So many replicas in this process, on one database; yields the first with all."""
    async with AsyncExitStack() as stack:
        clients = []
        for replica in range(1, count + 1):
            settings = Settings(
                nats_url=broker.url,
                database_url=f"sqlite:///{folder}/training.db",
                var=folder,
                replica=f"replica-{replica}",
            )
            clients.append(await stack.enter_async_context(running(build(settings))))
        beside = await stack.enter_async_context(wire(broker))
        yield Training(clients[0], beside, Artifacts(settings.artifacts_url), folder)


def most_at_once(found: list[Fit]) -> int:
    changes = sorted([(fit.began, 1) for fit in found] + [(fit.ended, -1) for fit in found])
    return max(sum(change for _, change in changes[: at + 1]) for at in range(len(changes)))


async def test_no_more_fits_run_at_once_than_the_operator_allows(broker, tmp_path):
    done = await provision(broker.url, fits_in_flight=1)
    assert [one.name for one in done if one.done == "updated"] == ["training-fits"]
    async with replicas(2, broker, tmp_path) as training:
        models = [name("flowers") for _ in range(MODELS)]
        for model in models:
            await training.wire.apply(spec(model, estimator=slow(500)))
        for model in models:
            await training.commit(model, FLOWERS)
        trained = [await training.said(ModelTrained, model) for model in models]

    assert all(len(one) == 1 for one in trained)
    found = fits(tmp_path)
    assert len(found) == MODELS
    assert most_at_once(found) == 1


async def test_a_model_has_one_run_at_a_time_however_many_replicas_there_are(broker, tmp_path):
    async with replicas(2, broker, tmp_path) as training:
        model = name("flowers")
        await training.wire.apply(spec(model, estimator=slow(500)))
        for _ in range(10):
            await training.commit(model, FLOWERS)
        await training.said(ModelTrained, model)

        assert len(await training.wire.said(TrainingStarted, model)) == 1


class Slow(Workers):
    """A worker whose answers come only when they are let go; one that dies answers with that."""

    def __init__(self, home: Home, *, dies: bool) -> None:
        super().__init__(home)
        self.fitted = asyncio.Event()
        self.let_go = asyncio.Event()
        self._dies = dies

    async def fit(self, job: Job) -> Fitted:
        fitted = await super().fit(job)
        self.fitted.set()
        await self.let_go.wait()
        if self._dies:
            raise WorkerDied("the process of the run died")
        return fitted


async def forget_ids(wire: Wire) -> None:
    """Wait until the broker no longer knows any id that was used before."""
    config = (await wire.js.stream_info(LOG)).config
    await wire.js.update_stream(StreamConfig(**vars(config) | {"duplicate_window": 0.1}))
    probe = {"Nats-Msg-Id": uuid4().hex}
    await wire.js.publish(subject("probe", "probe"), b"", headers=probe)

    async def forgotten() -> bool:
        return not (await wire.js.publish(subject("probe", "probe"), b"", headers=probe)).duplicate

    await until(forgotten, "the end of the duplicate window")


@pytest.mark.parametrize("slow_one_dies", [False, True])
async def test_of_two_replicas_that_did_the_same_fit_the_later_is_not_heard_however_late(
    broker, tmp_path, slow_one_dies
):
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/training.db", var=tmp_path)
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, store.TABLES)
    service = Service(settings, description="", database=database, projection=tables)
    artifacts = Artifacts(settings.artifacts_url)
    home = Home("training", "replica", tmp_path, "INFO")

    def fitter(workers: Workers) -> Fitter:
        assert service.decider is not None
        return Fitter(
            decider=service.decider,
            database=database,
            projection=tables,
            artifacts=artifacts,
            workers=workers,
            data_url=settings.data_url,
            tries=1,
        )

    paused, quick = Slow(home, dies=slow_one_dies), Workers(home)
    async with running(service) as http, wire(broker) as beside, paused.open(), quick.open():
        model = name("flowers")
        training = Training(http, beside, artifacts, tmp_path)
        await beside.apply(spec(model))
        await training.commit(model, FLOWERS)
        await beside.say(
            TrainingStarted(
                model=model,
                run="run-1",
                spec=spec(model),
                spec_version=1,
                dataset_version=0,
                dataset_digest="d0",
                dataset_rows=150,
                triggers=(),
            )
        )
        [message] = await beside.heard(TrainingStarted, model)
        late = asyncio.create_task(fitter(paused).fit(message.event, message))
        await until(paused.fitted.is_set, "the fit of the slow one")
        await fitter(quick).fit(message.event, message)
        await training.said(ModelTrained, model)
        await forget_ids(beside)
        paused.let_go.set()
        await late
        await fitter(quick).fit(message.event, message)

        assert len(await beside.said(ModelTrained, model)) == 1
        assert await beside.said(TrainingFailed, model) == []

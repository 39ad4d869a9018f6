import sqlite3
from dataclasses import replace

import onnxruntime

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.projection import Projection
from meguri_chassis.service import Service
from meguri_chassis.store import Database
from meguri_contracts.events import (
    AnomalyDetected,
    Contribution,
    DataCommitted,
    ModelTrained,
    PerformanceDegraded,
    PromotionRejected,
    TrainingFailed,
    TrainingPostponed,
    TrainingRequested,
    TrainingStarted,
)
from meguri_training import projection, store
from meguri_training.app import MIGRATIONS
from meguri_training.handlers import Starter
from meguri_training.settings import Settings
from tests.conftest import until
from tests.services import name, running, wire
from tests.training.flowers import FLOWERS, Training, spec


async def test_new_rows_become_a_trained_model_with_its_files(training):
    model = name("flowers")
    await training.wire.apply(spec(model))
    committed = await training.commit(model, FLOWERS)

    (trained,) = await training.said(ModelTrained, model)
    (started,) = await training.said(TrainingStarted, model)
    assert [trigger.event for trigger in started.triggers] == [committed]
    assert (trained.run, trained.dataset_version, trained.dataset_digest) == (started.run, 0, "d0")
    assert trained.train_rows + trained.holdout_rows == 150
    assert trained.candidate.metrics["accuracy"] > 0.8
    assert trained.signature.features == ("a", "b", "c", "d")
    assert onnxruntime.InferenceSession(await training.artifacts.get(trained.onnx))
    assert all([await training.artifacts.get(file) for file in (trained.skops, trained.profile)])
    state = await training.state(model)
    assert (state["running"], state["waits_for"]) == (started.run, f"run {started.run} has no verdict yet")


async def test_a_run_that_is_heard_twice_is_said_once(training):
    model = name("flowers")
    await training.wire.apply(spec(model))
    await training.commit(model, FLOWERS)
    (trained,) = await training.said(ModelTrained, model)
    (started,) = await training.said(TrainingStarted, model)

    await training.wire.say(started)
    rejected = PromotionRejected(model=model, version=1, run=trained.run, reason="the gate does not hold")
    await training.wire.say(rejected)
    # One fit after the other: when the next run has ended, the repeated one was dealt with.
    await training.wire.say(TrainingRequested(model=model, reason="again", actor="ada"))
    first, second = await training.said(ModelTrained, model, 2)
    assert (first.run, second.run != first.run) == (started.run, True)
    assert len(await training.wire.said(ModelTrained, model)) == 2
    assert second.onnx == first.onnx


async def test_a_run_that_cannot_succeed_fails_once_with_the_reason_and_waits_for_new_rows(training):
    model = name("flowers")
    await training.wire.apply(spec(model))
    await training.commit(model, FLOWERS[:50])

    (failed,) = await training.said(TrainingFailed, model)
    (started,) = await training.said(TrainingStarted, model)
    assert failed.run == started.run
    assert "every row to train on has species = 0; a classifier needs at least two classes" in failed.reason

    async def ended() -> bool:
        return (await training.state(model))["running"] is None

    await until(ended, "the end of the run")
    assert (await training.state(model))["waits_for"] == "0 new rows since the last run, 1 are enough"
    await training.commit(model, FLOWERS[50:])
    await training.said(ModelTrained, model)
    assert len(await training.wire.said(TrainingFailed, model)) == 1


async def test_a_dataset_that_is_gone_fails_the_run_in_words(training):
    model = name("flowers")
    await training.wire.apply(spec(model))
    part = Contribution(event=name("e"), producer="lab", rows=10)
    await training.wire.say(DataCommitted(dataset=model, version=3, digest="d", rows=10, total_rows=10, events=(part,)))

    (failed,) = await training.said(TrainingFailed, model)
    assert f"version 3 of the table {training.folder}/data/{model} cannot be read" in failed.reason


async def test_an_unknown_model_is_not_found(training):
    answer = await training.http.get("/models/unknown")

    assert (answer.status_code, answer.json()["error"]) == (404, "no model 'unknown'; known are: none")


async def test_a_database_from_before_knows_what_its_runs_learned_from(training):
    model = name("flowers")
    await training.wire.apply(spec(model))
    await training.commit(model, FLOWERS)
    (started,) = await training.said(TrainingStarted, model)
    await training.said(ModelTrained, model)
    with sqlite3.connect(training.folder / "training.db") as connection:
        copy = sqlite3.connect(training.folder / "before.db")
        connection.backup(copy)
    copy.executescript("DROP TABLE training_run; UPDATE alembic_version SET version_num = '0002'")
    copy.close()
    database = Database(f"sqlite:///{training.folder}/before.db", MIGRATIONS)
    database.migrate()

    with database.read() as session:
        assert store.run_with(session, model, model, 0) == started.run
        assert store.run_with(session, model, model, 1) is None
    database.close()


async def test_an_episode_that_asks_for_a_model_is_answered_when_the_rows_that_show_it_have_come(training):
    model = name("flowers")
    await training.wire.apply(spec(model, retrain={"rows": None}))
    await training.commit(model, FLOWERS)
    (trained,) = await training.said(ModelTrained, model)
    await training.wire.say(PromotionRejected(model=model, version=1, run=trained.run, reason="no"))
    silent = {"about": "silence", "subject": "predictions", "value": 9, "expected": 1}
    numbers = {"metric": "accuracy", "before": 0.9, "now": 0.6, "labels": 200}
    await training.wire.say(AnomalyDetected(model=model, version=1, episode="other", **silent))
    await training.wire.say(PerformanceDegraded(model=model, version=1, episode="ep", **numbers), id=(id_ := name("e")))

    (waits,) = await training.said(TrainingPostponed, model)
    assert ([one.event for one in waits.triggers], waits.reason) == ([id_], "new rows that show it are needed")
    assert (await training.state(model))["waits_for"].startswith("the answers have become worse, and new rows")
    committed = await training.commit(model, FLOWERS)
    _, second = await training.said(TrainingStarted, model, 2)
    assert [one.event for one in second.triggers][-2:] == [id_, committed]
    assert len(await training.wire.said(TrainingPostponed, model)) == 1


async def test_of_a_version_that_no_run_used_it_is_said_what_it_waits_for(training):
    model = name("flowers")
    await training.wire.apply(spec(model, retrain={"first_rows": 200}))
    await training.commit(model, FLOWERS)

    async def known() -> list[dict[str, object]] | None:
        answer = await training.http.get(f"/datasets/{model}/versions/0")
        return answer.json() if answer.status_code == 200 else None

    waits = "150 rows, 200 are needed for the first run"
    assert await until(known, "the version") == [{"model": model, "run": None, "waits_for": waits}]
    answer = await training.http.get(f"/datasets/{model}/versions/1")
    assert (answer.status_code, answer.json()["error"]) == (404, f"dataset '{model}' has no version 1; its newest is 0")


async def test_an_event_that_comes_again_starts_the_run_that_is_due_now(broker, tmp_path):
    settings = Settings(nats_url=broker.url, database_url=f"sqlite:///{tmp_path}/training.db", var=tmp_path)
    database = Database(settings.database_url, MIGRATIONS)
    tables = Projection(database, projection.evolve, projection.HEARS, store.TABLES)
    service = Service(settings, description="", database=database, projection=tables)
    async with running(service) as http, wire(broker) as beside:
        assert service.decider is not None
        starter, model = Starter(service.decider, max_hops=16), name("flowers")
        training = Training(http, beside, Artifacts(settings.artifacts_url), tmp_path)
        await beside.apply(spec(model))
        await training.commit(model, FLOWERS)
        [message] = await beside.heard(DataCommitted, model)
        await starter.look_at_models_on(message.event, message)
        (first,) = await beside.said(TrainingStarted, model)
        await beside.say(TrainingFailed(model=model, run=first.run, reason="the worker died"))
        await training.commit(model, FLOWERS)
        # Whoever waits out a storm of rows answers for all of them, also if its own message came for the second time.
        await starter.look_at_models_on(message.event, replace(message, sequence=await service.log.last_sequence()))

        assert [run.dataset_rows for run in await beside.said(TrainingStarted, model)] == [150, 300]

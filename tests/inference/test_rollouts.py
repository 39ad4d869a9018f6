import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meguri_chassis import telemetry
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import EventLog, LogUnavailable
from meguri_contracts.events import (
    Arm,
    Artifact,
    Canary,
    Deployed,
    Event,
    ModelLoaded,
    RolloutObserved,
    Shadow,
    Trial,
)
from meguri_contracts.spec import CanaryPolicy, TrialPolicy
from meguri_contracts.topology import PREDICTION_PREFIX, PREDICTIONS
from meguri_inference import rollouts
from meguri_inference.app import build
from meguri_inference.settings import Settings
from tests.conftest import until
from tests.inference.inferring import Inference, inferring, rollout
from tests.inference.replicas import rows_of
from tests.services import name, running, wire


def damage(artifact: Artifact) -> None:
    Path(urlparse(artifact.uri).path).write_bytes(b"something else")


@pytest.fixture
async def inference(broker, tmp_path) -> AsyncIterator[Inference]:
    async with inferring(broker, tmp_path, name("m")) as inference:
        yield inference


# --- following --------------------------------------------------------------------------------------------------------


async def test_a_replica_that_is_ready_serves_what_was_rolled_out_before_it_came(broker, tmp_path, forest, iris):
    models = [name("m") for _ in range(3)]
    async with inferring(broker, tmp_path, models[0]) as first:
        for model in models:
            await first.wire.say(rollout(model, await first.deployed(iris, 1)))
            await first.wire.say(rollout(model, await first.deployed(forest, 2)))

    async with inferring(broker, tmp_path, models[0]) as second:
        served = (await second.http.get("/models")).json()
        assert [(one["model"], one["version"]) for one in served] == [(model, 2) for model in sorted(models)]
        assert (await second.infer(forest)).status_code == 200


async def test_a_replica_without_any_rollout_is_ready_and_says_what_it_serves(inference, iris):
    answer = await inference.infer(iris)

    assert await inference.not_ready() == []
    assert (answer.status_code, answer.json()["error"]) == (
        404,
        f"no model {inference.model!r} is served here; served are: none yet",
    )


async def test_a_rollout_is_followed_and_said(inference, iris, flowers):
    await inference.serve(iris, 1)
    before = (await inference.infer(iris)).json()
    await inference.serve(flowers, 2)
    after = (await inference.infer(flowers)).json()

    assert (before["model_version"], after["model_version"]) == ("1", "2")
    assert after["outputs"][0]["data"] == ["setosa"]

    async def said() -> list[ModelLoaded] | None:
        found = await inference.wire.said(ModelLoaded, inference.model)
        return found if len(found) == 2 else None

    loaded = await until(said, "model-loaded")
    assert [(one.version, one.replica) for one in loaded] == [(1, "replica-1"), (2, "replica-1")]
    assert all(one.seconds > 0 for one in loaded)


async def test_of_many_rollouts_at_once_the_last_one_serves(inference, iris):
    for version in range(1, 8):
        await inference.roll_out(await inference.deployed(iris, version))

    await until(lambda: inference.serves(7), "the last version")
    assert await inference.not_ready() == []


async def test_a_model_that_cannot_be_loaded_leaves_the_old_one_serving_and_is_warned_of(
    inference, iris, flowers, ridge
):
    await inference.serve(iris, 1)
    broken = await inference.deployed(flowers, 2)
    damage(broken.onnx)
    await inference.roll_out(broken)
    warnings = await until(inference.warnings, "the warning")

    assert f"{inference.model} cannot be loaded: the bytes at {broken.onnx.uri}" in warnings[0]
    assert await is_ready(inference)
    assert (await inference.infer(iris)).json()["model_version"] == "1"
    # A rollback, or any later rollout, puts it right.
    await inference.roll_out(await inference.deployed(iris, 1))
    await until(lambda: is_well(inference), "no warning after a rollback")
    await inference.serve(ridge, 3)
    assert [one.version for one in await inference.wire.said(ModelLoaded, inference.model)][:1] == [1]


async def test_a_file_that_is_not_what_its_signature_says_is_not_served(inference, iris, ridge):
    await inference.serve(iris, 1)
    other = (await inference.deployed(ridge, 2)).model_copy(update={"signature": iris.deployed.signature})
    await inference.roll_out(other)

    warnings = await until(inference.warnings, "the warning")
    assert f"model {inference.model!r} version 2 cannot be served" in warnings[0]
    assert (await inference.infer(iris)).status_code == 200


async def is_well(inference: Inference) -> bool:
    return not await inference.warnings()


async def is_ready(inference: Inference) -> bool:
    return not await inference.not_ready()


# --- traces and predictions -------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def collect(spans: InMemorySpanExporter) -> None:
    """Have the spans of this process from now on: a service has set the provider up."""
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(spans))


def inferred(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == "infer"]


async def test_a_prediction_goes_on_in_the_callers_trace_and_links_to_that_of_its_model(inference, iris, spans):
    collect(spans)
    with telemetry.tracer.start_as_current_span("promotion") as promotion:
        await inference.roll_out(await inference.deployed(iris, 1), journey="journey-1")
    await until(lambda: inference.serves(1))
    trace_id, span_id = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    answer = (await inference.infer(iris, traceparent=f"00-{trace_id}-{span_id}-01")).json()

    (span,) = inferred(spans)
    (link,) = span.links
    assert answer["parameters"]["trace_id"] == trace_id == f"{span.context.trace_id:032x}"
    assert f"{span.parent.span_id:016x}" == span_id
    assert link.context.trace_id == promotion.get_span_context().trace_id
    assert span.attributes["meguri.journey.id"] == "journey-1"
    assert span.attributes["meguri.prediction.id"] == answer["parameters"]["prediction_id"]
    assert (span.attributes["meguri.model"], span.attributes["meguri.model.version"]) == (inference.model, 1)


async def test_a_prediction_that_is_not_sampled_has_a_trace_id_and_no_span(inference, iris, spans):
    collect(spans)
    await inference.serve(iris, 1)
    unsampled = "4bf92f3577b34da6a3ce929d0e0e4736"
    of_caller = {"traceparent": f"00-{unsampled}-00f067aa0ba902b7-00"}
    own, callers = [
        (await inference.infer(iris, **headers)).json()["parameters"]["trace_id"] for headers in ({}, of_caller)
    ]

    assert len(own) == 32
    assert callers == unsampled
    assert inferred(spans) == []


async def test_predictions_are_published_with_features_and_answers(inference, iris):
    await inference.serve(iris, 1)
    answer = (await inference.infer(iris, rows=2, **{"Meguri-Producer": "a camera"})).json()

    (message,) = await until(lambda: inference.wire.stored(PREDICTIONS, f"{PREDICTION_PREFIX}.{inference.model}"))
    rows = rows_of(message.data).to_pylist()
    prediction_id = answer["parameters"]["prediction_id"]
    assert [row["prediction_id"] for row in rows] == [f"{prediction_id}:0", f"{prediction_id}:1"]
    assert {(row["model"], row["version"], row["producer"]) for row in rows} == {(inference.model, 1, "a camera")}
    assert {row["trace_id"] for row in rows} == {answer["parameters"]["trace_id"]}
    assert [[row[feature] for feature in iris.deployed.signature.features] for row in rows] == iris.x[:2].tolist()
    assert [row["label"] for row in rows] == answer["outputs"][0]["data"]


async def test_predictions_in_hand_are_published_before_the_replica_is_gone(broker, tmp_path, iris):
    model = name("m")
    settings = Settings(nats_url=broker.url, var=tmp_path, linger=3600)
    async with wire(broker) as beside:
        async with running(build(settings)) as http:
            inference = Inference(http, beside, Artifacts(settings.artifacts_url), model)
            await inference.serve(iris, 1)
            await inference.infer(iris, rows=3)
            assert await beside.stored(PREDICTIONS, f"{PREDICTION_PREFIX}.{model}") == []

        (message,) = await beside.stored(PREDICTIONS, f"{PREDICTION_PREFIX}.{model}")
        assert rows_of(message.data).num_rows == 3


async def test_a_version_that_serves_is_said_once_the_log_takes_it(inference, iris, monkeypatch):
    append, refused = EventLog.append, []

    async def away_at_first(log: EventLog, event: Event, **more: Any) -> int:
        if isinstance(event, ModelLoaded) and not refused:
            refused.append(event)
            raise LogUnavailable("the log is away")
        return await append(log, event, **more)

    monkeypatch.setattr(rollouts, "RETRY", 0.01)
    monkeypatch.setattr(EventLog, "append", away_at_first)
    await inference.serve(iris, 1)
    (said,) = await until(lambda: inference.wire.said(ModelLoaded, inference.model), "model-loaded")

    assert refused
    assert said.version == 1


async def test_a_version_that_no_longer_serves_is_not_said_and_holds_up_nothing(inference, iris, monkeypatch):
    append, away = EventLog.append, [True]

    async def away_for_a_while(log: EventLog, event: Event, **more: Any) -> int:
        if isinstance(event, ModelLoaded) and away:
            raise LogUnavailable("the log is away")
        return await append(log, event, **more)

    monkeypatch.setattr(rollouts, "RETRY", 0.01)
    monkeypatch.setattr(EventLog, "append", away_for_a_while)
    await inference.serve(iris, 1)
    await inference.serve(iris, 2)
    away.clear()
    (said,) = await until(lambda: inference.wire.said(ModelLoaded, inference.model), "model-loaded")

    assert said.version == 2
    await until(lambda: is_well(inference), "no warning")


# --- plans ------------------------------------------------------------------------------------------------------------


async def versions_of(inference: Inference, fitted: Any, entities: list[str]) -> dict[str, int]:
    answers = {one: await inference.infer(fitted, **{"Meguri-Entity": one}) for one in entities}
    return {one: int(answer.json()["model_version"]) for one, answer in answers.items()}


CUSTOMERS = [f"customer-{number}" for number in range(60)]


async def test_a_canary_is_followed_and_observed_and_its_customers_stay_with_it_until_it_is_champion(inference, iris):
    one, two = [await inference.deployed(iris, version) for version in (1, 2)]
    two = two.model_copy(update={"run": "run-2"})
    canary = Canary(candidate=two, weight=0.3, step=0, policy=CanaryPolicy())
    await inference.follow(one, canary=canary)
    at_first = await versions_of(inference, iris, CUSTOMERS)

    async def observed() -> RolloutObserved | None:
        said = await inference.wire.said(RolloutObserved, inference.model)
        return said[-1] if said and sum(arm.requests for arm in said[-1].arms) == 60 else None

    report = await until(observed, "the observation")
    with_it = [who for who, version in at_first.items() if version == 2]
    assert 5 <= len(with_it) <= 35
    assert {(arm.version, arm.role): arm.requests for arm in report.arms} == {
        (1, "champion"): 60 - len(with_it),
        (2, "canary"): len(with_it),
    }
    await inference.follow(one, canary=canary.model_copy(update={"weight": 0.7}))
    later = await versions_of(inference, iris, CUSTOMERS)
    assert {later[who] for who in with_it} == {2}
    assert len(with_it) < list(later.values()).count(2)
    await inference.follow(two)

    async def said() -> list[tuple[int, str]] | None:
        found = [(one.version, one.role) for one in await inference.wire.said(ModelLoaded, inference.model)]
        return found if len(found) == 3 else None

    assert await until(said, "model-loaded") == [(1, "champion"), (2, "canary"), (2, "champion")]


async def test_an_ab_test_is_followed_and_what_is_logged_says_who_answered_whom_as_what(inference, iris):
    one, two, three = [
        (await inference.deployed(iris, version)).model_copy(update={"run": f"run-{version}"}) for version in (1, 2, 3)
    ]
    arms = (Arm(candidate=two, weight=0.3), Arm(candidate=three, weight=0.3))
    await inference.follow(one, trial=Trial(arms=arms, policy=TrialPolicy()))

    answered = await versions_of(inference, iris, CUSTOMERS)
    assert await versions_of(inference, iris, CUSTOMERS) == answered
    assert set(answered.values()) == {1, 2, 3}

    async def logged() -> list[dict[str, Any]] | None:
        rows = await inference.logged()
        return rows if len(rows) == 120 else None

    for row in await until(logged, "the prediction log"):
        assert row["version"] == answered[row["_entity"]]
        assert row["_role"] == ("champion" if row["version"] == 1 else "arm")


async def test_a_shadow_is_asked_logged_and_observed_and_nobody_sees_it(inference, iris, contrary):
    one, two = await inference.deployed(iris, 1), await inference.deployed(contrary, 2)
    await inference.follow(one, shadows=(Shadow(candidate=two),))
    answers = [await inference.infer(iris, rows=100 + number) for number in range(5)]
    assert {answer.json()["model_version"] for answer in answers} == {"1"}

    async def observed() -> RolloutObserved | None:
        said = await inference.wire.said(RolloutObserved, inference.model)
        return said[-1] if said and said[-1].arms[1].pairs == 510 else None

    shadow = (await until(observed, "the observation")).arms[1]

    async def logged() -> list[dict[str, Any]] | None:
        rows = await inference.logged()
        return rows if len(rows) == 1020 else None

    labels: dict[str, dict[str, int]] = {"champion": {}, "shadow": {}}
    for row in await until(logged, "the prediction log"):
        labels[row["_role"]][row["prediction_id"]] = row["label"]
    apart = sum(labels["shadow"][one] != label for one, label in labels["champion"].items())
    assert shadow.disagreed == apart > 0


async def test_a_challenger_that_cannot_be_loaded_is_left_out_and_warned_of(inference, iris, ridge):
    one, other = await inference.deployed(iris, 1), await inference.deployed(ridge, 2)
    broken = await inference.deployed(iris, 3)
    broken = broken.model_copy(update={"onnx": await inference.artifacts.put(b"no graph")})
    for candidate, why in ((other, "takes other features"), (broken, "version 3 cannot be served")):
        canary = Canary(candidate=candidate, weight=0.5, step=0, policy=CanaryPolicy())
        await inference.wire.say(rollout(inference.model, one, canary=canary))
        await until(lambda: warned_of(inference, why), why)  # noqa: B023

        assert set((await versions_of(inference, iris, CUSTOMERS[:20])).values()) == {1}
    await inference.follow(one)
    await until(lambda: is_well(inference), "no warning any more")


async def test_each_version_that_is_left_out_is_warned_of(inference, iris, ridge):
    one, other = await inference.deployed(iris, 1), await inference.deployed(ridge, 2)
    broken = await inference.deployed(iris, 3)
    broken = broken.model_copy(update={"onnx": await inference.artifacts.put(b"no graph")})
    canary = Canary(candidate=broken, weight=0.5, step=0, policy=CanaryPolicy())
    await inference.wire.say(rollout(inference.model, one, canary=canary, shadows=(Shadow(candidate=other),)))

    await until(lambda: warned_of(inference, "shadow version 2"), "a warning of the shadow")
    assert await warned_of(inference, "canary version 3")


async def warned_of(inference: Inference, why: str) -> bool:
    return any(why in warning for warning in await inference.warnings())


# --- what is logged ---------------------------------------------------------------------------------------------------


async def is_logged(inference: Inference, iris: Any) -> bool:
    # A durable prediction is there with its answer.
    answer = (await inference.infer(iris)).json()["parameters"]["prediction_id"]
    return answer in {row["prediction_id"] for row in await inference.logged()}


async def assert_not_logged(inference: Inference, iris: Any) -> None:
    """Ask once, and then have everything logged from there on: the first is not there."""
    unlogged = (await inference.infer(iris)).json()["parameters"]["prediction_id"]
    await inference.apply(sampled=1, durable=True)
    await until(lambda: is_logged(inference, iris), "what the new spec says")
    assert unlogged not in {row["prediction_id"] for row in await inference.logged()}


async def test_a_spec_says_what_is_logged_whether_it_comes_before_the_plan_or_after_it(inference, iris):
    await inference.apply(sampled=0)
    await inference.serve(iris, 1)

    await assert_not_logged(inference, iris)


async def test_a_spec_that_comes_while_a_plan_is_loaded_holds_for_that_plan(inference, iris, monkeypatch):
    loading, go = [], asyncio.Event()
    load = rollouts.Loader.__call__

    async def slowly(loader: Any, model: str, deployed: Deployed) -> Any:
        loading.append(model)
        await go.wait()
        return await load(loader, model, deployed)

    monkeypatch.setattr(rollouts.Loader, "__call__", slowly)
    await inference.roll_out(await inference.deployed(iris, 1))
    await until(lambda: inference.model in loading)
    await inference.apply(sampled=0)
    later = name("m")
    await inference.wire.say(rollout(later, await inference.deployed(iris, 1)))
    await until(lambda: later in loading, "the spec read")
    go.set()
    await until(lambda: inference.serves(1))

    await assert_not_logged(inference, iris)

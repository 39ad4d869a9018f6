"""Canary, A/B test and shadows through a running registry: asked for over HTTP, decided on what the log brings."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy

from meguri_contracts.events import ArmObserved, ArmQuality, QualityMeasured, RolloutChanged, RolloutObserved
from meguri_contracts.names import derived_id
from tests.conftest import until
from tests.registry.plans import arm, scored
from tests.registry.registering import Registry, kinds, model_trained, registering, spec, tables
from tests.services import name

CANARY = {"rollout": {"strategy": "canary", "canary": {"steps": [0.1, 0.5], "requests": 100}}}


async def observe(known: Registry, *arms: ArmObserved, number: int = 1, rollout: str = "", replica: str = "one") -> str:
    """A replica of inference says what it saw of the plan in force, or of an earlier one; returns the event's id."""
    about = rollout or (await known.get("/rollout")).json()["rollout"]
    event = RolloutObserved(model=known.model, rollout=about, replica=replica, number=number, seconds=1, arms=arms)
    await known.wire.say(event, id=(id_ := name("observed")))
    return id_


async def measure(known: Registry, *arms: ArmQuality) -> None:
    await known.wire.say(QualityMeasured(model=known.model, arms=arms))


async def roles(known: Registry) -> dict[int, str]:
    return {one["version"]: one["role"] for one in (await known.get("/rollout")).json()["versions"]}


async def become(known: Registry, wanted: dict[int, str]) -> None:
    async def is_so() -> bool:
        return await roles(known) == wanted

    await until(is_so, f"{wanted}")


async def test_a_canary_becomes_champion_by_what_replicas_say_of_it(registry):
    await registry.apply(spec(registry.model, **CANARY))
    await registry.trained(0.9)
    before = (await registry.get()).json()["since"]
    second = await registry.trained(0.95)

    assert (second["verdict"], second["reason"]) == (
        "canary",
        "the gate holds: version 2 is canary, step 1 of 2, 10 %",
    )
    shown = (await registry.get()).json()
    assert (shown["champion"], shown["since"]) == (1, before)
    assert shown["plan"] == [
        {"version": 1, "role": "champion", "share": 0.9},
        {"version": 2, "role": "canary", "share": 0.1},
    ]
    await observe(registry, arm(1, "champion", 900), arm(2, "canary", 100))

    async def further() -> bool:
        return "step 2 of 2 (50 %)" in (await registry.get("/rollout")).json()["next"]

    await until(further)
    await observe(registry, arm(1, "champion", 60), arm(2, "canary", 60), replica="one")
    await observe(registry, arm(1, "champion", 40), arm(2, "canary", 40), replica="two")
    await become(registry, {2: "champion"})
    assert [row["version"] for row in (await registry.get("/rollouts")).json()] == [2, 1, 1, 1]
    assert [len(row["roles"]) for row in (await registry.get("/rollouts")).json()] == [1, 2, 2, 1]
    assert (await registry.get("/versions/2")).json()["verdict"] == "promoted"


async def test_a_canary_that_fails_is_taken_back_and_its_bytes_need_a_person_afterwards(known):
    await known.apply(spec(known.model, **CANARY))
    await known.trained(0.9)
    bad = await known.trained(0.95)
    await observe(known, arm(1, "champion", 900), arm(2, "canary", 100, errors=50))
    await become(known, {1: "champion"})

    version = (await known.get("/versions/2")).json()
    assert version["verdict"] == "taken back"
    assert "50 % of 100 requests had no answer" in version["reason"]
    newest = (await known.get("/rollouts")).json()[0]
    assert (newest["actor"], newest["previous"], newest["version"]) == ("registry", 1, 1)
    bytes_again = model_trained(known.model, bad["run"], 0.95, 1, 1).onnx
    again = model_trained(known.model, await known.run(), 0.95, 1, 1).model_copy(update={"onnx": bytes_again})
    await known.wire.say(again)

    async def asked() -> bool:
        return (await known.get()).json()["newest"]["verdict"] == "approval requested"

    await until(asked)


async def test_an_observation_delivered_again_or_late_changes_nothing(known):
    for accuracy in (0.9, 0.95):
        await known.trained(accuracy)
    await known.command("rollback")
    await known.command("canary", {"version": 2, "policy": {"requests": 10, "steps": [0.1, 0.2, 0.3]}})
    first = (await known.get("/rollout")).json()["rollout"]
    id_ = await observe(known, arm(2, "canary", 10))

    async def second_step() -> bool:
        return "step 2 of 3" in (await known.get("/rollout")).json()["next"]

    await until(second_step)
    await observe(known, arm(2, "canary", 1000), number=2, rollout=first)
    event = RolloutObserved(
        model=known.model, rollout=first, replica="one", number=1, seconds=1, arms=(arm(2, "canary", 10),)
    )
    await known.wire.js.publish(
        f"meguri.events.rollout-observed.{known.model}",
        event.model_dump_json().encode(),
        headers={"Nats-Msg-Id": name("again"), "ce-id": id_, "ce-type": event.type, "ce-specversion": "1.0"},
    )
    await observe(known, arm(2, "canary", 3))

    async def counted() -> bool:
        return "3 of 10 requests" in (await known.get("/rollout")).json()["next"]

    await until(counted)
    assert await second_step()


async def test_an_ab_test_ends_by_labels_with_the_better_version_as_champion(known):
    for accuracy in (0.9, 0.5, 0.5):
        await known.trained(accuracy)
    begun = await known.command("ab", {"versions": [2, 3], "weights": [0.2, 0.3], "policy": {"alpha": 0.1}})
    assert kinds(begun) == [RolloutChanged.type]
    assert {one["version"]: one["share"] for one in (await known.get("/rollout")).json()["versions"]} == {
        1: 0.5,
        2: 0.2,
        3: 0.3,
    }
    await measure(known, scored(1, 300, 0.5), scored(2, 300, 0.5), scored(3, 300, 0.8))
    await become(known, {3: "champion"})

    verdicts = {v["version"]: v["verdict"] for v in (await known.get()).json()["versions"]}
    assert verdicts == {1: "promoted", 2: "taken back", 3: "promoted"}
    assert "A/B test: version 3 is better" in (await known.get("/champion")).json()["reason"]


async def test_a_shadow_is_watched_and_stopped_by_hand(known):
    for accuracy in (0.9, 0.5):
        await known.trained(accuracy)
    assert kinds(await known.command("shadow", {"version": 2, "share": 0.5})) == [RolloutChanged.type]
    await observe(known, arm(1, "champion", 10), arm(2, "shadow", 5, pairs=20, disagreed=5, difference=2))

    async def watched() -> bool:
        shadow = (await known.get("/rollout")).json()["versions"][1]
        return (shadow["pairs"], shadow["disagreement"], shadow["mean_difference"]) == (20, 0.25, 0.1)

    await until(watched)
    assert (await known.get("/versions/2")).json()["verdict"] == "rejected"
    assert kinds(await known.command("shadow", {"version": 2, "stop": True})) == [RolloutChanged.type]
    assert kinds(await known.command("shadow", {"version": 2, "stop": True})) == []
    assert await roles(known) == {1: "champion"}


@pytest.mark.parametrize(
    ("command", "body"),
    [
        ("canary", {"version": 2}),
        ("ab", {"versions": [2]}),
        ("shadow", {"version": 2}),
    ],
)
async def test_a_command_with_a_key_has_its_effect_once_also_when_it_would_be_refused_by_now(known, command, body):
    for accuracy in (0.9, 0.5):
        await known.trained(accuracy)
    key = {"Idempotency-Key": name("k"), "Meguri-Actor": "ada"}

    first, again = [await known.command(command, body, **key) for _ in range(2)]
    assert (kinds(first), kinds(again)) == ([RolloutChanged.type], [])
    assert first.json()["events"][0]["actor"] == "ada"
    await known.command("promote", {"version": 2})
    assert kinds(await known.command(command, body, **key)) == []
    assert (await known.command(command, body)).status_code == 409


async def test_a_rollback_ends_what_is_tried_first_and_goes_back_only_then(known):
    for accuracy in (0.9, 0.95, 0.5):
        await known.trained(accuracy)
    await known.command("canary", {"version": 3})
    key = {"Idempotency-Key": name("k")}
    back = [await known.command("rollback", **key) for _ in range(2)]

    assert [kinds(one) for one in back] == [[RolloutChanged.type], []]
    assert await roles(known) == {2: "champion"}
    await known.command("rollback")
    assert await roles(known) == {1: "champion"}


@pytest.mark.parametrize(
    ("command", "body", "status", "reason"),
    [
        ("canary", {"version": 1}, 409, "is champion already"),
        ("canary", {"version": 9}, 404, "has no version 9"),
        (
            "canary",
            {"version": 2, "policy": {"steps": [0.5, 0.1]}},
            422,
            "canary steps must rise",
        ),
        ("canary", {"version": 2, "policy": {"speed": 1}}, 422, "speed: there is no such field"),
        ("canary", {}, 422, "body.version"),
        ("ab", {"versions": [2], "weights": [0.5, 0.5]}, 422, "2 weights for 1 versions"),
        ("ab", {"versions": [2, 2]}, 422, "each of them once"),
        ("ab", {"versions": []}, 422, "body.versions"),
        ("shadow", {"version": 2, "share": 0}, 422, "body.share"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(known, command, body, status, reason):
    for accuracy in (0.9, 0.5):
        await known.trained(accuracy)
    answer = await known.command(command, body)

    assert answer.status_code == status
    assert reason in answer.json()["error"]


@pytest.mark.parametrize(
    ("command", "content", "reason"),
    [
        ("canary", rb'{"version": NaN}', "body.version"),
        ("canary", rb'{"version": "\ud800"}', "body.version"),
        ("canary", rb'{"version": 2, "policy": {"\ud800": 1}}', "the policy breaks a rule"),
        ("promote", rb'{"version": 2, "reason": "\ud800"}', "surrogates"),
    ],
)
async def test_what_json_can_say_and_no_event_is_refused_in_words(known, command, content, reason):
    for accuracy in (0.9, 0.5):
        await known.trained(accuracy)
    headers = {"Content-Type": "application/json"}
    answer = await known.http.post(f"/models/{known.model}/{command}", content=content, headers=headers)

    assert answer.status_code == 422
    assert reason in answer.json()["error"]


@pytest.mark.parametrize(
    ("command", "body"), [("canary", {"version": 1}), ("ab", {"versions": [1]}), ("shadow", {"version": 1})]
)
async def test_before_the_first_champion_there_is_no_plan_to_change(known, command, body):
    await known.trained(0.5)
    answer, plan = await known.command(command, body), await known.get("/rollout")

    assert (answer.status_code, plan.status_code) == (409, 409)
    assert "has no champion yet" in answer.json()["error"]
    assert "has no champion yet" in plan.json()["error"]


async def test_who_could_answer_at_a_time_is_known(registry):
    await registry.apply(spec(registry.model))
    for accuracy in (0.9, 0.5):
        await registry.trained(accuracy)
    await registry.command("canary", {"version": 2})
    during = datetime.now(UTC)
    await registry.command("rollback")

    async def at(time: datetime) -> Any:
        answer = await registry.http.get("/at", params={"time": time.isoformat(), "model": registry.model})
        (one,) = answer.json()["models"]
        return {part["version"]: part["role"] for part in one["plan"]}, [v["verdict"] for v in one["versions"]]

    assert await at(during) == ({1: "champion", 2: "canary"}, ["promoted", "canary"])
    assert await at(datetime.now(UTC)) == ({1: "champion"}, ["promoted", "taken back"])
    assert [part["role"] for part in (await registry.get("/champion", at=during.isoformat())).json()["roles"]] == [
        "champion",
        "canary",
    ]


async def test_tables_with_a_canary_in_them_are_built_again_from_the_log(broker, database_url, tmp_path):
    async with registering(broker, database_url, tmp_path) as registry:
        await registry.apply(spec(registry.model, **CANARY))
        for accuracy in (0.9, 0.95):
            await registry.trained(accuracy)
        await observe(registry, arm(1, "champion", 900), arm(2, "canary", 100))

        async def further() -> bool:
            return "step 2 of 2" in (await registry.get("/rollout")).json()["next"]

        await until(further)
        await observe(registry, arm(1, "champion", 9), arm(2, "canary", 10))
        await measure(registry, scored(1, 300, 0.5), scored(2, 300, 0.5))

        async def seen() -> bool:
            return (await registry.get("/rollout")).json()["versions"][1]["labels"] == 300

        await until(seen)
        before, shown = tables(database_url), (await registry.get("/rollout")).json()
    tables(database_url, drop=True)

    async with registering(broker, database_url, tmp_path) as again:

        async def rebuilt() -> bool:
            return (await again.http.get(f"/models/{registry.model}/rollout")).json() == shown

        await until(rebuilt)
        assert tables(database_url) == before


async def test_a_state_that_an_older_replica_wrote_has_the_plan_of_the_journal(broker, database_url, tmp_path):
    """While an upgrade rolls, a replica that knows champions only may be the one that applies an event."""
    async with registering(broker, database_url, tmp_path) as registry:
        await registry.apply(spec(registry.model))
        for accuracy in (0.9, 0.5):
            await registry.trained(accuracy)
        key = name("k")
        await registry.command("canary", {"version": 2}, **{"Idempotency-Key": key})
        shown = (await registry.get("/rollout")).json()
    forget_plans(database_url)

    async with registering(broker, database_url, tmp_path) as again:
        mine = Registry(again.http, again.wire, registry.model)
        assert (await mine.get("/rollout")).json() == shown
        assert shown["rollout"] == derived_id(key, RolloutChanged.type, registry.model, "")
        await observe(mine, arm(1, "champion", 9000), arm(2, "canary", 500))

        async def further() -> bool:
            return "step 2 of 3" in (await mine.get("/rollout")).json()["next"]

        await until(further)


def forget_plans(database_url: str) -> None:
    """Have the states of models as replicas write them that know champions only."""
    engine = sqlalchemy.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    table = metadata.tables["registry_model"]
    with engine.begin() as connection:
        for row in connection.execute(sqlalchemy.select(table)).all():
            state = row.state if isinstance(row.state, dict) else json.loads(row.state)
            old = {k: v for k, v in state.items() if k not in ("plan", "rollout", "since", "seen", "heard", "quality")}
            connection.execute(sqlalchemy.update(table).where(table.c.name == row.name).values(state=old))
    engine.dispose()

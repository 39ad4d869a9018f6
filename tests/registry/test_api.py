import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import yaml

from meguri_contracts.events import (
    BatchRequested,
    ModelRegistered,
    RolloutChanged,
    ShardScored,
    SpecApplied,
    TrainingFailed,
    TrainingRequested,
)
from tests.conftest import until
from tests.registry.registering import kinds, model_trained, registering, spec, tables
from tests.services import Wire, name

# --- specs ------------------------------------------------------------------------------------------------------------


async def test_a_spec_is_there_as_soon_as_it_was_applied_and_the_same_again_changes_nothing(registry):
    first = await registry.apply(spec(registry.model), **{"Meguri-Actor": "ada"})
    shown = await registry.get()
    again = await registry.apply(spec(registry.model))

    assert kinds(first) == [SpecApplied.type]
    assert (first.json()["events"][0]["version"], first.json()["events"][0]["actor"]) == (1, "ada")
    assert (shown.json()["spec_version"], shown.json()["champion"]) == (1, None)
    assert shown.json()["spec"]["gate"] == "accuracy >= 0.8"
    assert kinds(again) == []
    for version in range(2, 6):
        await registry.apply(spec(registry.model, gate=f"accuracy > 0.{version}"))
        assert (await registry.get()).json()["spec_version"] == version


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model: [", "the spec is neither YAML nor JSON"),
        ("{", "the spec is neither YAML nor JSON"),
        ("model: !!python/object:os.system {}", "the spec is neither YAML nor JSON"),
        ("", "the spec breaks a rule: Input should be a valid dictionary"),
        ("- 1", "the spec breaks a rule: Input should be a valid dictionary"),
        (spec("m", gate="accuracy = 1"), "gate: gate 'accuracy = 1' cannot be read"),
        (spec("m", gate="r2 > 1"), "gate: 'r2' is no metric of a classification; known are accuracy"),
        (spec("m", target="y"), "'y' is not a column of dataset 'm'"),
        (spec("Upper"), "model: String should match pattern"),
        (spec("m", colour="red"), "colour: there is no such field"),
        (spec("m", validation={"holdout": 1.5}), "validation.holdout: Input should be less than 1"),
    ],
)
async def test_a_spec_that_breaks_a_rule_is_refused_with_field_and_rule(known, text, reason):
    answer = await known.http.post("/specs", content=text if isinstance(text, str) else yaml.safe_dump(text))

    assert answer.status_code == 422
    assert reason in answer.json()["error"]


async def test_a_dataset_declared_otherwise_by_another_model_is_a_conflict(known):
    other = spec(name("m"), dataset=spec(known.model)["dataset"] | {"max_bad_share": 0.1})
    answer = await known.apply(other)

    assert answer.status_code == 409
    assert f"dataset {known.model!r} is declared differently by another model" in answer.json()["error"]


# --- what is not there ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/champion", "/rollouts"])
async def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(known, path):
    answer = await known.http.get(f"/models/unknown{path}")

    assert answer.status_code == 404
    assert answer.json()["error"].startswith("no model 'unknown'; known are: ")
    assert known.model in answer.json()["error"]


@pytest.mark.parametrize(("command", "body"), [("promote", {"version": 1}), ("rollback", {}), ("train", {})])
async def test_a_command_for_an_unknown_model_is_not_found(known, command, body):
    answer = await known.http.post(f"/models/unknown/{command}", json=body)

    assert answer.status_code == 404
    assert known.model in answer.json()["error"]


async def test_a_version_that_is_not_there_is_not_found(known):
    for answer in (
        await known.get("/versions/1"),
        await known.get("/versions/1/lineage"),
        await known.command("promote", {"version": 1}),
    ):
        assert (answer.status_code, answer.json()["error"]) == (404, f"model {known.model!r} has no version 1")


async def test_a_model_without_a_champion_says_so(known):
    champion, rollback = await known.get("/champion"), await known.command("rollback")

    assert champion.status_code == 404
    assert "had no champion at" in champion.json()["error"]
    assert rollback.status_code == 409
    assert "has no earlier champion to go back to" in rollback.json()["error"]


@pytest.mark.parametrize("body", [{"version": 0}, {}, {"version": "x"}])
async def test_a_promotion_without_a_version_is_refused(known, body):
    answer = await known.command("promote", body)

    assert answer.status_code == 422
    assert "body.version" in answer.json()["error"]


# --- verdicts and commands --------------------------------------------------------------------------------------------


async def test_a_trained_model_gets_its_version_and_its_verdict(registry):
    await registry.apply(spec(registry.model))
    good, bad = await registry.trained(0.9), await registry.trained(0.5)

    assert (good["version"], good["verdict"], good["metrics"]) == (1, "promoted", {"accuracy": 0.9})
    assert (bad["version"], bad["verdict"]) == (2, "rejected")
    assert bad["reason"] == "the gate does not hold: accuracy >= 0.8"
    shown = (await registry.get()).json()
    assert (shown["champion"], shown["newest"]["version"]) == (1, 2)
    assert [run["status"] for run in shown["runs"]] == ["trained", "trained"]
    detail = (await registry.get("/versions/1")).json()
    assert detail["trained"]["environment"] == {"python": "3.11"}


async def test_a_model_that_was_trained_twice_is_registered_once(known):
    event = model_trained(known.model, name("run"), 0.9, None, 1)
    await known.wire.say(event)
    await known.wire.say(event)
    await known.trained(0.9)

    registered = await known.wire.said(ModelRegistered, known.model)
    assert [event.version for event in registered] == [1, 2]


async def test_a_failed_run_shows_why(known):
    run = await known.run()
    await known.wire.say(TrainingFailed(model=known.model, run=run, reason="one class only"))

    async def failed() -> bool:
        return [(r["status"], r["reason"]) for r in (await known.get()).json()["runs"]] == [
            ("failed", "one class only")
        ]

    await until(failed)


async def test_people_promote_and_roll_back_and_see_it_at_once(registry):
    await registry.apply(spec(registry.model))
    await registry.trained(0.9)
    await registry.trained(0.5)

    promoted = await registry.command("promote", {"version": 2, "reason": "trust me"}, **{"Meguri-Actor": "ada"})
    after_promotion = (await registry.get("/champion")).json()
    again = await registry.command("promote", {"version": 2})
    back = await registry.command("rollback", {"reason": "I was wrong"})
    after_rollback = (await registry.get("/champion")).json()

    assert kinds(promoted) == kinds(back) == [RolloutChanged.type]
    assert (after_promotion["version"], after_promotion["reason"]) == (2, "trust me")
    assert (after_promotion["actor"], after_promotion["previous"]) == ("ada", 1)
    assert kinds(again) == []
    assert (after_rollback["version"], after_rollback["reason"]) == (1, "rollback: I was wrong")
    assert [row["version"] for row in (await registry.get("/rollouts")).json()] == [1, 2, 1]


async def test_who_was_champion_at_a_time_is_known(registry):
    before = datetime.now(UTC)
    await registry.apply(spec(registry.model))
    await registry.trained(0.9)
    between = datetime.now(UTC)
    await registry.trained(0.95)

    first = await registry.get("/champion", at=between.isoformat())
    naive = await registry.get("/champion", at=between.replace(tzinfo=None).isoformat())
    assert first.json()["version"] == naive.json()["version"] == 1
    assert (await registry.get("/champion")).json()["version"] == 2
    assert (await registry.get("/champion", at=before.isoformat())).status_code == 404
    since = (await registry.get()).json()["since"]
    assert (await registry.get("/champion", at=since)).json()["version"] == 2


async def test_training_is_asked_for_with_reason_and_actor(known):
    answer = await known.command("train", {"reason": "new code"}, **{"Meguri-Actor": "ada"})

    assert answer.status_code == 202
    (requested,) = await known.wire.said(TrainingRequested, known.model)
    assert (requested.reason, requested.actor) == ("new code", "ada")


async def test_a_command_with_a_key_has_its_effect_once(registry):
    await registry.apply(spec(registry.model))
    for accuracy in (0.9, 0.95, 0.99):
        await registry.trained(accuracy)
    train, back = {"Idempotency-Key": name("k")}, {"Idempotency-Key": name("k")}

    assert [kinds(await registry.command("train", {}, **train)) for _ in range(2)] == [[TrainingRequested.type], []]
    assert [kinds(await registry.command("rollback", {}, **back)) for _ in range(2)] == [[RolloutChanged.type], []]
    assert len(await registry.wire.said(TrainingRequested, registry.model)) == 1
    assert (await registry.get()).json()["champion"] == 2


async def test_the_last_possible_rollback_with_a_key_can_be_sent_again(known):
    await known.trained(0.9)
    await known.trained(0.95)
    key = {"Idempotency-Key": name("k")}

    assert [kinds(await known.command("rollback", {}, **key)) for _ in range(2)] == [[RolloutChanged.type], []]


async def test_the_same_command_many_times_at_once_has_its_effect_once(registry):
    await registry.apply(spec(registry.model))
    key = {"Idempotency-Key": name("k")}
    answers = await asyncio.gather(*(registry.command("train", {}, **key) for _ in range(5)))

    assert {answer.status_code for answer in answers} == {202}
    assert len(await registry.wire.said(TrainingRequested, registry.model)) == 1


async def test_commands_that_overtake_each_other_are_all_carried_out_in_some_order(registry):
    answers = await asyncio.gather(
        *(registry.apply(spec(registry.model, gate=f"accuracy > 0.{n}")) for n in range(1, 9))
    )

    assert [kinds(answer) for answer in answers] == [[SpecApplied.type]] * 8
    applied = await registry.wire.said(SpecApplied, registry.model)
    assert [event.version for event in applied] == list(range(1, 9))


# --- lineage ----------------------------------------------------------------------------------------------------------


async def test_lineage_is_known_from_a_version_to_its_arrivals_and_back(registry):
    await registry.apply(spec(registry.model))
    early, late = name("e"), name("e")
    first = await registry.data(1, early)
    await registry.trained(0.9, await registry.run(first, 1), 1)
    second = await registry.data(2, late)
    await registry.trained(0.95, await registry.run(second, 2), 2)

    lineage = (await registry.get("/versions/2/lineage")).json()
    assert [(part["event"], part["producer"]) for part in lineage["arrivals"]] == [
        (early, "sensor-1"),
        (late, "sensor-1"),
    ]
    assert [(t["event"], t["kind"]) for t in lineage["run"]["triggers"]] == [(second, "data-committed")]
    assert [part["event"] for part in (await registry.get("/versions/1/lineage")).json()["arrivals"]] == [early]

    async def used_in(event: str) -> list[int]:
        found = (await registry.http.get(f"/lineage/events/{event}")).json()
        return [row["version"] for part in found["datasets"] for row in part["used_in"]]

    assert await used_in(early) == [1, 2]
    assert await used_in(late) == [2]
    assert await used_in("never sent") == []


# --- the log is the truth ---------------------------------------------------------------------------------------------


async def one_batch(wire: Wire, model: str) -> None:
    of = {"model": model, "batch": name("b")}
    await wire.say(BatchRequested(**of, input="file:///in.csv", output="file:///out", actor="ada"))
    await wire.say(
        ShardScored(**of, shard=0, shards=1, rows=1, uri="file:///out/0", digest="d", replica="r", seconds=1)
    )


async def test_a_wiped_database_is_built_again_from_the_log(broker, database_url, tmp_path):
    async with registering(broker, database_url, tmp_path) as registry:
        await registry.apply(spec(registry.model))
        for version, accuracy in enumerate((0.9, 0.5, 0.95), start=1):
            run = await registry.run(await registry.data(version, name("e"), name("e")), version)
            await registry.trained(accuracy, run, version)
        await registry.wire.say(TrainingFailed(model=registry.model, run=await registry.run(), reason="no memory"))
        await registry.command("rollback")
        await one_batch(registry.wire, registry.model)
        await until(lambda: all(tables(database_url).values()), "the batch known")
        before, model = tables(database_url), (await registry.get()).json()
    assert all(before.values())
    tables(database_url, drop=True)

    async with registering(broker, database_url, tmp_path) as again:

        async def rebuilt() -> bool:
            return (await again.http.get(f"/models/{registry.model}")).json() == model

        await until(rebuilt)
        assert tables(database_url) == before


async def test_what_was_known_at_a_time_of_any_zone_is_known(registry):
    await registry.apply(spec(registry.model))
    await registry.trained(0.9)
    between = datetime.now(UTC)
    await registry.trained(0.95)

    async def known(time: datetime | None, **params: str) -> Any:
        text = (time or datetime.now(UTC)).isoformat()
        answer = await registry.http.get("/at", params={"time": text, "model": registry.model} | params)
        return [(one["champion"], one["past"], len(one["versions"])) for one in answer.json()["models"]]

    east = timezone(timedelta(hours=14))
    assert await known(between) == await known(between.astimezone(east)) == [(1, [], 1)]
    assert await known(between.replace(tzinfo=None)) == [(1, [], 1)]
    assert await known(None) == [(2, [1], 2)]
    assert await known(None, model="unknown") == []
    assert (await registry.http.get("/at")).status_code == 422
    before_all_times = await registry.http.get("/at", params={"time": "0001-01-01T00:00:00+14:00"})
    assert (before_all_times.status_code, "from 1 to 9999" in before_all_times.text) == (422, True)

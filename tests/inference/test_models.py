import asyncio
from collections import Counter

import numpy as np
import orjson
import pytest

from meguri_contracts.errors import NotFound, TemporaryError
from meguri_inference.models import MAX_WAITING, Served
from meguri_inference.tallies import Tallies
from tests.inference.replicas import Replica, as_version, noted, plan

# --- what is served ---------------------------------------------------------------------------------------------------


async def test_nobody_answers_for_an_unknown_model_and_the_served_ones_are_named(replica, iris, ridge):
    with pytest.raises(NotFound, match="none yet"):
        replica.models.get("iris")
    await replica.follow(ridge)
    await replica.follow(iris)

    with pytest.raises(NotFound, match="served are: iris, ridge"):
        replica.models.get("digits")
    assert replica.models.names == ["iris", "ridge"]


async def test_only_versions_of_the_plan_answer(replica, iris):
    served = await replica.follow(iris)
    assert served.version("3") is served.champion
    with pytest.raises(NotFound, match=r"version 2 of model 'iris' is not served here; version 3 is"):
        served.version("2")

    served = await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))

    assert [seat.role for seat in (served.version("3"), served.version("4"))] == ["champion", "shadow"]
    with pytest.raises(NotFound, match="versions 3, 4 are"):
        served.version("2")


async def test_a_request_in_hand_finishes_on_the_version_it_began_with(replica, iris):
    await replica.follow(iris)
    before = asyncio.create_task(replica.answer(iris, iris.x[:1]))
    await asyncio.sleep(0)

    await replica.follow(as_version(iris, 4))

    assert version_of(await before) == "3"
    assert version_of(await replica.answer(iris, iris.x[:1])) == "4"


async def test_while_plans_change_under_load_every_request_is_answered_by_the_champion_it_found(replica, iris):
    versions = [as_version(iris, version) for version in (3, 4)]
    await replica.follow(versions[0])
    answers = []
    for turn in range(100):
        expected = str(replica.models.get("iris").champion.version)
        answers.append((expected, asyncio.create_task(replica.answer(iris, iris.x[[turn]]))))
        await asyncio.sleep(0)
        if turn % 7 == 0:
            await replica.follow(versions[turn % 2])

    for turn, (expected, task) in enumerate(answers):
        reply = await task
        assert (reply.status, version_of(reply)) == (200, expected)
        assert label_of(reply) == iris.estimator.predict(iris.x[[turn]]).tolist()


def version_of(reply) -> str:
    return orjson.loads(reply.body)["model_version"]


def label_of(reply) -> list:
    return orjson.loads(reply.body)["outputs"][0]["data"]


# --- shares -----------------------------------------------------------------------------------------------------------

CUSTOMERS = [f"customer-{number}" for number in range(4000)]


def served(iris, **others) -> Served:
    return Served("iris", plan(iris, **others), "rollout-1", Tallies())


def shares(served: Served, entities) -> dict[int, float]:
    chosen = Counter(served.choose(entity).version for entity in entities)
    return {version: chosen[version] / chosen.total() for version in chosen}


@pytest.mark.parametrize("entities", [CUSTOMERS, [None] * 4000], ids=["entities", "nobody in particular"])
def test_the_shares_of_a_plan_come_out(iris, entities):
    two, three = as_version(iris, 4), as_version(iris, 5)

    canary = shares(served(iris, canary=(two, 0.25)), entities)
    trial = shares(served(iris, arms=((two, 0.2), (three, 0.3))), entities)

    assert canary == pytest.approx({3: 0.75, 4: 0.25}, abs=0.04)
    assert trial == pytest.approx({3: 0.5, 4: 0.2, 5: 0.3}, abs=0.04)


def test_an_entity_is_answered_by_the_same_version_in_every_replica(iris):
    one, other = (served(iris, canary=(as_version(iris, 4), 0.5)) for _ in range(2))

    assert [one.choose(who).version for who in CUSTOMERS] == [other.choose(who).version for who in CUSTOMERS]


def test_who_is_with_the_canary_stays_with_it_when_its_weight_grows(iris):
    before, after = (served(iris, canary=(as_version(iris, 4), weight)) for weight in (0.05, 0.5))

    with_it = [who for who in CUSTOMERS if before.choose(who).version == 4]

    assert with_it
    assert {after.choose(who).version for who in with_it} == {4}


def test_another_canary_is_tried_on_others_however_long_the_names_of_runs_are(iris):
    def canary(version: int):
        fitted = as_version(iris, version)
        deployed = fitted.deployed.model_copy(update={"run": f"{'r' * 60}{version}"})
        return type(fitted)(fitted.name, fitted.estimator, fitted.x, deployed, fitted.onnx), 0.5

    champion, _ = canary(3)
    chosen = [
        {who for who in CUSTOMERS if served(champion, canary=one).choose(who).version != 3}
        for one in (canary(4), canary(5))
    ]

    assert len(chosen[0] & chosen[1]) == pytest.approx(1000, abs=200)


def test_who_is_left_out_leaves_his_share_to_the_champion(iris):
    before = served(iris, arms=((as_version(iris, 4), 0.3), (as_version(iris, 5), 0.3)))
    after = served(iris, arms=((as_version(iris, 4), 0.3), (as_version(iris, 5), 0.3)))
    after.leave_out(after.version("4"))

    for who in CUSTOMERS[:500]:
        version = before.choose(who).version
        assert after.choose(who).version == (3 if version == 4 else version)
    with pytest.raises(NotFound):
        after.version("4")


def test_a_shadow_that_is_left_out_is_not_asked(iris):
    plan_ = served(iris, shadows=((as_version(iris, 4), 1.0),))
    plan_.leave_out(plan_.version("4"))

    assert plan_.shadows == []
    assert [seat.version for seat in plan_.seats] == [3]


# --- memory -----------------------------------------------------------------------------------------------------------


def loaded(replica: Replica) -> set[tuple[str, int]]:
    return {(name, version) for name, version, _ in replica.models._loaded}


async def test_versions_of_earlier_plans_stay_so_that_going_back_loads_nothing(replica, iris):
    await replica.follow(iris)
    await replica.follow(as_version(iris, 4))
    await replica.follow(iris)

    assert replica.loads == [("iris", 3), ("iris", 4)]
    assert (await replica.answer(iris, iris.x[:1])).status == 200


async def room_for(replica: Replica, count: int, fitted) -> None:
    """Bound the memory of a replica to so many models of this size."""
    replica.models._max_bytes = count * fitted.load().bytes + 1


async def test_who_was_asked_longest_ago_makes_room_and_what_no_plan_needs_before_that(replica, iris):
    await room_for(replica, 2, iris)
    await replica.follow(as_version(iris, 2))
    await replica.follow(iris)
    await replica.follow(as_version(iris, 1, like=named(iris, "second")))
    assert loaded(replica) == {("iris", 3), ("second", 1)}

    await replica.answer(iris, iris.x[:1])
    await replica.follow(as_version(iris, 1, like=named(iris, "third")))

    assert loaded(replica) == {("iris", 3), ("third", 1)}


def named(fitted, name: str):
    return type(fitted)(name, fitted.estimator, fitted.x, fitted.deployed, fitted.onnx)


async def test_a_version_that_made_room_is_loaded_again_once_and_all_who_wait_are_answered(replica, iris):
    other = named(iris, "other")
    await room_for(replica, 1, iris)
    await replica.follow(iris)
    await replica.follow(other)
    assert loaded(replica) == {("other", 3)}

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[[at]]) for at in range(20)))

    assert [label_of(reply) for reply in replies] == [[label] for label in iris.estimator.predict(iris.x[:20])]
    assert replica.loads == [("iris", 3), ("other", 3), ("iris", 3)]
    assert loaded(replica) == {("iris", 3)}


async def test_when_it_cannot_be_loaded_again_who_waits_is_told_to_try_later_and_the_next_one_tries(replica, iris):
    await room_for(replica, 1, iris)
    await replica.follow(iris)
    await replica.follow(named(iris, "other"))
    replica.load_error = TemporaryError("the store is away")

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(3)))
    replica.load_error = None

    assert [reply.status for reply in replies] == [503] * 3
    assert "could not be loaded again: the store is away" in orjson.loads(replies[0].body)["error"]
    assert (await replica.answer(iris, iris.x[:1])).status == 200


async def test_not_more_than_so_many_wait_for_a_version_that_is_being_loaded(replica, iris):
    await room_for(replica, 1, iris)
    await replica.follow(iris)
    await replica.follow(named(iris, "other"))

    replies = await asyncio.gather(*(replica.answer(iris, iris.x[:1]) for _ in range(MAX_WAITING + 2)))

    assert Counter(reply.status for reply in replies) == {200: MAX_WAITING, 503: 2}
    assert "requests wait for it" in orjson.loads(replies[-1].body)["error"]


async def test_a_shadow_does_not_make_room_for_it_is_never_brought_back(replica, iris):
    await room_for(replica, 2, iris)
    await replica.follow(iris, shadows=((as_version(iris, 4), 1.0),))
    await replica.follow(named(iris, "other"))

    assert loaded(replica) == {("iris", 4), ("other", 3)}


async def test_who_no_longer_waits_for_a_load_does_not_take_it_from_others(replica, iris):
    replica._fitted["iris", 3] = iris
    first, second = (asyncio.create_task(replica.models.loaded("iris", iris.deployed)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()

    assert (await second).version == 3
    assert replica.loads == [("iris", 3)]


async def test_a_model_that_many_ask_for_is_computed_by_one_engine(replica, iris):
    engine = noted((await replica.follow(iris)).champion)

    await asyncio.gather(*(replica.answer(iris, np.repeat(iris.x[:1], 2, axis=0)) for _ in range(10)))

    assert engine.calls == [20]

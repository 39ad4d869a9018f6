"""Decisions rest on what was said before them, and have their effect once, whoever else decides at the same time."""

import asyncio

import pytest
from nats.js.api import StreamConfig

from meguri_chassis import deciding
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog, MovedOn
from meguri_contracts.errors import Conflict
from meguri_contracts.events import ModelRegistered, TrainingRequested
from tests.chassis.toy import HEARS, register, toy
from tests.conftest import until
from tests.services import Wire, name, wire


async def versions(wire: Wire, model: str) -> list[int]:
    return [event.version for event in await wire.said(ModelRegistered, model)]


async def test_two_that_decide_about_one_key_never_act_on_the_same_state(database_url, tmp_path, wire):
    model, elsewhere = name("m"), f"sqlite:///{tmp_path}/elsewhere.db"
    async with toy(database_url, wire.js) as one, toy(elsewhere, wire.js) as other:
        decisions = [
            replica.decider.carry_out(register(model), cause=f"{model}-{i}", journey="j")
            for i, replica in enumerate([one, other] * 8)
        ]
        said = [event.version for events in await asyncio.gather(*decisions) for event in events]

        assert sorted(said) == list(range(1, 17))
        assert await versions(wire, model) == list(range(1, 17))


async def test_what_was_said_is_in_the_tables_once_it_is_settled(database_url, wire):
    model = name("m")
    async with toy(database_url, wire.js) as replica:
        await replica.decider.carry_out(register(model, "this run"), cause=model, journey="j")
        await replica.decider.settled()

        assert (replica.tally(model).version, replica.tally(model).last) == (1, "this run")


async def test_a_cause_that_comes_twice_has_its_effect_once(database_url, wire):
    model = name("m")
    async with toy(database_url, wire.js) as one, toy(database_url, wire.js) as other:
        for replica in (one, one, other):
            await replica.decider.carry_out(register(model), cause=model, journey="j")
        await asyncio.gather(
            *(replica.decider.carry_out(register(model), cause=f"{model}-2", journey="j") for replica in (one, other))
        )

        assert await versions(wire, model) == [1, 2]


async def test_a_cause_has_its_effect_once_also_when_the_broker_has_forgotten_it(broker, database_url):
    async with wire(broker) as own:
        await forget_ids_at_once(own)
        async with toy(database_url, own.js) as replica:
            await replica.decider.carry_out(register("m"), cause="c", journey="j")
            await until(lambda: is_forgotten(own), "the end of the broker's window")
            await replica.decider.carry_out(register("m"), cause="c", journey="j")

        assert await versions(own, "m") == [1]


async def forget_ids_at_once(wire: Wire) -> None:
    config = (await wire.js.stream_info("MEGURI")).config
    await wire.js.update_stream(StreamConfig(**{**vars(config), "duplicate_window": 0.1}))


async def is_forgotten(wire: Wire) -> bool:
    """Whether an id that was said now, after all others, is unknown already."""
    headers = {"Nats-Msg-Id": "probe"}
    return (
        not (await wire.js.publish("meguri.events.model-loaded.probe", b"{}", headers=headers)).duplicate
        and (await wire.js.stream_info("MEGURI", subjects_filter="meguri.events.model-loaded.probe")).state.subjects[
            "meguri.events.model-loaded.probe"
        ]
        > 1
    )


async def test_a_decision_that_is_overtaken_halfway_says_the_rest_once(database_url, wire):
    model = name("m")

    class Overtaken(EventLog):
        """Lets a rival speak after the first event."""

        rivals = 1

        async def append(self, event, **how):
            sequence = await super().append(event, **how)
            if self.rivals:
                self.rivals -= 1
                await wire.say(ModelRegistered(model=model, version=2, run="rival"))
            return sequence

    def decide(session):
        return [*register(model)(session), TrainingRequested(model=model, reason="second", actor="test")]

    async with toy(database_url, wire.js) as replica:
        decider = Decider(Overtaken(lambda: wire.js, "meguri/toy"), replica.database, replica.projection)
        await decider.carry_out(decide, cause=model, journey="j")
        await decider.settled()

        assert await versions(wire, model) == [1, 2]
        assert len(await wire.said(TrainingRequested, model)) == 1
        assert replica.tally(model).gaps == 0


async def test_a_decision_that_is_always_overtaken_is_left_for_later(database_url, wire, monkeypatch):
    monkeypatch.setattr(deciding, "TRIES", 3)
    model, loop, tried = name("m"), asyncio.get_running_loop(), []

    def decide(session):
        tried.append(register(model)(session)[0].version)
        rival = wire.say(ModelRegistered(model=model, version=tried[-1], run="rival"))
        asyncio.run_coroutine_threadsafe(rival, loop).result()
        return register(model)(session)

    async with toy(database_url, wire.js) as replica:
        with pytest.raises(MovedOn, match="3 decisions in a row were overtaken"):
            await replica.decider.carry_out(decide, cause=model, journey="j")

    assert tried == [1, 2, 3]


async def test_a_decision_waits_for_the_state_at_its_cause(database_url, wire):
    model = name("m")
    async with toy(database_url, wire.js) as replica:
        sequence = await wire.say(ModelRegistered(model=model, version=1, run="before"))
        (said,) = await replica.decider.carry_out(register(model), cause=model, journey="j", after=sequence)

        assert said.version == 2


async def test_what_a_decision_raises_comes_through_and_nothing_is_said(database_url, wire):
    model = name("m")

    def refuse(session):
        raise Conflict("not now")

    async with toy(database_url, wire.js, hears=HEARS) as replica:
        with pytest.raises(Conflict, match="not now"):
            await replica.decider.carry_out(refuse, cause=model, journey="j")

    assert await versions(wire, model) == []

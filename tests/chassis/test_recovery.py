"""Tables are made again from the log, to the last bit, and nobody sees half of it."""

import asyncio
import gc
import threading
from threading import Event

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import delete, event, update

from meguri_chassis import recovery
from meguri_chassis.log import MovedOn
from meguri_chassis.projection import Incomplete, Rebuilding
from meguri_chassis.store import Head, JournalEntry, Position
from meguri_contracts.errors import Invalid
from meguri_contracts.events import ModelRegistered, TrainingRequested
from meguri_contracts.topology import LOG
from tests.chassis import toy as domain
from tests.chassis.toy import HEARS, Tally, Toy, register, toy
from tests.conftest import Broker, until
from tests.services import Wire, name, wire


@pytest.fixture
async def own(broker: Broker):
    async with wire(broker) as own:
        yield own


async def fill(own: Wire, models: int = 3, versions: int = 40) -> int:
    """Say some events, among them one twice and some that cannot be read; returns the last sequence."""
    names = [name("m") for _ in range(models)]
    for model in names:
        for version in range(1, versions + 1):
            await own.say(ModelRegistered(model=model, version=version, run=f"run-{version}"))
        await own.publish("training-requested", model, b"not JSON")
        await own.publish("drift-detected", model, b"{}")
        for _ in range(2):
            await own.publish(
                "training-requested", model, b'{"reason": "r", "actor": "a"}', {"ce-id": f"{model}-again"}
            )
    return await own.say(TrainingRequested(model=names[0], reason="last", actor="test"))


async def rebuilt(replica: Toy, own: Wire, **how) -> Rebuilding:
    async for step in replica.projection.rebuild(lambda: own.js, **how):
        last = step
    return last


async def test_tables_that_are_made_again_have_the_digest_that_they_had(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
        step = await rebuilt(replica, own)

        assert (last, step.before) == before
        assert step.after == step.before
        assert await replica.projection.state() == before
        assert {"toy_tally", "log_head", "log_parked", "log_journal"} == set(step.after)


async def test_what_was_spoilt_by_hand_is_put_right_and_the_digests_tell(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        right = (await replica.projection.state())[1]
        with replica.database.write() as session:
            session.connection().execute(update(Tally).values(version=99))

        looked = await rebuilt(replica, own, keep=False)
        assert [table for table in right if looked.before[table] != looked.after[table]] == ["toy_tally"]
        assert (await replica.projection.state())[1] == looked.before, "looking changes nothing"

        assert (await rebuilt(replica, own)).after == right
        assert (await replica.projection.state())[1] == right


async def test_both_databases_have_the_same_digest(own, postgres, tmp_path, request):
    last = await fill(own)
    digests = []
    for url in (f"sqlite:///{tmp_path}/one.db", f"{postgres}/postgres"):
        async with toy(url, own.js) as replica:
            await replica.projection.reached(last)
            digests.append(await replica.projection.state())

    assert digests[0] == digests[1]


async def test_a_rebuild_that_is_left_early_changes_nothing_and_the_projection_goes_on(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
        rebuilding = replica.projection.rebuild(lambda: own.js)
        await anext(rebuilding)
        await anext(rebuilding)
        await rebuilding.aclose()

        assert await replica.projection.state() == before
        await replica.projection.reached(await own.say(TrainingRequested(model="m", reason="after", actor="test")))


@pytest.fixture
def no_collector():
    """Nothing that was left open is closed by chance."""
    gc.disable()
    yield
    gc.enable()


async def test_a_rebuild_that_is_cancelled_in_the_middle_of_a_step_changes_nothing_and_leaves_no_lock(
    database_url, own, no_collector
):
    last, entered, go_on = await fill(own), Event(), Event()
    go_on.set()

    def evolve(session, event, message):
        if not go_on.is_set():
            entered.set()
            go_on.wait()
        domain.evolve(session, event, message)

    async with toy(database_url, own.js, evolve=evolve) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
        go_on.clear()
        rebuilding = asyncio.create_task(rebuilt(replica, own))
        await until(entered.is_set, "a step")
        for _ in range(3):
            # As often as a server does with whoever hung up.
            rebuilding.cancel()
            await asyncio.wait([rebuilding], timeout=0.1)
        go_on.set()
        await asyncio.wait([rebuilding])
        later = await own.say(TrainingRequested(model="m", reason="after", actor="test"))
        await replica.projection.reached(later)

        assert rebuilding.cancelled()
        assert (await rebuilt(replica, own, until=last, keep=False)).after == before[1]


async def test_tables_of_the_past_are_looked_at_but_never_kept(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
        with pytest.raises(Invalid, match="keep=false"):
            await rebuilt(replica, own, until=0)

        assert await replica.projection.state() == before


async def test_others_see_the_old_tables_until_the_new_ones_are_whole(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as one, toy(database_url, own.js) as other:
        await one.projection.reached(last)
        before = await other.projection.state()
        rebuilding = one.projection.rebuild(lambda: own.js)
        await anext(rebuilding)
        during = await other.projection.state()
        later = await own.say(TrainingRequested(model="m", reason="meanwhile", actor="test"))
        async for _ in rebuilding:
            pass
        await asyncio.gather(one.projection.reached(later), other.projection.reached(later))

        assert during == before
        assert one.tally("m").applied == 1


async def test_a_replica_whose_tables_are_wiped_while_it_runs_makes_them_again(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
        with replica.database.write() as session:
            for table in (Tally, Head, JournalEntry, Position):
                session.connection().execute(delete(table))
        # The next event tells it.
        after = await own.say(TrainingRequested(model=name("m"), reason="next", actor="test"))
        await until(lambda: replica.projection.position >= after)
        step = await rebuilt(replica, own, until=last, keep=False)

        assert (last, step.after) == before


async def begin_anew(own: Wire) -> None:
    """What the operator must not do, and a lost disk does: the log is empty again."""
    stream = (await own.js.stream_info(LOG)).config
    stream.deny_delete = None
    await own.js.delete_stream(LOG)
    await own.js.add_stream(stream)


async def test_a_lost_log_stops_everything_until_it_is_back(own, broker, database_url):
    last = await fill(own)
    before = await own.stored(LOG, ">")
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
    await begin_anew(own)
    async with toy(database_url, own.js) as replica:
        lost = await until(lambda: replica.projection.lost, "the loss")
        assert f"the log ends at 0, but the tables contain it up to {last}" in lost
        assert replica.projection.trouble == lost
        with pytest.raises(Incomplete, match="restore-log"):
            await rebuilt(replica, own)

        for msg in before:
            await own.js.publish(msg.subject, msg.data, stream=LOG, headers=msg.headers)
        await until(lambda: replica.projection.lost is None, "the return of the log")
        await replica.projection.reached(await own.say(TrainingRequested(model="m", reason="new", actor="test")))
        assert replica.tally("m").last == "new"


async def test_a_log_that_was_lost_and_filled_by_others_is_not_taken_for_the_old_one(own, database_url):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        before = await replica.projection.state()
    await begin_anew(own)
    for _ in range(last + 1):
        await own.publish("training-requested", "m", b'{"reason": "r", "actor": "a"}')
    async with toy(database_url, own.js) as replica:
        lost = await until(lambda: replica.projection.lost, "the loss")
        assert f"the log has another message at {last} than the tables contain" in lost
        with pytest.raises(Incomplete, match="restore-log"):
            await rebuilt(replica, own)

        assert await replica.projection.state() == before, "the journals are what is left of the old log"


async def test_a_key_whose_last_message_is_missing_for_good_can_be_decided_on_after_a_rebuild(own, database_url):
    model = name("m")
    await own.say(ModelRegistered(model=model, version=1, run="run-1"))
    missing = await own.publish("drift-detected", model, b"heard elsewhere")
    before = await own.stored(LOG, ">")
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(missing)
    await begin_anew(own)
    for msg in before:
        where = msg.subject if msg.seq != missing else f"meguri.events.lost.{missing}"
        await own.js.publish(where, msg.data, stream=LOG, headers=msg.headers)
    async with toy(database_url, own.js) as replica:
        with pytest.raises(MovedOn):
            await replica.decider.carry_out(register(model), cause="c", journey="j")
        await rebuilt(replica, own)
        await replica.decider.carry_out(register(model), cause="c", journey="j")
        await replica.decider.settled()

        assert replica.tally(model).version == 2


@pytest.mark.parametrize("path", ["/log", "/log/digest", "/log/journal", "/log/rows"])
async def test_a_question_to_the_database_stops_nothing_else(path, own, tmp_path):
    last = await fill(own)
    async with toy(f"sqlite:///{tmp_path}/toy.db", own.js) as replica:
        await replica.projection.reached(last)
        asked_in = set()
        event.listen(replica.database.engine, "begin", lambda _: asked_in.add(threading.get_ident()))
        app = FastAPI()
        app.include_router(recovery.routes("toy", replica.log, replica.database, replica.projection, lambda: own.js))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as client:
            assert (await client.get(path)).status_code == 200

    assert asked_in
    assert threading.get_ident() not in asked_in, "the event loop waits for the database"


def test_the_toy_hears_what_the_tests_rest_on():
    assert set(HEARS) == {ModelRegistered, TrainingRequested}


async def test_a_sequence_that_was_not_said_yet_is_no_lost_log(database_url, own):
    last = await fill(own)
    async with toy(database_url, own.js) as replica:
        await replica.projection.reached(last)
        with pytest.raises(Invalid, match=f"the log ends at {last}, there is no {last + 1} yet"):
            await rebuilt(replica, own, until=last + 1, keep=False)

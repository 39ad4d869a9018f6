"""Events become tables: each once, in log order, on both databases, whatever goes wrong in between."""

import json
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg import sql
from sqlmodel import select

from meguri_chassis import projection
from meguri_chassis.projection import Behind, head, recorded
from meguri_chassis.store import JournalEntry, utc
from meguri_contracts.events import MessageParked, MessageRedriven, ModelRegistered, TrainingRequested
from tests.chassis import toy as domain
from tests.chassis.toy import Toy, toy
from tests.conftest import until
from tests.services import Wire, name


async def register(wire: Wire, model: str, *versions: int) -> int:
    """Say versions of a model; returns the sequence of the last."""
    return [await wire.say(ModelRegistered(model=model, version=v, run=f"run-{v}")) for v in versions][-1]


def journal(replica: Toy, model: str) -> list[JournalEntry]:
    with replica.database.read() as session:
        query = select(JournalEntry).where(JournalEntry.key == model).order_by(JournalEntry.sequence)
        return list(session.exec(query))


async def test_two_replicas_on_one_database_apply_each_event_once_in_order(database_url, wire):
    model = name("m")
    await register(wire, model, *range(1, 11))
    async with toy(database_url, wire.js) as one, toy(database_url, wire.js) as other:
        last = await register(wire, model, *range(11, 41))
        await one.projection.reached(last)
        await other.projection.reached(last)
        tally = one.tally(model)

        assert (tally.version, tally.applied, tally.gaps) == (40, 40, 0)
        assert [json.loads(entry.body)["version"] for entry in journal(other, model)] == list(range(1, 41))


async def test_a_replica_goes_on_where_the_database_stands(database_url, wire):
    model = name("m")
    async with toy(database_url, wire.js) as one:
        await one.projection.reached(await register(wire, model, 1, 2))
    last = await register(wire, model, 3)
    async with toy(database_url, wire.js) as other:
        await other.projection.reached(last)
        tally = other.tally(model)

        assert (tally.version, tally.applied, tally.gaps) == (3, 3, 0)


async def test_a_failure_in_the_middle_of_a_batch_undoes_it_whole_and_is_said_until_it_is_gone(database_url, wire):
    model, broken = name("m"), [True]

    def evolve(session, event, message):
        domain.evolve(session, event, message)
        session.flush()
        if broken and event.key == model and event.version == 3:
            raise ArithmeticError("three is too many")

    last = await register(wire, model, 1, 2, 3, 4)
    async with toy(database_url, wire.js, evolve=evolve) as replica:
        trouble = await until(lambda: replica.projection.trouble, "the trouble")
        assert "cannot apply the events from" in trouble
        assert "three is too many" in trouble
        assert journal(replica, model) == []
        assert replica.tally(model).applied == 0
        with pytest.raises(Behind, match=f"{last} is needed: the projection cannot apply.*three is too many"):
            await replica.projection.reached(last, timeout=0.01)

        broken.clear()
        await replica.projection.reached(last)
        assert replica.projection.trouble is None
        assert replica.tally(model).applied == len(journal(replica, model)) == 4


async def test_events_that_change_no_table_are_passed_over(database_url, wire):
    model = name("m")
    for body in (b"rows", b"[]", b'{"version": -1}', b'{"model": "other", "version": 1, "run": "r"}', b"x" * 2_000_000):
        await wire.publish("model-registered", model, body)
    await wire.publish("no-such-kind", model, b"{}")
    await wire.say(TrainingRequested(model=model, reason="not heard here", actor="test"))
    last = await register(wire, model, 1)
    async with toy(database_url, wire.js, hears=(ModelRegistered,)) as replica:
        await replica.projection.reached(last)

        assert (replica.tally(model).version, replica.tally(model).applied) == (1, 1)
        assert [entry.sequence for entry in journal(replica, model) if entry.applied] == [last]
        assert len(journal(replica, model)) == 6, "what is heard and cannot be read is kept all the same"
        assert replica.projection.trouble is None


ODD = {
    "an id with NUL": {"ce-id": "NAME%00b"},
    "a long id": {"ce-id": "NAME" + "".join(f"{i:04x}" for i in range(800))},
    "a time before all times": {"ce-time": "0001-01-01T00:00:00Z"},
    "a time out of range": {"ce-time": "9999-12-31T23:59:59-14:00"},
    "headers in any script": {"ce-source": "%E5%B7%A1%E3%82%8A%ff", "x-note": "巡り"},
}


@pytest.mark.parametrize("headers", ODD.values(), ids=ODD)
async def test_odd_attributes_do_not_stop_a_projection(headers, database_url, wire):
    model = name("m")
    headers = {key: value.replace("NAME", model) for key, value in headers.items()}
    body = b'{"reason": "NUL \\u0000 in the text", "actor": "test"}'
    last = await wire.publish("training-requested", model, body, headers)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)
        (entry,) = journal(replica, model)

        assert replica.tally(model).last.startswith("NUL ")
        assert entry.body == body
        assert json.loads(entry.headers).items() >= headers.items() - {("ce-source", headers.get("ce-source"))}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_zone_of_the_database_does_not_matter(database_url, wire):
    with psycopg.connect(database_url, autocommit=True) as connection:
        zone = sql.SQL("ALTER DATABASE {} SET timezone = 'America/New_York'")
        connection.execute(zone.format(sql.Identifier(connection.info.dbname)))
    model = name("m")
    headers = {"ce-time": "0001-01-01T00:00:00Z"}
    last = await wire.publish("training-requested", model, b'{"reason": "", "actor": ""}', headers)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)

        assert [entry.time for entry in journal(replica, model)] == [datetime.min.replace(tzinfo=UTC)]


async def test_a_subject_of_any_length_does_not_stop_a_projection(database_url, wire):
    key = name("m") + "".join(f"{i:04x}" for i in range(900))
    last = await wire.publish("training-requested", key, b"{}")
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)

        assert [entry.applied for entry in journal(replica, key)] == [False]


async def test_the_journal_keeps_the_time_that_was_stated_whatever_its_zone(database_url, wire):
    model = name("m")
    headers = {"ce-id": model, "ce-time": "2026-11-20T10:30:00+01:00"}
    last = await wire.publish("training-requested", model, b'{"reason": "", "actor": ""}', headers)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)
        with replica.database.read() as session:
            entry = recorded(session, model)

        assert utc(entry.time) == datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


async def test_the_head_of_a_key_is_its_last_event_of_any_kind(database_url, wire):
    model = name("m")
    await register(wire, model, 1)
    last = await wire.publish("drift-detected", model, b"{}")
    after = await register(wire, name("other"), 1)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(after)
        with replica.database.read() as session:
            assert head(session, model) == last
            assert head(session, name("unheard-of")) == 0


async def test_waiting_for_what_was_not_said_yet_ends_with_words(database_url, wire):
    last = await register(wire, name("m"), 1)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)
        with pytest.raises(
            Behind, match=rf"the tables stand at \d+, {10**9} is needed: the log is being caught up with"
        ):
            await replica.projection.reached(10**9, timeout=0.01)


async def test_an_event_that_is_in_the_log_twice_has_its_effect_once(database_url, wire):
    model = name("m")
    event, body = ModelRegistered(model=model, version=1, run="r"), b'{"version": 1, "run": "r"}'
    headers = {"ce-id": f"{model}-1"}
    await wire.publish(event.kind(), model, body, headers)
    last = await wire.publish(event.kind(), model, body, headers)
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(last)

        assert (replica.tally(model).version, replica.tally(model).applied) == (1, 1)
        assert [entry.applied for entry in journal(replica, model)] == [True, False]


async def test_a_parked_message_is_known_until_it_is_sent_back(database_url, wire):
    consumer = name("toy")
    where = {"consumer": consumer, "stream": "MEGURI", "sequence": 7, "event": "e"}
    parked = MessageParked(**where, subject="s", producer="p", deliveries=1, reason="why")
    async with toy(database_url, wire.js) as replica:
        await replica.projection.reached(await wire.say(parked))
        with replica.database.read() as session:
            assert [row.reason for row in projection.parked(session, consumer.rpartition("-")[0])] == ["why"]

        await replica.projection.reached(await wire.say(MessageRedriven(**where, edited=False, actor="me")))
        with replica.database.read() as session:
            assert not projection.parked(session, consumer.rpartition("-")[0])


async def test_the_journal_leaves_out_what_was_meant_for_the_broker_and_what_a_restore_adds(database_url, wire):
    model = name("m")
    body = b'{"reason": "r", "actor": "a"}'
    stored = "2020-01-01T00:00:00+00:00"
    headers = {"Nats-Expected-Last-Subject-Sequence": "0", "meguri-stored": stored, "kept": "yes"}
    async with toy(database_url, wire.js) as one:
        await one.projection.reached(await wire.publish("training-requested", model, body, headers))
        [entry] = journal(one, model)

    assert json.loads(entry.headers) == {"kept": "yes"}
    assert utc(entry.time).isoformat() == stored

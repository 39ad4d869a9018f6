"""A log that was lost is put back, message by message, out of what the services have journaled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.js.errors import NoStreamResponseError
from sqlalchemy import delete, update

from meguri import restoring
from meguri.journals import Gaps, JournalsDiffer
from meguri.provisioning import BrokerAway, provision
from meguri.restoring import Restored
from meguri_chassis.store import JournalEntry
from meguri_contracts.events import DataArrived, TrainingRequested
from meguri_contracts.topology import CONSUMERS, LOG, PREDICTIONS, STREAMS, subject
from meguri_monitoring.store import position
from tests.client.system import System, system
from tests.conftest import Broker, until
from tests.services import name

LARGE = b"x" * (3 * 1024 * 1024)


@pytest.fixture
async def running_system(broker: Broker, tmp_path: Path, monkeypatch) -> AsyncIterator[System]:
    async with system(broker, tmp_path / "var", monkeypatch) as running:
        yield running


async def restore(**how) -> Restored:
    """As the command line does, beside the services: its HTTP side would stop the loop that they run in."""
    return await asyncio.to_thread(asyncio.run, restoring.restore_log(say=lambda _: None, **how))


async def lose(system: System) -> None:
    """The disk of the broker's log is gone."""
    await system.wire.js.delete_stream(LOG)


async def fill_with_odd_messages(system: System) -> str:
    """Say what services say, and what only a stranger would publish; return the dataset."""
    dataset, js = name("d"), system.wire.js
    await system.apply(dataset)
    assert (await system.arrive(dataset, f"{dataset}-1", 1, 2, 3))["status"] == "committed"
    raw = js._nc
    for kind, headers, body in [
        ("data-arrived.no-json", None, b"\x00\xff no JSON"),
        ("data-arrived", {"Nats-Msg-Id": "short"}, b"{}"),
        ("no-such-kind", None, b""),
        ("no-such-kind.status", {"Status-Line": "sunny", "meguri-stored-by": "a stranger"}, b""),
        ("no-such-kind.a.b.c", {"odd": "gr\u00fc\u00dfe", "ce-time": "no time", "ce-id": "%00"}, b"[]"),
        (f"data-arrived.{'long' * 200}", {"ce-source": "\u5de1\u308a"}, b"{}"),
        ("drift-detected.large", None, LARGE),
        ("training-requested.m", {"ce-time": "2020-01-01T00:00:00Z"}, b'{"reason": "r", "actor": "a"}'),
    ]:
        await js.publish(f"meguri.events.{kind}", body, headers=headers, stream=LOG)
    # Not what the client would send: a header that readers take for the broker's word, a line end inside of one, a NUL.
    block = b"NATS/1.0\r\nStatus: 503\r\nnul: a\x00b\r\nline: a\nb\r\n\r\n"
    head = f"HPUB meguri.events.data-arrived.{dataset} {len(block)} {len(block) + 2}\r\n".encode()
    await raw._send_command(head + block + b"{}\r\n")
    await raw.flush()
    await system.quiet()
    return dataset


async def everything(system: System) -> list[tuple[int, str, dict[str, str], bytes]]:
    """The log as it stands, without what a restored message has less or more."""
    stored = await system.wire.stored(LOG, ">")
    return [(m.seq, m.subject, _lasting(m.headers or {}), m.data or b"") for m in stored]


def _lasting(headers: dict[str, str]) -> dict[str, str]:
    passing = ("meguri-stored", "Status")
    return {
        name: value for name, value in headers.items() if name not in passing and not name.startswith("Nats-Expected-")
    }


async def back_in_step(system: System) -> None:
    """Return when every projection has noticed that the log is back."""
    for service in system.services.values():
        projection = service.projection
        assert projection is not None
        await until(lambda projection=projection: projection.lost is None, "the return of the log")


async def test_a_lost_log_comes_back_with_every_message_at_its_place_and_everything_goes_on(
    running_system, monkeypatch
):
    monkeypatch.setenv("MEGURI_FITS_IN_FLIGHT", "3")
    dataset = await fill_with_odd_messages(running_system)
    before, digests = await everything(running_system), await running_system.digests()
    await lose(running_system)

    restored = await restore()

    assert restored == Restored(whole=False, messages=len(before))
    assert (await everything(running_system))[: len(before)] == before
    await back_in_step(running_system)
    config = (await running_system.wire.js.stream_info(LOG)).config
    assert config.subjects == ["meguri.events.>"]
    assert config.deny_delete
    assert config.duplicate_window == STREAMS[0].duplicate_window
    consumers = await running_system.wire.js.consumers_info(LOG)
    assert {consumer.name for consumer in consumers if not consumer.paused} >= {one.name for one in CONSUMERS[:5]}
    assert (await running_system.wire.js.consumer_info(LOG, "training-fits")).config.max_ack_pending == 3
    assert (await running_system.arrive(dataset, f"{dataset}-2", 4))["status"] == "committed"
    versions = (await running_system.http["ingest"].get(f"/datasets/{dataset}/versions")).json()
    assert [version["rows"] for version in versions] in ([3, 1], [1, 3]), "what was committed is not committed again"
    for service, digest in digests.items():
        again = await running_system.http[service].post(f"/log/replay?until={len(before)}&keep=false")
        assert f'"after": "{digest}"' in again.text, (
            f"{service}'s tables follow from the restored log as from the old one"
        )


async def test_a_log_that_is_whole_is_left_alone(running_system):
    await fill_with_odd_messages(running_system)
    created = (await running_system.wire.js.stream_info(LOG)).created

    assert (await restore()).whole
    assert (await running_system.wire.js.stream_info(LOG)).created == created


async def test_one_id_twice_is_restored_twice(running_system):
    js = running_system.wire.js
    config = (await js.stream_info(LOG)).config
    config.duplicate_window = 0.1
    await js.update_stream(config)
    for count in range(1, 4):

        async def again(count: int = count) -> bool:
            body = b'{"reason": "r", "actor": "a"}'
            ack = await js.publish(subject("training-requested", "m"), body, headers={"Nats-Msg-Id": "same"})
            return ack.seq == count

        await until(again, "the end of the duplicate window")
    await running_system.quiet()
    before = await everything(running_system)
    await lose(running_system)

    await restore()

    assert (await everything(running_system))[:3] == before
    assert [sequence for sequence, *_ in before] == [1, 2, 3]


async def test_a_message_that_no_journal_has_is_named_and_nothing_is_touched_unless_the_loss_is_taken(running_system):
    await fill_with_odd_messages(running_system)
    before = await everything(running_system)
    for service in running_system.services.values():
        assert service.database is not None
        with service.database.write() as session:
            session.connection().execute(delete(JournalEntry).where(JournalEntry.sequence.in_([2, 3, 5])))
    await lose(running_system)

    with pytest.raises(Gaps, match=r"no journal has 3 messages of the log: 2-3, 5; nothing was changed"):
        await restore()
    assert LOG not in [stream.config.name for stream in await running_system.wire.js.streams_info()]

    assert (await restore(accept_gaps=True)).lost == 3
    after = await everything(running_system)
    assert [after[n][1] for n in (1, 2, 4)] == [f"meguri.events.lost.{n}" for n in (2, 3, 5)]
    kept = [message for message in before if message[0] not in (2, 3, 5)]
    assert [message for message in after if message[0] not in (2, 3, 5)][: len(kept)] == kept
    await back_in_step(running_system)


async def test_journals_that_differ_are_refused_and_nothing_is_touched(running_system):
    await fill_with_odd_messages(running_system)
    database = running_system.services["registry"].database
    assert database is not None
    with database.write() as session:
        session.connection().execute(update(JournalEntry).where(JournalEntry.sequence == 1).values(body=b"other"))
    await lose(running_system)

    with pytest.raises(JournalsDiffer, match="remember different messages at 1"):
        await restore()


async def test_what_was_published_into_an_empty_new_log_follows_the_restored_messages(running_system, broker):
    dataset = await fill_with_odd_messages(running_system)
    before = await everything(running_system)
    await lose(running_system)
    await provision(broker.url)
    arrival = DataArrived.model_validate({"dataset": dataset, "records": [{"x": 9.0, "label": 1}]})
    assert await running_system.wire.say(arrival, id=f"{dataset}-late") == 1
    await running_system.wire.say(TrainingRequested(model="nobody", reason="late", actor="test"))

    restored = await restore()

    # A service may have answered the arrival before it noticed the loss.
    assert restored.appended >= 2
    after = await everything(running_system)
    assert after[: len(before)] == before
    assert [entry[1] for entry in after[len(before) :]][:2] == [
        subject("data-arrived", dataset),
        subject("training-requested", "nobody"),
    ]
    await back_in_step(running_system)
    assert (await running_system.receipt(f"{dataset}-late"))["status"] == "committed"


async def test_a_message_as_large_as_the_broker_takes_comes_back(running_system):
    js = running_system.wire.js
    await js.publish("meguri.events.no-such-kind", b"x" * js._nc.max_payload)
    await js.publish("meguri.events.no-such-kind", b"small")
    await running_system.quiet()
    before = await everything(running_system)
    await lose(running_system)

    await restore()

    assert await everything(running_system) == before


async def test_a_restore_that_broke_off_is_done_again_and_still_has_what_came_after_the_loss(
    running_system, broker, monkeypatch
):
    await fill_with_odd_messages(running_system)
    before = await everything(running_system)
    await lose(running_system)
    await provision(broker.url)
    late = await running_system.wire.say(TrainingRequested(model="nobody", reason="late", actor="test"), id="late")
    assert late == 1

    async def breaks_off(*_: object, **more: object) -> None:
        raise BrokerAway("in the middle")

    with monkeypatch.context() as broken:
        broken.setattr(restoring, "provision", breaks_off)
        with pytest.raises(BrokerAway):
            await restore()
    # As every start of the containers does.
    done = await provision(broker.url)
    assert "being restored" in [one.done for one in done if one.name == LOG]
    with pytest.raises(NoStreamResponseError):
        await running_system.wire.publish("training-requested", "m", b"{}")
    await restore()

    after = await everything(running_system)
    assert after[: len(before)] == before
    assert "late" in [headers.get("ce-id") for _, _, headers, _ in after[len(before) :]]
    await back_in_step(running_system)


async def test_predictions_that_come_after_a_broker_was_lost_whole_are_looked_at(running_system, broker):
    js = running_system.wire.js
    monitoring = running_system.services["monitoring"]

    def counted() -> int:
        with monitoring.database.read() as session:
            return position(session)

    await fill_with_odd_messages(running_system)
    for number in range(4):
        await js.publish("meguri.predictions.nobody", b"no Arrow %d" % number, stream=PREDICTIONS)
    await until(lambda: counted() == 4, "four predictions counted")
    await lose(running_system)
    await js.delete_stream(PREDICTIONS)
    await provision(broker.url)
    await js.publish("meguri.predictions.nobody", b"between", stream=PREDICTIONS)

    await restore()

    ack = await js.publish("meguri.predictions.nobody", b"after", stream=PREDICTIONS)
    assert ack.seq > 4
    assert [message.data for message in await running_system.wire.stored(PREDICTIONS, ">")] == [b"between", b"after"]
    await until(lambda: counted() == ack.seq, "those after the loss counted")

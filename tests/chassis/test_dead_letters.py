"""What cannot be handled is kept once, with the reason, and said once; whoever gave it up, and whatever it looks like."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from nats.js.api import AckPolicy, ConsumerConfig

from meguri_chassis.dead_letters import BODY_BYTES, HEADER_BYTES, DeadLetters, Undeliverable
from meguri_chassis.log import EventLog
from meguri_contracts.errors import Malformed
from meguri_contracts.events import MessageParked, MessageRedriven, TrainingRequested
from meguri_contracts.topology import (
    ADVISORIES,
    ADVISORY_PREFIX,
    DEAD,
    DEAD_PREFIX,
    LOG,
    MONITORING_ADVISORIES,
    PREDICTIONS,
    TRAINING_TRIGGERS,
)
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.chassis.toy import going_on
from tests.conftest import PATIENCE, Broker, until
from tests.services import Wire, running, wire

NAME = TRAINING_TRIGGERS.name
REQUEST = TrainingRequested(model="m", reason="why", actor="test")


@pytest.fixture
async def own(broker: Broker) -> AsyncIterator[Wire]:
    async with wire(broker) as own:
        yield own


@pytest.fixture
def letters(own: Wire) -> DeadLetters:
    return DeadLetters(lambda: own.js, EventLog(lambda: own.js, "meguri/toy"))


async def found(own: Wire, sequence: int, stream: str = LOG) -> Undeliverable:
    msg = await own.js.get_msg(stream, sequence)
    return Undeliverable(stream, sequence, msg.subject or "", msg.headers or {}, msg.data or b"", 1)


async def sequences(own: Wire, consumer: str = NAME) -> tuple[list[int], list[int]]:
    """Of the messages that have a letter, and of those whose parking was said."""
    written = [int(letter["meguri-sequence"]) for letter in await own.parked(consumer)]
    return sorted(written), sorted(event.sequence for event in await own.said(MessageParked, consumer))


# --- parking ----------------------------------------------------------------------------------------------------------


async def forget_ids(own: Wire) -> None:
    """Have the broker forget which message ids it has seen, as it does after a while."""
    for stream, probe in ((LOG, "meguri.events.probe.m"), (DEAD, f"{DEAD_PREFIX}.probe")):
        config = (await own.js.stream_info(stream)).config
        config.duplicate_window = 0.1
        await own.js.update_stream(config)

        async def is_new(stream: str = stream, probe: str = probe) -> bool:
            return not (await own.js.publish(probe, b"", stream=stream, headers={"Nats-Msg-Id": "probe"})).duplicate

        await is_new()
        await until(is_new, "forgetting")


async def test_what_is_parked_twice_has_one_letter_and_is_said_once(own, letters):
    lost = await found(own, await own.say(REQUEST))
    await letters.park(NAME, lost, Malformed("odd"))
    await letters.park(NAME, lost, Malformed("odd"))
    assert await sequences(own) == ([lost.sequence], [lost.sequence])

    await forget_ids(own)
    await letters.park(NAME, lost, Malformed("odd, again"))
    assert await sequences(own) == ([lost.sequence], [lost.sequence])
    (letter,) = await own.parked(NAME)
    assert unquote(letter["meguri-reason"]) == "Malformed: odd"


async def test_a_letter_that_was_written_and_not_said_is_said_when_the_message_comes_again(own, letters, monkeypatch):
    lost, other = await found(own, await own.say(REQUEST)), await found(own, await own.say(REQUEST))

    async def die(*_: Any, **__: Any) -> int:
        raise ConnectionError("dead")

    with monkeypatch.context() as dying:
        dying.setattr(letters._log, "append", die)
        with pytest.raises(ConnectionError):
            await letters.park(NAME, lost, "odd")
    await letters.park(NAME, other, "odd")
    await forget_ids(own)
    await letters.park(NAME, lost, "odd")

    assert await sequences(own) == ([lost.sequence, other.sequence], [lost.sequence, other.sequence])


async def test_what_two_replicas_park_at_once_has_one_letter_and_is_said_once(own, letters):
    lost = await found(own, await own.say(REQUEST))
    others = DeadLetters(lambda: own.js, EventLog(lambda: own.js, "meguri/other"))
    await asyncio.gather(*(one.park(NAME, lost, "odd") for one in (letters, others, letters, others)))

    assert await sequences(own) == ([lost.sequence], [lost.sequence])


async def test_a_message_of_another_stream_is_known_by_its_place(own, letters):
    ack = await own.js.publish("meguri.predictions.m", b"no Arrow", stream=PREDICTIONS)
    await letters.park("monitoring-predictions", await found(own, ack.seq, PREDICTIONS), Malformed("no Arrow"))

    (said,) = await own.said(MessageParked, "monitoring-predictions")
    (letter,) = await own.stored(DEAD, f"{DEAD_PREFIX}.monitoring-predictions.PREDICTIONS.{ack.seq}")
    assert (said.stream, said.sequence, said.event) == (PREDICTIONS, ack.seq, f"predictions-{ack.seq}")
    assert (said.subject, said.producer, letter.data) == ("meguri.predictions.m", "unknown", b"no Arrow")


async def test_a_letter_is_cut_to_what_the_broker_takes_and_says_so(own, letters):
    body = b"x" * (BODY_BYTES + 1)
    many = {f"header-{n}": "é" * HEADER_BYTES for n in range(300)} | {f"short-{n}": "v" for n in range(300)}
    await letters.park(NAME, Undeliverable(LOG, 1, "meguri.events.training-requested.m", many, body, 3), "large")

    (letter,) = await own.stored(DEAD, f"{DEAD_PREFIX}.{NAME}.>")
    assert letter.data == body[:BODY_BYTES]
    assert letter.headers["meguri-cut"] == f"the first {BODY_BYTES} of {BODY_BYTES + 1} bytes"
    assert len([name for name in letter.headers if name.startswith("short-")]) == 100


async def test_odd_headers_keep_nothing_from_being_parked(own, broker, letters):
    headers = (
        b"NATS/1.0\r\nX(Y): 1\r\n[]: 2\r\ne\xc3\xa9: 3\r\nbytes: \xff\xfe\r\nce-id: a%00b%F0%9F\r\nce-source: \xff\r\n"
        b"good: yes\r\n\r\n"
    )
    subject, body = b"meguri.events.training-requested.m", b"rows"
    _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    frame = b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(body), headers, body)
    writer.write(b'CONNECT {"headers":true,"verbose":false}\r\n' + frame)
    await writer.drain()
    await until(lambda: own.stored(LOG, subject.decode()))
    writer.close()
    consumer = await own.js.pull_subscribe_bind(NAME, stream=LOG)
    [msg] = await consumer.fetch(1, timeout=PATIENCE)
    await letters.park(NAME, Undeliverable.of(msg), Malformed("odd \ud800 \x00"))

    (letter,) = await own.parked(NAME)
    (said,) = await own.said(MessageParked, NAME)
    assert (letter["good"], "X(Y)" in letter) == ("yes", False)
    assert (said.reason, said.sequence) == ("Malformed: odd ? ?", msg.metadata.sequence.stream)


# --- what the broker gives up on --------------------------------------------------------------------------------------


async def deliver_once(own: Wire, ack_wait: float = 0.2) -> None:
    """Have the broker give up on what is not answered at once."""
    config = (await own.js.consumer_info(LOG, NAME)).config
    config.max_deliver, config.ack_wait, config.backoff = 1, ack_wait, None
    await own.js.add_consumer(LOG, config)


async def lapse(own: Wire) -> int:
    """Take a message and never answer; returns its sequence."""
    sequence = await own.say(REQUEST)
    consumer = await own.js.pull_subscribe_bind(NAME, stream=LOG)
    [msg] = await consumer.fetch(1, timeout=PATIENCE)
    assert msg.metadata.sequence.stream == sequence
    await consumer.unsubscribe()
    return sequence


async def all_followed(own: Wire) -> bool:
    info = await own.js.consumer_info(ADVISORIES, MONITORING_ADVISORIES.name)
    return info.num_pending == info.num_ack_pending == 0


async def test_what_the_broker_delivers_no_more_is_parked_once_however_many_follow(own, letters):
    await deliver_once(own)
    other = DeadLetters(lambda: own.js, EventLog(lambda: own.js, "meguri/other"))
    async with going_on(letters.follow_advisories), going_on(other.follow_advisories):
        lapsed = await lapse(own)
        await until(lambda: own.parked(NAME), "the dead letter")
        again = await lapse(own)
        await until(lambda: is_said(own, [lapsed, again]), "both")

    (said, _) = await own.said(MessageParked, NAME)
    assert (said.reason, said.deliveries) == ("the broker gave up: delivered too often", 1)


async def is_said(own: Wire, expected: list[int]) -> bool:
    return await sequences(own) == (expected, expected)


async def test_what_a_consumer_terminates_is_parked_with_its_reason(own, letters):
    sequence = await own.say(REQUEST, source="werk 4")
    consumer = await own.js.pull_subscribe_bind(NAME, stream=LOG)
    [msg] = await consumer.fetch(1, timeout=PATIENCE)
    # The client's own `term` gives no reason.
    await own.js._nc.publish(msg.reply, b"+TERM it is the wrong kind")
    async with going_on(letters.follow_advisories):
        await until(lambda: is_said(own, [sequence]), "the dead letter")

    (said,) = await own.said(MessageParked, NAME)
    assert said.reason == "the broker gave up: it is the wrong kind"
    assert said.producer == "werk 4"


async def test_what_is_given_up_may_have_headers_in_any_script(own, letters):
    body = REQUEST.model_dump_json().encode()
    sequence = await own.publish(
        "training-requested", "m", body, {"x-note": "巡り", "ce-source": "Größe", "kept": "yes"}
    )
    given_up = {"stream": LOG, "consumer": NAME, "stream_seq": sequence, "deliveries": 1}
    await own.js.publish(f"{ADVISORY_PREFIX}.MAX_DELIVERIES.{LOG}.{NAME}", json.dumps(given_up).encode())
    async with going_on(letters.follow_advisories) as following:
        await until(lambda: following.done() or is_said(own, [sequence]), "the dead letter")

    (letter,) = await own.stored(DEAD, f"{DEAD_PREFIX}.{NAME}.>")
    (said,) = await own.said(MessageParked, NAME)
    assert letter.headers["kept"] == "yes"
    assert said.producer == "Größe"


async def test_what_was_given_up_while_nobody_followed_is_parked_after_a_restart_of_the_broker(own, broker, letters):
    await deliver_once(own)
    async with going_on(letters.follow_advisories):
        first = await lapse(own)
        await until(lambda: is_said(own, [first]), "the dead letter")
        broker.kill()
        broker.start()
        async with wire(broker) as after:
            second = await lapse(after)
            await until(lambda: is_said(after, [first, second]), "the dead letter after the restart")

    async with wire(broker) as before:
        third = await lapse(before)
        await until(lambda: own_advisories(before, 3), "an advisory that nobody reads")
    broker.kill()
    broker.start()
    async with wire(broker) as after:
        later = DeadLetters(lambda: after.js, EventLog(lambda: after.js, "meguri/toy"))
        async with going_on(later.follow_advisories):
            await until(lambda: is_said(after, [first, second, third]), "the dead letter of before the restart")


async def own_advisories(own: Wire, count: int) -> bool:
    return (await own.js.stream_info(ADVISORIES)).state.messages >= count


async def test_advisories_that_lead_nowhere_are_passed_over_and_the_next_is_read(own, letters):
    config = ConsumerConfig(durable_name="foreign", ack_policy=AckPolicy.EXPLICIT)
    await own.js.add_consumer(LOG, config)
    for said in odd_advisories():
        await own.js.publish(f"{ADVISORY_PREFIX}.MAX_DELIVERIES.{LOG}.odd", said, stream=ADVISORIES)
    consumer = await own.js.pull_subscribe_bind(NAME, stream=LOG)
    sequence = await own.say(REQUEST)
    [msg] = await consumer.fetch(1, timeout=PATIENCE)
    await msg.term()
    async with going_on(letters.follow_advisories):
        await until(lambda: is_said(own, [sequence]), "the dead letter")
        await until(lambda: all_followed(own), "the end")


def odd_advisories() -> list[bytes]:
    # Of a message that is not kept any more: the log has none so late.
    ours = {"stream": LOG, "consumer": NAME, "stream_seq": 10**6, "deliveries": 1}
    odd = [
        ours,
        ours | {"consumer": "foreign"},
        ours | {"stream": "ELSEWHERE"},
        ours | {"stream_seq": 0},
        ours | {"stream_seq": -1},
        ours | {"stream_seq": 1 << 70},
        ours | {"stream_seq": "many"},
        ours | {"deliveries": None},
        {},
        [],
        7,
    ]
    return [b"no JSON", b"\xff", b"", *(json.dumps(one).encode() for one in odd)]


# --- what operators see -----------------------------------------------------------------------------------------------


async def test_what_is_parked_is_a_warning_beside_readiness_and_a_metric_until_it_is_sent_back(
    own, broker, tmp_path: Path, database_url
):
    settings = Settings(nats_url=broker.url, database_url=database_url, var=tmp_path)
    parked = MessageParked(
        consumer="registry-judge",
        stream=LOG,
        sequence=1,
        subject="s",
        event="e",
        producer="p",
        deliveries=1,
        reason="r",
    )
    back = MessageRedriven(consumer="registry-judge", stream=LOG, sequence=1, event="e", edited=False, actor="test")
    elsewhere = parked.model_copy(update={"consumer": "ingest-arrivals"})
    async with running(build(settings)) as http:

        async def seen(after: int) -> tuple[list[str], str]:
            await http.get("/log", headers={"Meguri-After": str(after)})
            ready = (await http.get("/health/ready")).json()
            assert (ready["ready"], ready["reasons"]) == (True, [])
            (gauge,) = [
                line
                for line in (await http.get("/metrics")).text.splitlines()
                if line.startswith("meguri_dead_letters ")
            ]
            return ready["warnings"], gauge

        assert await seen(await own.say(elsewhere)) == ([], "meguri_dead_letters 0.0")
        (warning,), gauge = await seen(await own.say(parked))
        assert warning.startswith("1 parked since ")
        assert warning.endswith("see `meguri dead`")
        assert gauge == "meguri_dead_letters 1.0"
        assert await seen(await own.say(back)) == ([], "meguri_dead_letters 0.0")

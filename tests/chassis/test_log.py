"""Appending to the log, and reading whatever stands in it."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meguri_chassis import log
from meguri_chassis.log import EventLog, LogUnavailable, Message, MovedOn
from meguri_contracts.errors import Malformed, PermanentError, TooLarge
from meguri_contracts.events import DataArrived, TrainingRequested
from meguri_contracts.names import MAX_ID_LENGTH
from meguri_contracts.topology import LOG, MAX_INLINE_BYTES
from tests.chassis.toy import going_on
from tests.conftest import until
from tests.services import name, wire

NOW = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


@pytest.fixture
def events(js):
    return EventLog(lambda: js, "meguri/test")


def request(model: str, reason: str = "") -> TrainingRequested:
    return TrainingRequested(model=model, reason=reason, actor="test")


def said(body: bytes, *, kind: str = "data-arrived", key: str = "d", **headers: str) -> Message:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message.of(f"meguri.events.{kind}.{key}", headers, body, sequence=7, time=NOW)


# --- appending


async def test_an_appended_event_stands_in_the_log_where_the_answer_says(events, js):
    model = name("m")
    sequence = await events.append(request(model, "why"), id="1-" + model, cause="c", journey="j")
    stored = await js.get_msg(LOG, sequence)
    message = Message.of(stored.subject, stored.headers, stored.data, stored.seq, stored.time)

    assert message.event == request(model, "why")
    assert (message.id, message.source, message.journey) == ("1-" + model, "meguri/test", "j")
    assert stored.headers["ce-causeid"] == "c"
    assert await events.last_sequence() >= sequence


async def test_an_id_that_is_appended_twice_stands_once(events, wire):
    model = name("m")
    first = await events.append(request(model), id=model, cause="c", journey="j")
    again = await events.append(request(model), id=model, cause="c", journey="j")

    assert again == first
    assert len(await wire.heard(TrainingRequested, model)) == 1


async def test_an_append_that_expects_another_last_sequence_of_its_key_has_no_effect(events, wire):
    model = name("m")
    head = await events.append(request(model), id=f"{model}-1", cause="c", journey="j", expected=0)
    with pytest.raises(MovedOn):
        await events.append(request(model), id=f"{model}-2", cause="c", journey="j", expected=0)
    await events.append(request(name("other")), id=f"{model}-3", cause="c", journey="j", expected=0)
    await events.append(request(model), id=f"{model}-4", cause="c", journey="j", expected=head)

    assert [message.id for message in await wire.heard(TrainingRequested, model)] == [f"{model}-1", f"{model}-4"]


async def test_the_head_that_is_expected_is_that_of_all_kinds_of_events_of_a_key(events):
    key = name("k")
    await events.append(DataArrived(dataset=key), id=f"{key}-1", cause="c", journey="j")

    with pytest.raises(MovedOn):
        await events.append(request(key), id=f"{key}-2", cause="c", journey="j", expected=0)


async def test_a_retry_of_an_append_that_did_arrive_is_no_conflict_with_itself(events):
    model = name("m")
    first = await events.append(request(model), id=model, cause="c", journey="j", expected=0)

    assert await events.append(request(model), id=model, cause="c", journey="j", expected=0) == first


async def test_an_append_while_the_broker_is_away_succeeds_once_when_it_is_back(broker):
    client = await nats.connect(broker.url, reconnect_time_wait=0.05)
    events = EventLog(client.jetstream, "meguri/test")
    broker.kill()
    await until(lambda: client.is_reconnecting)
    async with going_on(lambda: events.append(request("m"), id="1", cause="c", journey="j")) as appending:
        await asyncio.to_thread(broker.start)
        await until(appending.done, "the append")
        assert appending.result() == 1
    await client.close()

    async with wire(broker) as other:
        assert len(await other.heard(TrainingRequested, "m")) == 1


async def test_an_append_whose_answer_is_late_is_tried_again_and_stands_once(broker, monkeypatch, caplog):
    monkeypatch.setattr(log, "APPEND_TIMEOUT", 0.1)
    async with wire(broker) as other:
        events = EventLog(lambda: other.js, "meguri/test")
        os.kill(broker.process.pid, signal.SIGSTOP)
        try:
            async with going_on(
                lambda: events.append(request("m"), id="1", cause="c", journey="j", expected=0)
            ) as appending:
                await until(lambda: caplog.text.count("trying again") >= 2, "the third try")
                os.kill(broker.process.pid, signal.SIGCONT)
                await until(appending.done, "the append")
                assert appending.result() == 1
        finally:
            os.kill(broker.process.pid, signal.SIGCONT)

        assert len(await other.heard(TrainingRequested, "m")) == 1


async def test_an_append_is_given_up_in_the_end_with_words(broker, monkeypatch):
    monkeypatch.setattr(log, "APPEND_TIMEOUT", 0.05)
    monkeypatch.setattr(log, "APPEND_PATIENCE", 0.2)
    async with wire(broker) as other:
        broker.kill()
        with pytest.raises(LogUnavailable, match=f"no append to {LOG}"):
            await EventLog(lambda: other.js, "meguri/test").append(request("m"), id="1", cause="c", journey="j")
        broker.start()
        await until(lambda: other.js._nc.is_connected)


async def test_an_event_that_no_reader_would_take_is_not_appended(events, wire):
    model = name("m")
    with pytest.raises(TooLarge, match="at most 1,048,576 are allowed"):
        await events.append(request(model, "x" * MAX_INLINE_BYTES), id=model, cause="c", journey="j")

    assert await wire.heard(TrainingRequested, model) == []


# --- reading


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"rows", "not JSON"),
        (b'{"records": [', "not JSON"),
        (b'{"producer": "\xff"}', "not JSON.*utf-8"),
        (b"[" * 100_000, "not JSON"),
        (b"1" * 5_000, "not JSON"),
        (b"[]", "JSON list, an object is expected"),
        (b"3", "JSON int, an object is expected"),
        (b"null", "JSON NoneType, an object is expected"),
        (b'{"dataset": "other"}', "dataset is 'other' in the body but 'd' in the subject"),
        (b'{"dataset": null}', "dataset is None in the body"),
        (b'{"records": 3, "format": "xml"}', "records: .*; format: "),
        (b'{"records": [[1]]}', r"records\.0: "),
        (b'{"specversion": "1.0", "id": "1"}', "no object in 'data'"),
        (
            b'{"specversion": "1.0", "type": "meguri.data-arrived.v2", "data": {}}',
            "'meguri.data-arrived.v2' is not known",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_body_that_is_no_event_is_malformed_and_says_why(body, reason):
    with pytest.raises(Malformed, match=reason):
        _ = said(body).event


@pytest.mark.parametrize("stated", ["meguri.data-arrived.v2", "meguri.model-trained.v1", "com.example.other"])
def test_a_type_that_is_not_that_of_the_subject_is_malformed(stated):
    with pytest.raises(Malformed, match=f"{stated}.* expected 'meguri.data-arrived.v1'"):
        _ = said(b"{}", ce_type=stated).event


@pytest.mark.parametrize(
    ("kind", "key", "reason"),
    [
        ("data-arived", "d", "'data-arived' is no kind of event; known are .*data-arrived"),
        ("data-arrived", "Werk 4", "'Werk 4', which is no name"),
        ("data-arrived", "a.b", "'a.b', which is no name"),
        ("data-arrived", "", "'', which is no name"),
        ("data-arrived", "x" * 64, "which is no name"),
    ],
)
def test_a_subject_that_names_nothing_is_malformed(kind, key, reason):
    with pytest.raises(Malformed, match=reason):
        _ = said(b"{}", kind=kind, key=key).event


def test_two_megabytes_are_too_large_and_the_words_say_what_to_do():
    message = said(json.dumps({"records": [{"text": "x" * 2_000_000}]}).encode())

    with pytest.raises(TooLarge, match=r"2,000,\d+ bytes, at most 1,048,576 are allowed: put the rows into a file"):
        _ = message.event


def test_attributes_are_read_in_any_case_and_decoded():
    message = said(b"{}", **{"CE-Id": "a%20b", "Ce-Source": "werk/4", "ce-time": "2026-11-20T10:30:00+01:00"})

    assert (message.id, message.source, message.time) == ("a b", "werk/4", NOW)
    assert message.has_own_id


@pytest.mark.parametrize("stated", ["", "yesterday", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_is_none_is_the_streams(stated):
    assert said(b"{}", **{"ce-time": stated}).time == NOW


@pytest.mark.parametrize("id_", ["x" * 300, "é" * 200 + "x" * 100, "%00" * 300])
def test_an_id_that_is_too_long_is_replaced_by_one_that_follows_from_it(id_):
    one, again = said(b"{}", **{"ce-id": id_}), said(b"{}", **{"ce-id": id_})

    assert one.id == again.id != said(b"{}", **{"ce-id": id_ + "y"}).id
    assert len(one.id) <= MAX_ID_LENGTH


def test_the_id_of_the_transport_serves_when_there_is_no_other():
    assert said(b"{}", **{"Nats-Msg-Id": "42"}).id == "42"
    assert said(b"{}", **{"Nats-Msg-Id": "42", "ce-id": "43"}).id == "43"


texts = st.text() | st.sampled_from(
    ["%00", "%ff", "\ud800", "\x00", "1.0", "2026-11-20T09:30:00Z", "meguri.data-arrived.v1"]
)
names = st.text(max_size=8) | st.sampled_from(
    [
        "ce-id",
        "ce-source",
        "CE-Type",
        "ce-time",
        "ce-journeyid",
        "ce-specversion",
        "Nats-Msg-Id",
        "traceparent",
        "Status",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["specversion", "data", "id", "source", "time", "type", "dataset", "records", "uri", "producer"]
)
bodies = st.binary(max_size=200) | st.dictionaries(fields | texts, values, max_size=6).map(
    lambda d: json.dumps(d).encode()
)
subjects = (
    st.sampled_from(["meguri.events.data-arrived.d", "meguri.events.drift-detected.m", "meguri.events.x", ""]) | texts
)


@given(subjects, st.dictionaries(names, texts), bodies)
def test_whatever_stands_in_the_log_is_read_and_is_an_event_or_permanently_none(subject, headers, body):
    message = Message.of(subject, headers, body, sequence=7, time=NOW)

    assert 0 < len(message.id) <= MAX_ID_LENGTH
    assert message.age() > float("-inf")
    for text in (message.id, message.source, message.journey):
        assert "\x00" not in text
        text.encode()
    with suppress(PermanentError):
        message.event.model_dump_json()

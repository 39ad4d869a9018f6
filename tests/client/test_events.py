"""The log is read: filtered, as far as the present, or followed."""

import asyncio
import json
import socket
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import pytest

from meguri import following
from meguri.client import MeguriClientError, broker
from meguri.times import ago, moment
from meguri_contracts.events import ModelRegistered, TrainingRequested
from meguri_contracts.topology import LOG
from tests.client.conftest import meguri
from tests.conftest import Broker
from tests.services import Wire

REQUEST = TrainingRequested(model="m", reason="why", actor="test")


async def fill(own: Wire) -> None:
    """Six events: of two kinds, three keys, two producers, two journeys."""
    await own.say(REQUEST, id="1", source="one", journey="j")
    await own.say(ModelRegistered(model="m", version=1, run="r"), id="2", source="other", journey="j")
    await own.say(ModelRegistered(model="n", version=1, run="r"), id="3", source="one")
    await own.publish("data-arrived", "d", b'{"producer": "bare", "records": []}')
    await own.publish("data-arrived", "d", b"no JSON \xff", {"Nats-Msg-Id": "5"})
    structured = {"specversion": "1.0", "id": "6", "source": "one", "data": {}}
    await own.publish("data-arrived", "d", json.dumps(structured).encode())


async def ids(*words: object) -> list[str]:
    return [line["id"] for line in (await meguri("events", "--json", *words)).lines]


async def test_an_empty_log_has_no_events_and_that_is_no_error(own):
    assert await ids() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["1", "2", "3", "meguri-4", "5", "6"]),
        (["--type", "model-registered"], ["2", "3"]),
        (["--type", "meguri.model-registered.v1"], ["2", "3"]),
        (["--key", "m"], ["1", "2"]),
        (["--type", "model-registered", "--key", "m"], ["2"]),
        (["--producer", "one"], ["1", "3", "6"]),
        (["--producer", "bare"], ["meguri-4"]),
        (["--journey", "j"], ["1", "2"]),
        (["--limit", "2"], ["5", "6"]),
        (["--limit", "1", "--key", "m"], ["2"]),
        (["--since", "1h"], ["1", "2", "3", "meguri-4", "5", "6"]),
        (["--until", "1h"], []),
        (["--since", "2999-01-01"], []),
        (["--type", "nothing-like-it"], []),
    ],
)
async def test_events_are_filtered(own, words, expected):
    await fill(own)

    assert await ids(*words) == expected


async def test_events_are_read_between_two_times(own):
    await fill(own)
    times = [line["time"] for line in (await meguri("events", "--json")).lines]

    assert await ids("--since", times[1], "--until", times[2]) in (["2", "3"], ["3"])


async def test_a_line_says_all_about_an_event_and_its_body_if_asked_for(own):
    await fill(own)
    second = (await meguri("events", "--json", "--key", "m")).lines[1]
    shown = await meguri("events")
    bodies = (await meguri("events", "--json", "--bodies", "--limit", "2")).lines

    assert (second["sequence"], second["kind"], second["key"]) == (2, "model-registered", "m")
    assert (second["source"], second["journey"], second["cause"], second["hops"]) == ("other", "j", "2", 0)
    assert datetime.fromisoformat(second["time"]).tzinfo
    assert "event" not in second
    assert len(shown.out.splitlines()) == 6
    assert bodies[0]["body_base64"] == "bm8gSlNPTiD/"
    assert bodies[1]["event"]["id"] == "6"
    assert "no JSON" in (await meguri("events", "--bodies")).out


async def test_following_goes_on_with_what_is_said_later(own):
    await own.say(REQUEST, id="1")
    following_ = asyncio.ensure_future(ids("--follow", "--limit", "3"))
    await own.say(REQUEST, id="2")
    await own.say(ModelRegistered(model="m", version=1, run="r"), id="3")

    assert await following_ == ["1", "2", "3"]


async def test_no_message_of_any_sender_ends_the_reading(own, broker: Broker):
    await own.say(REQUEST, id="1")
    await own.publish("training-requested", "m", b"", {"Status": "100", "Description": "Idle Heartbeat", "ce-id": "2"})
    await publish_by_hand(broker, b"meguri.events.training-requested.\xff\xfe", b"{}")
    await own.publish("training-requested", "m.n.o", b"[" * 100_000, {"ce-id": "4", "ce-hops": "²"})
    await own.say(REQUEST, id="5")

    assert await ids() == ["1", "2", "meguri-3", "4", "5"]


async def publish_by_hand(broker: Broker, subject: bytes, body: bytes) -> None:
    """Publish to a subject that the client would refuse."""

    def publish() -> None:
        with socket.create_connection(("127.0.0.1", broker.port)) as wire:
            lines = wire.makefile("rb")
            lines.readline()
            wire.sendall(b'CONNECT {"verbose":false}\r\nPUB %b %d\r\n%b\r\nPING\r\n' % (subject, len(body), body))
            assert lines.readline() == b"PONG\r\n"

    await asyncio.to_thread(publish)


async def test_the_sdk_follows_from_a_sequence_on(own):
    await fill(own)
    async with aclosing(following.follow("model-registered", after=2)) as events:
        seen = await anext(events)

    assert (seen.id, seen.event["version"], seen.trace) == ("3", 1, seen.trace)


@pytest.mark.parametrize("words", [["--since", "soon"], ["--until", "10y"]])
async def test_what_is_no_time_is_an_error_of_one_line(own, words):
    ran = await meguri("events", *words)

    assert (ran.code, ran.error.count("\n")) == (1, 1)
    assert f"{words[1]!r} is no time" in ran.error


async def test_a_broker_that_does_not_answer_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setenv("MEGURI_NATS_URL", "nats://127.0.0.1:1")
    for words in (["events"], ["dead"], ["redrive", "a/1"]):
        ran = await meguri(*words)
        assert (ran.code, ran.error.count("\n")) == (1, 1)
        assert "the broker at nats://127.0.0.1:1 does not answer" in ran.error


def test_times_are_iso_8601_or_as_long_ago():
    now = datetime.now(UTC)

    assert moment("2026-01-02") == datetime(2026, 1, 2, tzinfo=UTC)
    assert moment("2026-01-02T03:04+02:00") == datetime(2026, 1, 2, 1, 4, tzinfo=UTC)
    assert now - timedelta(hours=2) <= moment("2h") <= datetime.now(UTC) - timedelta(hours=2)
    assert [ago(now - timedelta(minutes=minutes)) for minutes in (0, 5, 130, 3000)] == ["0s", "5m", "2h", "2d"]
    for text in ("", "h", "-1h", "1e3s", "999999w", "²h"):
        with pytest.raises(MeguriClientError, match="is no time"):
            moment(text)


async def test_a_log_that_is_not_there_is_told_with_what_to_do(own):
    await own.js.delete_stream(LOG)
    ran = await meguri("events")

    assert ran.code == 1
    assert "run `meguri provision`, or `meguri restore-log` if the log was lost" in ran.error


def test_a_port_that_was_moved_is_where_the_broker_is_looked_for(monkeypatch):
    monkeypatch.delenv("MEGURI_NATS_URL", raising=False)
    monkeypatch.setenv("MEGURI_NATS_PORT", "4333")

    assert broker() == "nats://127.0.0.1:4333"

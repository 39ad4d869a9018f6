"""Readers go on where they were, whatever happens to the broker, and notice what was lost on the way."""

import asyncio
import socket
from contextlib import asynccontextmanager

import nats
import pytest
from nats.js import JetStreamContext

from meguri_chassis.reader import Reader
from meguri_contracts.topology import LOG, subject
from tests.chassis.toy import going_on
from tests.conftest import Broker, until
from tests.services import name, wire

LOADED = subject("model-loaded", "*")


class Followed:
    """What a reader has read, and where it stands."""

    def __init__(self, js, subjects=(LOADED,)):
        self.reader = Reader(js, LOG, list(subjects), "test")
        self.sequences: list[int] = []
        self.subjects: list[str] = []

    async def run(self):
        async for batch in self.reader.after(lambda: self.sequences[-1] if self.sequences else 0):
            self.take(batch)

    async def run_from_present(self):
        async for batch in self.reader.present_and_after():
            self.take(batch)

    def take(self, batch):
        self.sequences += [msg.metadata.sequence.stream for msg in batch]
        self.subjects += [msg.subject for msg in batch]


@asynccontextmanager
async def connected(broker: Broker):
    """A client that tells its readers of a reconnect, as a service does."""
    followed = []

    async def again():
        for one in followed:
            one.reader.again()

    client = await nats.connect(broker.url, reconnect_time_wait=0.05, reconnected_cb=again)
    try:
        yield client, followed
    finally:
        await client.close()


async def publish(js: JetStreamContext, count: int) -> list[int]:
    return [(await js.publish(subject("model-loaded", "m"), b"{}")).seq for _ in range(count)]


async def test_a_reader_goes_on_after_the_broker_was_killed_and_nothing_is_lost_or_doubled(broker):
    async with connected(broker) as (client, everyone):
        js = client.jetstream()
        followed = Followed(client.jetstream)
        everyone.append(followed)
        async with going_on(followed.run):
            expected = await publish(js, 3)
            await until(lambda: followed.sequences == expected)
            broker.kill()
            await asyncio.to_thread(broker.start)
            await until(lambda: client.is_connected)
            async with wire(broker) as other:
                expected += await publish(other.js, 3)
            await until(lambda: len(followed.sequences) >= len(expected), "what was said after the restart")

            assert followed.sequences == expected


async def test_a_delivery_that_is_lost_is_noticed_and_read_again(broker, monkeypatch):
    async with connected(broker) as (client, _):
        lossy, lost = client._process_msg, []

        async def lose_the_third(sid, subject, reply, data, headers):
            if b"$JS.ACK" in reply and len(lost) < 3:
                lost.append(reply)
                if len(lost) == 3:
                    return
            await lossy(sid, subject, reply, data, headers)

        monkeypatch.setattr(client, "_process_msg", lose_the_third)
        expected = await publish(client.jetstream(), 5)
        followed = Followed(client.jetstream)
        async with going_on(followed.run):
            await until(lambda: len(followed.sequences) >= len(expected), "the five messages")

        assert followed.sequences == expected
        assert len(lost) == 3


async def test_a_reader_of_the_present_gets_the_last_of_each_subject_and_then_what_follows(wire):
    mine = [subject("model-loaded", name(letter)) for letter in "ab"]
    for which in (0, 0, 1, 0):
        await wire.js.publish(mine[which], b"{}")
    followed = Followed(lambda: wire.js, mine)
    async with going_on(followed.run_from_present):
        await until(lambda: len(followed.subjects) == 2)
        assert followed.subjects == [mine[1], mine[0]]
        await wire.js.publish(mine[1], b"{}")
        await until(lambda: followed.subjects[2:] == [mine[1]], "the message that followed")


@pytest.mark.parametrize(
    ("subject_", "headers"),
    [
        (b"meguri.events.data-arrived.a", b"NATS/1.0\r\nStatus: 404\r\n\r\n"),
        (b"meguri.events.data-arrived.a", b"NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n"),
        (b"meguri.events.data-arrived.a", b"NATS/1.0 503\r\n\r\n"),
        (b"meguri.events.data-arrived.\xff", b"NATS/1.0\r\n\r\n"),
        (b"meguri.events.data-arrived.a\x00", b"NATS/1.0\r\n\r\n"),
        (b"meguri.events.data-arrived.a", b"NATS/1.0\r\nce-source: M\xfcnchen\r\nnothing\r\n: \r\n\r\n"),
    ],
    ids=[
        "status",
        "consumer gone",
        "inline status",
        "subject in another encoding",
        "NUL",
        "headers in another encoding",
    ],
)
async def test_no_message_can_stop_a_reader(broker, subject_, headers):
    publish_as_it_is(broker, subject_, headers, b"{}")
    async with connected(broker) as (client, _):
        followed = Followed(client.jetstream, ["meguri.events.>"])
        async with going_on(followed.run):
            await publish(client.jetstream(), 1)
            await until(lambda: followed.sequences == [1, 2], "the message after it")


def publish_as_it_is(broker: Broker, subject: bytes, headers: bytes, body: bytes) -> None:
    """Publish bytes that no client would let pass."""
    with socket.create_connection(("127.0.0.1", broker.port)) as connection, connection.makefile("rb") as answers:
        sizes = b"%d %d" % (len(headers), len(headers) + len(body))
        connection.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
        connection.sendall(b"HPUB " + subject + b" " + sizes + b"\r\n" + headers + body + b"\r\nPING\r\n")
        assert any(line == b"PONG\r\n" for line in iter(answers.readline, b""))

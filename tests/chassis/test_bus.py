"""Messages reach their handlers; what fails comes back, what cannot succeed is set aside with the reason, nothing is lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import pytest

from meguri_chassis import bus
from meguri_chassis.bus import hears
from meguri_contracts.errors import Conflict, PermanentError, TemporaryError
from meguri_contracts.events import ModelLoaded, ModelRegistered, TrainingRequested
from meguri_contracts.topology import DEAD, DEAD_PREFIX, LOG, Consumer
from tests.chassis.hearing import NAME, REQUEST, all_done, config, give_version, hearing
from tests.chassis.toy import toy
from tests.conftest import PATIENCE, Broker, until
from tests.services import Wire, wire


@pytest.fixture
async def own(broker: Broker) -> AsyncIterator[Wire]:
    async with wire(broker) as own:
        yield own


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "RETRY_DELAYS", (0.01, 0.01, 0.01))


def failing(*errors: Exception) -> tuple[Callable[..., Any], list[int]]:
    """A handler that raises these, one per delivery, and then succeeds; with the deliveries that it saw."""
    deliveries: list[int] = []
    left = list(errors)

    @hears(TrainingRequested)
    async def handle(event: TrainingRequested, message: Any) -> None:
        deliveries.append(message.deliveries)
        if left:
            raise left.pop(0)

    return handle, deliveries


async def test_what_a_deciding_handler_returns_is_appended_once_with_its_cause_and_journey(own, broker, database_url):
    async with toy(database_url, own.js) as replica, hearing(broker, give_version, decider=replica.decider):
        for i in range(1, 6):
            await own.say(REQUEST, id=f"cause-{i}", journey="the journey")
        await until(lambda: all_done(own))
        said = await own.heard(ModelRegistered, "m")

        assert [message.event.version for message in said] == [1, 2, 3, 4, 5]
        assert [message.headers["ce-causeid"] for message in said] == [f"cause-{i}" for i in range(1, 6)]
        assert {message.journey for message in said} == {"the journey"}


async def test_an_acting_handler_gets_the_event_and_the_message(own, broker):
    heard = []

    @hears(TrainingRequested)
    async def act(event, message):
        heard.append((event, message.id, message.deliveries))

    async with hearing(broker, act):
        await own.say(REQUEST, id="1")
        await until(lambda: all_done(own))

    assert heard == [(REQUEST, "1", 1)]


async def test_each_kind_goes_to_the_handler_that_hears_it(own, broker):
    heard = []

    @hears(TrainingRequested)
    async def one(event, message):
        heard.append(("one", event.kind()))

    @hears(ModelLoaded, ModelRegistered)
    async def other(event, message):
        heard.append(("other", event.kind()))

    async with hearing(broker, one, other):
        await own.say(REQUEST)
        await own.say(ModelLoaded(model="m", version=1, replica="r", seconds=0))
        await own.say(ModelRegistered(model="m", version=1, run="r"))
        await until(lambda: all_done(own))

    assert sorted(heard) == [("one", "training-requested"), ("other", "model-loaded"), ("other", "model-registered")]


async def test_a_message_that_can_never_succeed_is_set_aside_as_it_was_with_the_reason(own, broker):
    handle, deliveries = failing(Conflict('the "model" is away'))
    async with hearing(broker, handle):
        sequence = await own.say(REQUEST, id="1", source="werk 4")
        (dead,) = await until(lambda: own.stored(DEAD, f"{DEAD_PREFIX}.{NAME}.>"))
        await until(lambda: all_done(own))
    original = await own.js.get_msg(LOG, sequence)

    assert deliveries == [1]
    assert dead.data == original.data
    assert {k: v for k, v in original.headers.items() if not k.startswith("Nats-")}.items() <= dead.headers.items()
    assert unquote(dead.headers["meguri-reason"]) == 'Conflict: the "model" is away'
    assert dead.headers["meguri-consumer"] == NAME
    assert dead.headers["meguri-sequence"] == str(sequence)
    assert dead.headers["meguri-subject"] == "meguri.events.training-requested.m"
    assert dead.headers["meguri-deliveries"] == "1"


@pytest.mark.parametrize(
    ("key", "body", "reason"),
    [
        ("m", b"\xff", "Malformed: the body is not JSON"),
        ("m", b'{"reason": "", "actor": 3}', "Malformed: actor: "),
        ("m", b"x" * 2_000_000, "TooLarge: the event has 2,000,000 bytes"),
        ("M%C3%BCnchen", b"{}", "Malformed: the subject ends in 'M%C3%BCnchen'"),
        ("m.é", b"{}", "Malformed: the subject ends in 'm.é'"),
    ],
)
async def test_a_message_that_cannot_be_read_is_set_aside_and_the_next_one_is_heard(own, broker, key, body, reason):
    handle, deliveries = failing()
    async with hearing(broker, handle):
        await own.publish("training-requested", key, body)
        await own.say(REQUEST)
        await until(lambda: all_done(own))
    (dead,) = await own.stored(DEAD, f"{DEAD_PREFIX}.{NAME}.>")

    assert deliveries == [1]
    assert unquote(dead.headers["meguri-reason"]).startswith(reason)
    assert dead.data == body


async def test_an_unexpected_error_is_retried_as_often_as_there_are_delays_and_then_set_aside(own, broker):
    handle, deliveries = failing(*[ZeroDivisionError("oops")] * 10)
    async with hearing(broker, handle):
        await own.say(REQUEST)
        (dead,) = await until(lambda: own.parked(NAME))
        await until(lambda: all_done(own))

    assert deliveries == [1, 2, 3, 4]
    assert dead["meguri-reason"] == "ZeroDivisionError:%20oops"
    assert dead["meguri-deliveries"] == "4"


async def test_a_message_is_never_set_aside_for_a_reason_that_lies_outside_of_it(own, broker):
    handle, deliveries = failing(*[TemporaryError("the store is away")] * 9)
    async with hearing(broker, handle):
        await own.say(REQUEST)
        await until(lambda: all_done(own))

    assert deliveries == list(range(1, 11))
    assert await own.parked(NAME) == []


async def test_a_refusal_is_the_answer_to_what_cannot_succeed_and_nothing_is_set_aside(own, broker):
    handle, _ = failing(Conflict("no"))
    refused = []

    async def refuse(message, error):
        refused.append((message.id, type(error).__name__))

    async with hearing(broker, handle, refuse=refuse):
        await own.say(REQUEST, id="conflict")
        await until(lambda: refused)
        await own.publish("training-requested", "m", b"rows", {"ce-id": "malformed"})
        await until(lambda: all_done(own))

    assert refused == [("conflict", "Conflict"), ("malformed", "Malformed")]
    assert await own.parked(NAME) == []


async def test_what_cannot_even_be_refused_is_set_aside(own, broker):
    handle, _ = failing(Conflict("no"))

    async def refuse(message, error):
        raise PermanentError(f"no receipt for: {error}")

    async with hearing(broker, handle, refuse=refuse):
        await own.say(REQUEST)
        (dead,) = await until(lambda: own.parked(NAME))

    assert unquote(dead["meguri-reason"]) == "PermanentError: no receipt for: no"


async def test_a_handler_that_takes_longer_than_the_broker_waits_runs_once(own, broker):
    ack_wait, deliveries = 0.3, []

    @hears(TrainingRequested)
    async def act(event, message):
        deliveries.append(message.deliveries)
        await asyncio.sleep(4 * ack_wait)  # the work itself

    # The other replica would get what the broker takes for abandoned.
    async with hearing(broker, act, ack_wait=ack_wait), hearing(broker, act, ack_wait=ack_wait):
        await own.say(REQUEST)
        await until(lambda: all_done(own))

    assert deliveries == [1]
    assert (await own.js.consumer_info(LOG, NAME)).num_redelivered == 0


async def test_a_message_comes_again_when_the_process_dies_that_had_it_in_hand(own, broker):
    taken, deliveries = asyncio.Event(), []

    @hears(TrainingRequested)
    async def die(event, message):
        taken.set()
        await asyncio.Event().wait()

    @hears(TrainingRequested)
    async def act(event, message):
        deliveries.append(message.deliveries)

    # Seen from the broker, a closed connection is death: no sign of life comes any more, nor a goodbye.
    with suppress(ExceptionGroup):
        async with hearing(broker, die, ack_wait=0.3) as process:
            await own.say(REQUEST)
            await taken.wait()
            await process._connection.close()
            async with hearing(broker, act, ack_wait=0.3):
                await until(lambda: all_done(own))

    assert deliveries == [2]


async def test_a_failing_message_does_not_keep_the_others_waiting(own, broker, monkeypatch):
    monkeypatch.setattr(bus, "RETRY_DELAYS", (600.0,))
    heard = []

    @hears(TrainingRequested)
    async def act(event, message):
        if event.model == "bad":
            raise TemporaryError("later")
        heard.append(event.model)

    async with hearing(broker, act):
        for model in ("bad", "a", "b"):
            await own.say(TrainingRequested(model=model, reason="", actor="test"))
        await until(lambda: len(heard) == 2)

    assert sorted(heard) == ["a", "b"]


async def test_a_message_that_finds_all_hands_full_is_not_delivered_again_for_that(own, broker):
    busy, released, deliveries = [], asyncio.Event(), []

    @hears(TrainingRequested)
    async def hold(event: TrainingRequested, message: Any) -> None:
        busy.append(message.id)
        deliveries.append(message.deliveries)
        await released.wait()

    async with hearing(broker, hold, ack_wait=0.3, together=2):
        for i in range(5):
            await own.say(REQUEST, id=f"cause-{i}")
        await until(lambda: len(busy) == 2)
        info = await own.js.consumer_info(LOG, NAME)
        assert info.num_ack_pending == 2
        # Longer than the broker waits for a sign of life: another consumer's redelivery tells that the time has passed.
        await _after_a_redelivery(own, ack_wait=1)
        released.set()
        await until(lambda: all_done(own))

    assert sorted(busy) == [f"cause-{i}" for i in range(5)]
    assert deliveries == [1] * 5


async def _after_a_redelivery(own: Wire, ack_wait: float) -> None:
    """Return when the broker has delivered a message again that another consumer kept for so many seconds."""
    lazy = Consumer("toy-lazy", (TrainingRequested,), ack_wait)
    await own.js.add_consumer(LOG, config(lazy))
    pulled = await own.js.pull_subscribe_bind(lazy.name, stream=LOG)
    [first] = await pulled.fetch(1)
    while True:
        [msg] = await pulled.fetch(1, timeout=PATIENCE)
        if msg.metadata.sequence.stream == first.metadata.sequence.stream:
            return


async def test_what_is_in_hand_is_finished_before_the_service_goes(own, broker):
    began, released, done = asyncio.Event(), asyncio.Event(), []

    @hears(TrainingRequested)
    async def hold(event: TrainingRequested, message: Any) -> None:
        began.set()
        await released.wait()
        done.append(message.id)

    async with hearing(broker, hold, together=2):
        await own.say(REQUEST, id="cause")
        await began.wait()
        asyncio.get_running_loop().call_soon(released.set)

    assert done == ["cause"]
    assert (await own.js.consumer_info(LOG, NAME)).num_ack_pending == 0

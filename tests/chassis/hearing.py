"""A process that hears events, and a handler that decides on them."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from faststream.nats import NatsBroker
from nats.js.api import AckPolicy, ConsumerConfig

from meguri_chassis import bus
from meguri_chassis.bus import Bus, Hearing, hears
from meguri_chassis.dead_letters import DeadLetters
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_contracts.events import ModelRegistered, TrainingRequested
from meguri_contracts.topology import LOG, Consumer
from tests.chassis.toy import register
from tests.conftest import Broker
from tests.services import Wire

NAME = "toy-hears"
REQUEST = TrainingRequested(model="m", reason="why", actor="test")


@asynccontextmanager
async def hearing(
    broker: Broker,
    *handlers: Callable[..., Any],
    decider: Decider | None = None,
    refuse: bus.Refuse | None = None,
    ack_wait: float = 30,
    together: int = 1,
) -> AsyncIterator[NatsBroker]:
    """A process that hears with these handlers, until the block is left."""
    heard = tuple(event for handler in handlers for event in handler.hears)
    consumer = Consumer(NAME, heard, ack_wait)
    nats = NatsBroker(broker.url, logger=None, graceful_timeout=1)
    client = await nats.connect()
    await client.jetstream().add_consumer(LOG, config(consumer))
    letters = DeadLetters(client.jetstream, EventLog(client.jetstream, "meguri/toy"))
    delivering = Bus(
        [Hearing(consumer, handlers, refuse, together)],
        dead_letters=letters,
        decider=decider,
        continue_trace_max_age=60,
    )
    delivering.subscribe(nats)
    await nats.start()
    try:
        yield nats
    finally:
        await delivering.stop(nats, patience=1)
        await nats.stop()


def config(consumer: Consumer) -> ConsumerConfig:
    return ConsumerConfig(
        durable_name=consumer.name,
        filter_subjects=list(consumer.subjects),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=consumer.ack_wait,
    )


async def all_done(own: Wire) -> bool:
    """Whether every message of the consumer was acknowledged. What it has pending, the broker knows a moment too late."""
    info = await own.js.consumer_info(LOG, NAME)
    heard = [message.seq for subject in info.config.filter_subjects for message in await own.stored(LOG, subject)]
    return bool(heard) and info.ack_floor.stream_seq >= max(heard)


@hears(TrainingRequested)
def give_version(event: TrainingRequested, session: Any) -> Sequence[ModelRegistered]:
    return register(event.model, event.reason)(session)

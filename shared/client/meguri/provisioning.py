"""Creates or updates the streams and consumers of the topology. The only place that does; run it before each rollout."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import nats
from nats.errors import Error as NatsError
from nats.errors import NoServersError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from meguri.client import ONCE
from meguri_contracts.topology import CONSUMERS, FULL, LOG, STREAMS, TRAINING_FITS, Consumer, Stream

T = TypeVar("T")

READY_WITHIN = 30.0
"""Seconds to wait for a broker that is just starting."""


class BrokerAway(Exception):
    """No broker answers at the address."""


class NoRoom(Exception):
    """The broker's disk is smaller than what a stream may take."""


@dataclass(frozen=True)
class Provisioned:
    """What was done for one stream or consumer: created, updated or kept."""

    what: str
    name: str
    done: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def limits() -> dict[str, int]:
    """The limits that the environment names, as arguments of `provision`: what runs unasked must not undo an operator's."""
    return {
        "fits_in_flight": int(os.environ.get("MEGURI_FITS_IN_FLIGHT") or TRAINING_FITS.max_ack_pending),
        "log_max_bytes": int(os.environ.get("MEGURI_LOG_MAX_BYTES") or -1),
    }


async def provision(
    nats_url: str,
    *,
    replicas: int = 1,
    fits_in_flight: int = TRAINING_FITS.max_ack_pending,
    log_max_bytes: int = -1,
    opens: bool = False,
) -> list[Provisioned]:
    """Create or update everything the services need. Idempotent. Raises BrokerAway, NoRoom.

    `fits_in_flight` are the fits that all replicas of training together may have in hand. At `log_max_bytes` the log keeps
    what it has and refuses what comes; -1 is no limit. A stream that is being restored is left to whoever restores it, who
    `opens` it at the end.
    """
    fits = replace(TRAINING_FITS, max_ack_pending=fits_in_flight)
    consumers = [fits if consumer == TRAINING_FITS else consumer for consumer in CONSUMERS]
    client = await _patiently(
        lambda: nats.connect(nats_url.split(","), connect_timeout=2, error_cb=_said_by_patience, **ONCE)
    )
    try:
        js = client.jetstream(timeout=10)
        # JetStream answers a moment after the broker does.
        await _patiently(js.account_info)
        streams = [await _stream(js, stream, replicas, log_max_bytes, opens) for stream in STREAMS]
        return streams + [await _consumer(js, consumer) for consumer in consumers]
    finally:
        await client.close()


async def _patiently(step: Callable[[], Awaitable[T]]) -> T:
    until = asyncio.get_running_loop().time() + READY_WITHIN
    while True:
        try:
            return await step()
        except (NatsError, NoServersError, OSError, TimeoutError) as error:
            if asyncio.get_running_loop().time() > until:
                raise BrokerAway(f"no broker answered within {READY_WITHIN:.0f} s: {error!r}") from error
            await asyncio.sleep(0.1)


async def _said_by_patience(error: Exception) -> None:
    """What the client meets is told once, when patience ends."""


async def _stream(js: JetStreamContext, stream: Stream, replicas: int, log_max_bytes: int, opens: bool) -> Provisioned:
    config = StreamConfig(
        name=stream.name,
        subjects=list(stream.subjects),
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        max_age=stream.max_age,
        max_bytes=log_max_bytes if stream.name == LOG else stream.max_bytes,
        duplicate_window=stream.duplicate_window,
        num_replicas=replicas,
        deny_delete=stream.name == LOG,
        discard=DiscardPolicy.NEW if stream.keeps else DiscardPolicy.OLD,
    )
    try:
        have = (await js.stream_info(stream.name)).config
    except NotFoundError:
        await _allowing_for_room(js.add_stream(config), config)
        return Provisioned("stream", stream.name, "created")
    if is_closed(have) and not opens:
        return Provisioned("stream", stream.name, "being restored")
    same = all(getattr(have, name) == value for name, value in vars(config).items() if value is not None)
    if not same:
        await _allowing_for_room(js.update_stream(config), config)
    return Provisioned("stream", stream.name, "kept" if same else "updated")


def is_closed(stream: StreamConfig) -> bool:
    """Whether a stream is in the making: its maker has not yet opened it."""
    return stream.subjects == [f"{gate(stream.name)}.>"]


def gate(stream: str | None) -> str:
    """What a closed stream expects before each subject."""
    return f"restoring.{stream}"


async def _allowing_for_room(step: Awaitable[Any], config: StreamConfig) -> None:
    try:
        await step
    except APIError as error:
        if error.err_code not in FULL:
            raise
        raise NoRoom(
            f"the broker has no room for stream {config.name} of up to {config.max_bytes:,} bytes ({error.description}): "
            "it uses up to three quarters of what was free on its disk when it started"
        ) from error


def consumer_config(consumer: Consumer) -> ConsumerConfig:
    """The configuration of a consumer that begins with the first message."""
    return ConsumerConfig(
        durable_name=consumer.name,
        name=consumer.name,
        filter_subjects=list(consumer.subjects) if consumer.hears else None,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=consumer.ack_wait,
        max_ack_pending=consumer.max_ack_pending,
        max_deliver=-1,
    )


async def _consumer(js: JetStreamContext, consumer: Consumer) -> Provisioned:
    config = consumer_config(consumer)
    try:
        have = (await js.consumer_info(consumer.stream, consumer.name)).config
    except NotFoundError:
        await js.add_consumer(consumer.stream, config)
        return Provisioned("consumer", consumer.name, "created")
    subjects = set(have.filter_subjects or filter(None, [have.filter_subject]))
    same = subjects == set(config.filter_subjects or []) and all(
        getattr(have, name) == getattr(config, name) for name in ("ack_wait", "max_ack_pending", "max_deliver")
    )
    if not same:
        # Where it began, after a restore not with the first message, cannot be changed.
        config.deliver_policy, config.opt_start_seq = have.deliver_policy, have.opt_start_seq
        await js.add_consumer(consumer.stream, config)
    return Provisioned("consumer", consumer.name, "kept" if same else "updated")

"""Puts back a log that was lost, out of what the services have journaled of it."""

import gzip
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from nats.aio.client import Client
from nats.js import JetStreamContext

from meguri import journals, log_copy
from meguri.appending import Appender
from meguri.client import Meguri, broker
from meguri.journals import Collected, Gaps
from meguri.log_copy import Stored
from meguri.provisioning import consumer_config, is_closed, limits, provision
from meguri_contracts.topology import CONSUMERS, LOG, PREDICTIONS, subject

ASIDE = "ASIDE"
"""Stream that keeps what the old log held and no journal has, from before that one is deleted until the new one is whole."""
LOST = "lost"
"""Kind of the messages that stand where one is missing for good; nobody hears it."""
MARGIN = 10_000
"""More predictions than can have been kept in tables and not yet counted when their stream was lost."""
SAY_EVERY = 10_000
REPLAY = (
    "now `meguri replay` each service that has tables: they know of messages that are missing, and nothing can be decided "
    "about the models and datasets that those were the last of"
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Restored:
    """What came of it. `messages` are those of the log now; `appended` of them it had and the journals did not."""

    whole: bool
    messages: int
    lost: int = 0
    appended: int = 0


async def restore_log(*, accept_gaps: bool = False, say: Say) -> Restored:
    """Make the log again from the journals of all services, each message at its sequence. Changes nothing if it is whole.

    What it holds by now and no journal has is kept, and follows at its end. May be run again after it was interrupted.
    Raises Gaps, JournalsDiffer, Unreachable, BrokerAway; CannotCopy if somebody else wrote to the log meanwhile.
    """
    with TemporaryDirectory(prefix="meguri-") as folder, Meguri() as meguri:
        found = journals.collect(meguri, Path(folder) / "log.jsonl.gz")
        say(f"the journals hold {found.messages} messages, up to {found.last}")
        async with log_copy.connected() as (client, js):
            if await _is_whole(client, js, found):
                await _lift_predictions(client, js, found, say)
                return Restored(whole=True, messages=(await js.stream_info(LOG)).state.messages)
            if found.missing and not accept_gaps:
                raise Gaps(found.missing)
            await _put_aside(client, js, found, say)
            appended = await _fill(client, js, found, say)
        await provision(broker(), **limits(), opens=True)
        async with log_copy.connected() as (client, js):
            await _forget(js, ASIDE)
            await _lift_predictions(client, js, found, say)
            lost = sum(one.last - one.first + 1 for one in found.missing)
            if lost:
                say(REPLAY)
            return Restored(whole=False, messages=found.last + appended, lost=lost, appended=appended)


async def _is_whole(client: Client, js: JetStreamContext, found: Collected) -> bool:
    """Whether the log has no gap, reaches as far as the journals, and says the same as they."""
    stream = await log_copy.info(js, LOG)
    if stream is None or is_closed(stream.config):
        return False
    state = stream.state
    if state.last_seq < found.last or state.messages != state.last_seq:
        return False
    same = 0
    async for _, journaled in _beside(client, found, state.last_seq):
        same += journaled
    return same == found.messages


async def _beside(client: Client, found: Collected, last: int) -> AsyncIterator[tuple[Stored, bool]]:
    """Yield the messages of the log, and whether the journals have the same at that place."""
    remembered = journals.read(found.file)
    next_one = next(remembered, None)
    async for message in log_copy.read(client, LOG, 1, last):
        while next_one and next_one.sequence < message.sequence:
            next_one = next(remembered, None)
        yield (
            message,
            next_one is not None and next_one.sequence == message.sequence and next_one.is_as(message),
        )


async def _put_aside(client: Client, js: JetStreamContext, found: Collected, say: Say) -> None:
    """Keep what only the log holds. A log in the making, or none, says that this was done by a run before."""
    stream = await log_copy.info(js, LOG)
    if stream is None or is_closed(stream.config):
        return
    await _forget(js, ASIDE)
    await log_copy.create_closed(js, ASIDE)
    kept = 0
    async with Appender(client, ASIDE) as aside:
        async for message, journaled in _beside(client, found, stream.state.last_seq):
            if not journaled:
                kept += 1
                await aside.put(replace(message.restorable(), sequence=kept))
    say(f"{kept} messages of the present log are in no journal: kept, they will follow the others")


async def _fill(client: Client, js: JetStreamContext, found: Collected, say: Say) -> int:
    """Make the log anew; return how many messages were appended from aside."""
    await _forget(js, LOG)
    await log_copy.create_closed(js, LOG)
    await _make_waiting_consumers(js)
    aside = await log_copy.info(js, ASIDE)
    kept = aside.state.messages if aside else 0
    async with Appender(client, LOG) as log:
        for message in _without_gaps(journals.read(found.file), found.last):
            await log.put(message.restorable())
            if message.sequence % SAY_EVERY == 0:
                say(f"{message.sequence} of {found.last} messages are back")
        async for message in log_copy.read(client, ASIDE, 1, kept):
            await log.put(replace(message.restorable(), sequence=found.last + message.sequence))
    for consumer in CONSUMERS:
        if consumer.stream == LOG:
            await js.resume_consumer(LOG, consumer.name)
    return kept


async def _make_waiting_consumers(js: JetStreamContext) -> None:
    """Make the consumers, to be let go when the log is whole: services ask for a missing one without a pause."""
    for consumer in CONSUMERS:
        if consumer.stream == LOG:
            config = consumer_config(consumer)
            config.pause_until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
            await js.add_consumer(LOG, config)


async def _lift_predictions(client: Client, js: JetStreamContext, found: Collected, say: Say) -> None:
    """Have a stream of predictions that was lost too go on after what was counted: what comes before would not be looked at."""
    state = (await js.stream_info(PREDICTIONS)).state
    if state.last_seq >= found.predictions:
        return
    file = found.file.with_name(PREDICTIONS)
    with gzip.open(file, "wt", compresslevel=3, encoding="utf-8") as out:
        async for message in log_copy.read(client, PREDICTIONS, state.first_seq, state.last_seq):
            journals.write(out, message)
    # Beyond its end, a purge moves the sequence that comes next.
    await js.purge_stream(PREDICTIONS, seq=found.predictions + MARGIN)
    for message in journals.read(file):
        await js.publish(message.subject, message.body, stream=PREDICTIONS)
    say(f"predictions were lost as well: the next get sequences after {found.predictions}")


def _without_gaps(messages: Iterator[Stored], last: int) -> Iterator[Stored]:
    expected = 1
    for message in messages:
        yield from map(_lost, range(expected, message.sequence))
        yield message
        expected = message.sequence + 1
    yield from map(_lost, range(expected, last + 1))


def _lost(sequence: int) -> Stored:
    body = b'{"lost": "no journal has the message that stood here"}'
    return Stored(sequence, subject(LOST, str(sequence)), {}, body, "1970-01-01T00:00:00+00:00")


async def _forget(js: JetStreamContext, stream: str) -> None:
    if await log_copy.info(js, stream):
        await js.delete_stream(stream)

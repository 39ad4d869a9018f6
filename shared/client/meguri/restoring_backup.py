"""A backup into an empty system, and the proof that what runs there is what was backed up.

Databases are not copied: the services make their tables again from the log, as they do at every start.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy

from meguri import archive, journals, log_copy, stores
from meguri.appending import Appender
from meguri.archive import NotEmpty
from meguri.backup import ARTIFACTS, DATA, Say, stream_file
from meguri.client import Meguri, broker
from meguri.log_copy import Stored
from meguri.provisioning import consumer_config, limits, provision
from meguri_contracts.topology import CONSUMERS, DEAD, LOG, PREDICTIONS

IN_ORDER = (PREDICTIONS, DEAD, LOG)
"""The log comes last: what it refers to is there by then."""


@dataclass(frozen=True)
class Verdict:
    """Whether the log yields for a service what was backed up; `differ` are the tables where it does not."""

    service: str
    position: int
    differ: tuple[str, ...]


async def restore(folder: Path, *, say: Say) -> dict[str, Any]:
    """Put a backup into an empty system and return its manifest. Raises NoBackup, Damaged and NotEmpty before any change."""
    say("checking the files of the backup")
    manifest = await asyncio.to_thread(archive.check, folder)
    places = {stores.artifacts_url(): folder / ARTIFACTS, stores.data_url(): folder / DATA}
    async with log_copy.connected() as (client, js):
        await _require_empty(js, list(places))
        say("putting back tables and artifacts")
        for url, files in places.items():
            await asyncio.to_thread(stores.put_back, files, url)
        for stream in IN_ORDER:
            say(f"putting back the stream {stream}")
            await _put_back(client, js, stream, manifest["streams"][stream], folder)
        await _make_consumers(js, manifest["consumers"])
    await provision(broker(), **limits(), opens=True)
    return manifest


def verify(folder: Path) -> list[Verdict]:
    """Ask every service of a backup what its log yields at the place of the backup. Changes nothing."""
    found = archive.manifest(folder)
    with Meguri() as meguri:
        return [_verdict(meguri, service, kept) for service, kept in found["services"].items()]


def _verdict(meguri: Meguri, service: str, kept: dict[str, Any]) -> Verdict:
    position, tables = kept["position"], kept["tables"]
    *_, last = meguri.lines("POST", service, "/log/replay", until=position, keep="false")
    now = last["tables"]
    differ = sorted(table for table in {*tables, *now} if tables.get(table) != now.get(table))
    return Verdict(service, position, tuple(differ))


async def _require_empty(js: JetStreamContext, urls: list[str]) -> None:
    for url in urls:
        if not stores.is_empty(url):
            raise NotEmpty(f"{url} is not empty: a backup is restored into an empty system; nothing was changed")
    for stream in IN_ORDER:
        found = await log_copy.info(js, stream)
        if found and (found.state.messages or found.state.last_seq):
            raise NotEmpty(
                f"the stream {stream} holds messages up to {found.state.last_seq}: a backup is restored into an empty "
                "system; nothing was changed"
            )


async def _put_back(client: Client, js: JetStreamContext, stream: str, last: int, folder: Path) -> None:
    if await log_copy.info(js, stream):
        await js.delete_stream(stream)
    messages = journals.read(stream_file(folder, stream))
    first = next(messages, None)
    await log_copy.create_closed(js, stream, first.sequence if first else last + 1)
    fillers = []
    async with Appender(client, stream) as appender:
        for message, is_filler in _without_gaps(first, messages, last):
            await appender.put(message.restorable())
            if is_filler:
                fillers.append(message.sequence)
    for sequence in fillers:
        await js.delete_msg(stream, sequence)


def _without_gaps(first: Stored | None, rest: Iterator[Stored], last: int) -> Iterator[tuple[Stored, bool]]:
    """Yield messages for every sequence up to `last`, and whether one only fills the place of one that was deleted."""
    if first is None:
        return
    yield first, False
    expected = first.sequence + 1
    for message in rest:
        yield from ((_filler(first, sequence), True) for sequence in range(expected, message.sequence))
        yield message, False
        expected = message.sequence + 1
    yield from ((_filler(first, sequence), True) for sequence in range(expected, last + 1))


def _filler(like: Stored, sequence: int) -> Stored:
    return replace(like, sequence=sequence, headers={}, body=b"")


async def _make_consumers(js: JetStreamContext, acknowledged: dict[str, int]) -> None:
    """Make the consumers of the log so that they go on where they were."""
    for consumer in CONSUMERS:
        if consumer.name in acknowledged:
            config = consumer_config(consumer)
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = acknowledged[consumer.name] + 1
            await js.add_consumer(consumer.stream, config)

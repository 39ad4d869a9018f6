"""A backup of the running system: one cut through log, tables and files, so that nothing in it points out of it.

The order does that: what is acknowledged is looked up before the cut, so that the log holds what came of it; tables and files
are copied after the cut, for they are written before the log tells of them; and the predictions' stream after their tables.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from meguri import archive, journals, log_copy, stores
from meguri.client import Meguri, MeguriClientError
from meguri.log_copy import Stored
from meguri_contracts.events import DataCommitted
from meguri_contracts.topology import CONSUMERS, DEAD, LOG, PREDICTIONS, subject

DATA, ARTIFACTS, ROWS, STREAMS = "data", "artifacts", "rows", "streams"
"""Folders of a backup."""
SAY_EVERY = 10_000

Say = Callable[[str], None]


class LogIncomplete(MeguriClientError):
    """The log itself is not whole."""


async def backup(folder: Path, *, say: Say) -> dict[str, Any]:
    """Back up the running system into a new folder; return the manifest, which is written last.

    Raises NotEmpty, Unreachable, BrokerAway, LogIncomplete, StoreTrouble, OSError; then the folder has no manifest.
    """
    archive.begin(folder)
    async with log_copy.connected() as (client, js):
        consumers = await _acknowledged(js)
        first_look = await _last(js, LOG)
        say(f"waiting for all tables to contain the log up to {first_look}")
        digests = await asyncio.to_thread(_keep_tables, folder, first_look)
        cut = max([first_look, *(found["position"] for found in digests.values())])
        say(f"the cut is at {cut}")
        versions = await _keep_log(client, js, cut, folder, say)
        say("copying tables and artifacts")
        await asyncio.to_thread(stores.copy_tables, stores.data_url(), folder / DATA, versions)
        await asyncio.to_thread(stores.copy_artifacts, stores.artifacts_url(), folder / ARTIFACTS)
        streams = {stream: await _keep_stream(client, js, stream, folder, say) for stream in (PREDICTIONS, DEAD)}
    return archive.finish(
        folder,
        {
            "made": datetime.now(UTC).isoformat(),
            "sequence": cut,
            "services": {service: _without_name(found) for service, found in digests.items()},
            "consumers": consumers,
            "streams": {LOG: cut, **streams},
            "datasets": versions,
        },
    )


def stream_file(folder: Path, stream: str) -> Path:
    return folder / STREAMS / f"{stream}.jsonl.gz"


async def _acknowledged(js: JetStreamContext) -> dict[str, int]:
    """Up to where each consumer of the log has acknowledged everything."""
    floors = {}
    for consumer in CONSUMERS:
        if consumer.stream == LOG:
            try:
                info = await js.consumer_info(LOG, consumer.name)
            except NotFoundError as error:
                raise LogIncomplete(
                    f"the log or its consumer {consumer.name} is missing: {error.description}"
                ) from error
            floors[consumer.name] = info.ack_floor.stream_seq if info.ack_floor else 0
    return floors


async def _last(js: JetStreamContext, stream: str) -> int:
    return int((await js.stream_info(stream)).state.last_seq)


def _keep_tables(folder: Path, reached: int) -> dict[str, dict[str, Any]]:
    """Return the digests of all tables once they contain the log up to `reached`; keep their rows for whoever wants to look."""
    with Meguri() as meguri:
        digests = journals.digests(meguri, after=reached)
        for service in digests:
            _keep_rows(meguri, service, folder)
    return digests


def _keep_rows(meguri: Meguri, service: str, folder: Path) -> None:
    file = folder / ROWS / f"{service}.jsonl.gz"
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt", compresslevel=3, encoding="utf-8") as out:
        for row in meguri.lines("GET", service, "/log/rows"):
            out.write(json.dumps(row) + "\n")


async def _keep_log(client: Client, js: JetStreamContext, cut: int, folder: Path, say: Say) -> dict[str, int]:
    """Keep the log up to the cut; return the last version of each dataset that it tells of."""
    versions: dict[str, int] = {}
    expected = 1
    async for message in _kept(log_copy.read(client, LOG, 1, cut), stream_file(folder, LOG), say):
        if message.sequence != expected:
            break
        expected += 1
        if message.subject.startswith(f"{subject(DataCommitted.kind(), '')}."):
            _note_version(message, versions)
    if expected != cut + 1:
        raise LogIncomplete(f"the log has no message {expected}: put it back with `meguri restore-log`")
    return versions


def _note_version(message: Stored, versions: dict[str, int]) -> None:
    try:
        committed = DataCommitted.model_validate_json(message.body)
    except ValidationError:
        return  # somebody else's words, which no service takes for a commit either
    versions[committed.dataset] = max(committed.version, versions.get(committed.dataset, -1))


async def _keep_stream(client: Client, js: JetStreamContext, stream: str, folder: Path, say: Say) -> int:
    """Keep everything that a stream holds; return its last sequence."""
    state = (await js.stream_info(stream)).state
    async for _ in _kept(
        log_copy.read(client, stream, state.first_seq, state.last_seq), stream_file(folder, stream), say
    ):
        pass
    return int(state.last_seq)


async def _kept(messages: AsyncIterator[Stored], file: Path, say: Say) -> AsyncIterator[Stored]:
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt", compresslevel=3, encoding="utf-8") as out:
        async for message in messages:
            journals.write(out, message)
            if message.sequence % SAY_EVERY == 0:
                say(f"{file.name}: message {message.sequence}")
            yield message


def _without_name(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "service"}

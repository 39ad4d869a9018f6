"""Events in, events out: batches of rows to predict, planned in shards, each done by whoever gets it.

There is no state but the log and the files. What a batch depends on is fixed in its shards, their files follow from that, and
ids follow from the request; so everything here may be done again, by anyone, and comes out the same.
"""

import asyncio
import logging
import time
from collections.abc import Generator
from typing import TypeVar

import pyarrow as pa

from meguri_chassis import telemetry
from meguri_chassis.bus import hears
from meguri_chassis.log import EventLog, Message, MovedOn
from meguri_chassis.lookup import Lookup
from meguri_contracts.errors import Conflict, PermanentError
from meguri_contracts.events import (
    BatchCompleted,
    BatchFailed,
    BatchRequested,
    Deployed,
    Event,
    ShardPlanned,
    ShardScored,
)
from meguri_contracts.names import derived_id
from meguri_inference import parts
from meguri_inference.formats import BadRows, format_of
from meguri_inference.pieces import features, pieces
from meguri_inference.predicting import LoadedModel
from meguri_inference.storing import Input, Inputs, Output, Outputs
from meguri_inference.versions import Versions

logger = logging.getLogger(__name__)

R = TypeVar("R")
_OfBatch = BatchRequested | ShardPlanned | BatchCompleted | BatchFailed


class FolderTaken(Conflict):
    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri!r} holds the predictions of another batch, or of another input; name another folder")


class Batches:
    """Plans batches and does their shards. A batch ends once: completed, or failed."""

    def __init__(
        self,
        *,
        log: EventLog,
        lookup: Lookup,
        versions: Versions,
        inputs: Inputs,
        outputs: Outputs,
        replica: str,
    ) -> None:
        self._log = log
        self._lookup = lookup
        self._versions = versions
        self._inputs = inputs
        self._outputs = outputs
        self._replica = replica

    @hears(BatchRequested)
    async def plan(self, requested: BatchRequested, message: Message) -> None:
        """Check the input, fix version and content, and say the shards."""
        if await self._has_ended(requested, message):
            return
        try:
            planned = await self._planned(requested, message)
        except PermanentError as error:
            await self._fail(requested, error, message)
            return
        for shard in planned:
            await self._say(shard, message)

    @hears(ShardPlanned)
    async def score(self, shard: ShardPlanned, message: Message) -> None:
        """Predict a shard, say so, and if it was the last one, that the batch is complete."""
        if await self._has_ended(shard, message):
            return
        began = time.perf_counter()
        try:
            output = self._outputs.open(shard.output)
            manifest = await self._manifest(output, shard.shard) or await self._predicted(shard, output)
        except PermanentError as error:
            await self._fail(shard, error, message)
            return
        await self._say(
            ShardScored(
                model=shard.model,
                batch=shard.batch,
                shard=shard.shard,
                shards=shard.shards,
                rows=manifest.rows,
                uri=f"{output.uri}/{manifest.file}",
                digest=manifest.digest,
                replica=self._replica,
                seconds=time.perf_counter() - began,
            ),
            message,
        )
        if manifests := await self._all_manifests(output, shard):
            await asyncio.to_thread(output.tidy)
            await self._end(parts.completed(shard, manifests), message)

    # --- planning

    async def _planned(self, requested: BatchRequested, message: Message) -> list[ShardPlanned]:
        output = self._outputs.open(requested.output)
        deployed = await self._version(requested, message)
        # It must load here before anybody is sent to work.
        await self._versions.load(requested.model, deployed)
        found = await asyncio.to_thread(self._inputs.open, requested.input)
        rows = await _in_steps(_checked(found, deployed))
        await asyncio.to_thread(self._inputs.require_unchanged, requested.input, found.digest)
        planned = parts.plan(requested, deployed, rows=rows, input_digest=found.digest, output=output.uri)
        claim = parts.claim(planned)
        if await asyncio.to_thread(output.claim, parts.CLAIM, claim) != claim:
            raise FolderTaken(output.uri)
        return planned

    async def _version(self, requested: BatchRequested, message: Message) -> Deployed:
        if requested.version is not None:
            return await self._versions.find(requested.model, requested.version)
        # Of the moment of the request, so that whoever plans, and when, comes to the same.
        return await self._versions.champion(requested.model, before=message.sequence)

    # --- predicting

    async def _predicted(self, shard: ShardPlanned, output: Output) -> parts.Manifest:
        model = await self._versions.load(shard.model, shard.deployed)
        found = await asyncio.to_thread(self._inputs.require_unchanged, shard.input, shard.input_digest)
        try:
            with telemetry.tracer.start_as_current_span("predict shard", attributes=telemetry.lineage(shard)):
                return await _in_steps(self._written(shard, model, found, output))
        except BadRows:
            # All rows were good when the batch was planned.
            await asyncio.to_thread(self._inputs.require_unchanged, shard.input, shard.input_digest)
            raise

    def _written(
        self, shard: ShardPlanned, model: LoadedModel, found: Input, output: Output
    ) -> Generator[int, None, parts.Manifest]:
        name = parts.file_name(shard.shard)
        with output.written(name) as path:
            rows = 0
            for count in parts.write(path, _predictions(shard, model, found), parts.nothing(model)):
                rows += count
                yield rows
            self._inputs.require_unchanged(shard.input, shard.input_digest)
            manifest = parts.Manifest(shard=shard.shard, rows=rows, file=name, digest=parts.sha256(path))
        with output.written(parts.manifest_name(shard.shard)) as path:
            path.write_bytes(manifest.write())
        return manifest

    async def _manifest(self, output: Output, shard: int) -> parts.Manifest | None:
        text = await asyncio.to_thread(output.get, parts.manifest_name(shard))
        return parts.Manifest.read(text) if text else None

    async def _all_manifests(self, output: Output, shard: ShardPlanned) -> list[parts.Manifest]:
        """Return the word of every shard, or nothing if one is missing."""
        found: list[parts.Manifest] = []
        # From the end: the last ones are missing the longest.
        for number in reversed(range(shard.shards)):
            if (manifest := await self._manifest(output, number)) is None:
                return []
            found.append(manifest)
        return found[::-1]

    # --- saying

    async def _say(self, event: Event, message: Message) -> None:
        id_ = derived_id(message.id, event.type, event.key, event.identity)
        await self._log.append(event, id=id_, cause=_request(message), journey=message.journey, hops=message.hops + 1)

    async def _fail(self, batch: BatchRequested | ShardPlanned, error: PermanentError, message: Message) -> None:
        logger.info("batch %s of %s failed: %s", batch.batch, batch.model, error)
        await self._end(BatchFailed(model=batch.model, batch=batch.batch, reason=str(error)), message)

    async def _end(self, outcome: BatchCompleted | BatchFailed, message: Message) -> None:
        """Append the outcome of a batch, unless it has one: of all that come to one, whenever, the first is heard."""
        # One id for both: the broker lets only one of them in, and the log is asked for when it has forgotten ids.
        id_ = derived_id(_request(message), BatchCompleted.type, outcome.model, outcome.batch)
        while True:
            head = await self._lookup.head(outcome.model)
            if await self._has_ended(outcome, message):
                return
            try:
                await self._log.append(
                    outcome,
                    id=id_,
                    cause=message.id,
                    journey=message.journey,
                    hops=message.hops + 1,
                    expected=head,
                )
            except MovedOn:
                continue
            return

    async def _has_ended(self, batch: _OfBatch, message: Message) -> bool:
        """Whether the batch that `message` is part of has its outcome: it can only come after it."""
        kinds: tuple[type[BatchCompleted] | type[BatchFailed], ...] = (BatchCompleted, BatchFailed)
        for kind in kinds:
            async for _, outcome in self._lookup.said(kind, batch.model, after=message.sequence):
                if outcome.batch == batch.batch:
                    return True
        return False


def _request(message: Message) -> str:
    """Id of the request that a message follows from, or is."""
    return message.cause if message.kind == ShardPlanned.kind() and message.cause else message.id


def _checked(found: Input, deployed: Deployed) -> Generator[int, None, int]:
    """Hold every row against what the model takes; returns how many there are."""
    rows, signature = 0, deployed.signature
    for table in pieces(found.path, format_of(found.uri), signature, all_columns=False):
        features(table, signature, first=rows)
        rows += table.num_rows
        yield rows
    return rows


def _predictions(shard: ShardPlanned, model: LoadedModel, found: Input) -> Generator[pa.Table, None, None]:
    first = shard.first
    for table in pieces(found.path, format_of(found.uri), model.signature, first=first, rows=shard.rows):
        yield parts.predicted(model, table, first)
        first += table.num_rows


async def _in_steps(work: Generator[int, None, R]) -> R:
    """Do work in threads, a step at a time: it ends early when it is not waited for any more, and the loop goes on."""

    def step() -> R | None:
        try:
            next(work)
        except StopIteration as done:
            return done.value
        return None

    while (result := await asyncio.to_thread(step)) is None:
        pass
    return result

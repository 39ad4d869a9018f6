"""Follows the rollouts of the log: the present ones at the start, every change after; loads, swaps, says so."""

import asyncio
import hashlib
import logging
import time

from meguri_chassis import telemetry
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import EventLog, Message, publish
from meguri_chassis.reader import Reader
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import ModelLoaded, RolloutChanged
from meguri_contracts.names import derived_id
from meguri_contracts.topology import PREDICTION_PREFIX, PREDICTIONS
from meguri_inference.models import Models
from meguri_inference.predicting import LoadedModel
from meguri_inference.tracing import Origins

logger = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds before a model that could not be fetched is tried again."""


class Rollouts:
    """Keeps `models` at what the registry says. One load at a time per model; a newer rollout replaces an older load."""

    def __init__(
        self,
        *,
        reader: Reader,
        log: EventLog,
        artifacts: Artifacts,
        models: Models,
        origins: Origins,
        replica: str,
        continue_trace_max_age: float,
    ) -> None:
        self._reader = reader
        self._log = log
        self._artifacts = artifacts
        self._models = models
        self._origins = origins
        self._replica = replica
        self._max_age = continue_trace_max_age
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, str] = {}
        self._unsaid: set[tuple[str, int]] = set()
        """Models and versions that serve, and the log does not know it yet."""
        self._present: set[str] | None = None
        """Models that were rolled out before we came and are not loaded yet; None while these are not known."""

    def loading(self) -> str | None:
        """Which models that were rolled out before we came are not served yet, in words for an operator."""
        if self._present is None:
            return "the present rollouts are not known yet"
        return "; ".join(f"{model} is being loaded" for model in sorted(self._present)) or None

    def failed(self) -> str | None:
        """Which rollouts are not followed, and why. What served before them goes on, so other models are not held up."""
        return "; ".join(self._failed.values()) or None

    async def run(self) -> None:
        """Follow for ever."""
        self._present = await self._rolled_out()
        async for batch in self._reader.present_and_after():
            for msg in batch:
                self._take(Message.read(msg))

    async def _rolled_out(self) -> set[str]:
        """The models that have a rollout at the moment."""
        while True:
            try:
                return await self._log.keys(RolloutChanged.kind())
            except TemporaryError as error:
                logger.warning("the present rollouts cannot be asked for, trying again: %s", error)
                await asyncio.sleep(RETRY)

    def _take(self, message: Message) -> None:
        if before := self._loading.get(message.key):
            before.cancel()
        self._loading[message.key] = asyncio.create_task(self._follow(message))

    async def _follow(self, message: Message) -> None:
        while True:
            try:
                with telemetry.processing(
                    message.kind,
                    [message.context],
                    journey=message.journey,
                    event_id=message.id,
                    prompt=message.age() <= self._max_age,
                    attributes={"nats.stream.sequence": message.sequence},
                ):
                    await self._load(message)
                self._failed.pop(message.key, None)
                self._settled(message.key)
                return
            except TemporaryError as error:
                self._failed[message.key] = f"{message.key} is not loaded yet: {error}"
                logger.warning(self._failed[message.key])
                await asyncio.sleep(RETRY)
            except Exception as error:
                # The old version goes on serving; the next rollout, a rollback perhaps, replaces this one.
                self._failed[message.key] = f"{message.key} cannot be loaded: {error}"
                logger.exception(self._failed[message.key])
                self._settled(message.key)
                return

    def _settled(self, model: str) -> None:
        if self._present:
            self._present.discard(model)

    async def _load(self, message: Message) -> None:
        rollout = message.event
        assert isinstance(rollout, RolloutChanged)
        began, champion = time.perf_counter(), rollout.plan.champion
        serves = (rollout.model, champion.version)
        if not self._models.ready(rollout.model, str(champion.version)):
            onnx = await self._artifacts.get(champion.served)
            with telemetry.tracer.start_as_current_span("load", attributes=telemetry.lineage(rollout)):
                loaded = await asyncio.to_thread(LoadedModel.load, champion, rollout.model, onnx)
            self._models.swap(rollout.model, loaded)
            self._origins.set(rollout.model, message)
            self._unsaid.add(serves)
        # It may serve already, and could not be said.
        if serves in self._unsaid:
            await self._say(message, rollout, time.perf_counter() - began)
            self._unsaid.discard(serves)

    async def _say(self, message: Message, rollout: RolloutChanged, seconds: float) -> None:
        champion = rollout.plan.champion
        logger.info("%s version %d serves after %.3f s", rollout.model, champion.version, seconds)
        said = ModelLoaded(model=rollout.model, version=champion.version, replica=self._replica, seconds=seconds)
        id_ = derived_id(message.id, said.type, self._replica)
        await self._log.append(said, id=id_, cause=message.id, journey=message.journey, hops=message.hops + 1)


class PredictionsOut:
    """Publishes batches of predictions for monitoring, each once however often it is tried."""

    def __init__(self, reader: Reader) -> None:
        self._jetstream = reader.jetstream

    async def publish(self, model: str, body: bytes) -> None:
        """Raises LogUnavailable when the broker did not take it."""
        id_ = hashlib.blake2b(body, digest_size=16).hexdigest()
        with telemetry.sending("predictions", id_, {"meguri.model": model}) as headers:
            await publish(self._jetstream(), PREDICTIONS, f"{PREDICTION_PREFIX}.{model}", body, headers)

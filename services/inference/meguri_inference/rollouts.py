"""Follows the log: every model's traffic plan and what its spec says of logging; loads, swaps, says who serves."""

import asyncio
import logging
import time
from itertools import chain

from meguri_chassis import telemetry
from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import EventLog, Message, publish
from meguri_chassis.reader import Reader
from meguri_contracts.errors import MeguriError, TemporaryError
from meguri_contracts.events import Deployed, ModelLoaded, RolloutChanged, RolloutObserved, SpecApplied
from meguri_contracts.names import derived_id
from meguri_contracts.spec import PredictionLog as Logging
from meguri_contracts.topology import PREDICTION_PREFIX, PREDICTIONS
from meguri_inference.models import Models, Seat, Served
from meguri_inference.observing import Observer
from meguri_inference.predicting import LoadedModel
from meguri_inference.tallies import Tallies
from meguri_inference.tracing import Origins

logger = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds before a model that could not be fetched is tried again."""


class Loader:
    """Fetches versions from the artifact store, where each is checked against its digest, and loads them in a thread."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts

    async def __call__(self, name: str, deployed: Deployed) -> LoadedModel:
        """Raises MeguriError."""
        data = await self._artifacts.get(deployed.served)
        return await asyncio.to_thread(LoadedModel.load, deployed, name, data)


class Rollouts:
    """Keeps `models` at what the registry says. One change at a time per model; a newer plan replaces one that still loads."""

    def __init__(
        self,
        *,
        reader: Reader,
        log: EventLog,
        models: Models,
        tallies: Tallies,
        observer: Observer,
        origins: Origins,
        replica: str,
        continue_trace_max_age: float,
    ) -> None:
        self._reader = reader
        self._log = log
        self._models = models
        self._tallies = tallies
        self._observer = observer
        self._origins = origins
        self._replica = replica
        self._max_age = continue_trace_max_age
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._logging: dict[str, Logging] = {}
        self._failed: dict[str, str] = {}
        self._left_out: dict[str, list[str]] = {}
        """Challengers and shadows that cannot be loaded, by model."""
        self._unsaid: dict[str, set[tuple[int, str]]] = {}
        """Versions and roles that serve, and the log does not know it yet, by model."""
        self._present: set[str] | None = None
        """Models that were rolled out before we came and are not loaded yet; None while these are not known."""

    def loading(self) -> str | None:
        """Which models that were rolled out before we came are not served yet, in words for an operator."""
        if self._present is None:
            return "the present rollouts are not known yet"
        return "; ".join(f"{model} is being loaded" for model in sorted(self._present)) or None

    def failed(self) -> str | None:
        """Which plans are not followed, and why. What served before them goes on, so other models are not held up."""
        return "; ".join([*self._failed.values(), *chain.from_iterable(self._left_out.values())]) or None

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
        if message.kind == SpecApplied.kind():
            self._take_spec(message)
            return
        if before := self._loading.get(message.key):
            before.cancel()
        self._loading[message.key] = asyncio.create_task(self._follow(message))

    def _take_spec(self, message: Message) -> None:
        try:
            spec = message.event
            assert isinstance(spec, SpecApplied)
        except MeguriError as error:
            logger.warning("the spec of %s cannot be read, predictions are logged as before: %s", message.key, error)
            return
        self._logging[message.key] = spec.spec.log
        if message.key in self._models.names:
            self._models.get(message.key).logging = spec.spec.log

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
        began, name = time.perf_counter(), rollout.model
        if name not in self._models.names or self._models.get(name).rollout != message.id:
            served = Served(name, rollout.plan, message.id, self._tallies)
            await self._bring(served, rollout)
            served.logging = self._logging.get(name, served.logging)
            before = self._models.swap(served)
            self._origins.set(name, message)
            self._observer.follow(served, message.journey, message.hops)
            new = _who(served) - (_who(before) if before else set())
            # Who no longer serves need not be said either.
            self._unsaid[name] = (self._unsaid.get(name, set()) | new) & _who(served)
        # They may serve already, and could not be said.
        for version, role in sorted(self._unsaid.get(name, ())):
            await self._say(message, self._models.get(name).version(str(version)), time.perf_counter() - began)
            self._unsaid[name].discard((version, role))

    async def _bring(self, served: Served, rollout: RolloutChanged) -> None:
        """Have the versions of a plan in memory. Raises MeguriError when the champion cannot be; others are left out then."""
        self._left_out[served.name] = []
        with telemetry.tracer.start_as_current_span("load", attributes=telemetry.lineage(rollout)):
            await self._models.loaded(served.name, served.champion.deployed)
            for seat in served.seats[1:]:
                try:
                    if not seat.codec.same_features(served.champion.codec):
                        raise Unlike(seat)
                    await self._models.loaded(served.name, seat.deployed)
                except TemporaryError:
                    raise
                except MeguriError as error:
                    served.leave_out(seat)
                    left_out = f"{seat.role} version {seat.version} of {served.name} is left out: {error}"
                    self._left_out[served.name].append(left_out)
                    logger.error(left_out)

    async def _say(self, message: Message, seat: Seat, seconds: float) -> None:
        logger.info("%s version %d serves as %s after %.3f s", seat.name, seat.version, seat.role, seconds)
        said = ModelLoaded(
            model=seat.name, version=seat.version, role=seat.role, replica=self._replica, seconds=seconds
        )
        id_ = derived_id(message.id, said.type, self._replica, str(seat.version))
        await self._log.append(said, id=id_, cause=message.id, journey=message.journey, hops=message.hops + 1)


class Unlike(MeguriError):
    def __init__(self, seat: Seat) -> None:
        super().__init__(f"version {seat.version} takes other features than the champion; it can only be promoted")


class Reports:
    """Appends what was observed of rollouts to the log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def say(self, said: RolloutObserved, journey: str, hops: int) -> None:
        """Raises MeguriError."""
        id_ = derived_id(said.rollout, said.type, said.identity)
        # What clients asked comes from outside: the steps of a canary are no loop.
        await self._log.append(said, id=id_, cause=said.rollout, journey=journey, hops=hops)


class PredictionsOut:
    """Publishes batches of predictions for monitoring, each once however often it is tried."""

    def __init__(self, reader: Reader) -> None:
        self._jetstream = reader.jetstream

    async def publish(self, model: str, id_: str, body: bytes) -> None:
        """Raises LogUnavailable when the broker did not take it; under the same id it is taken once."""
        with telemetry.sending("predictions", id_, {"meguri.model": model}) as headers:
            await publish(self._jetstream(), PREDICTIONS, f"{PREDICTION_PREFIX}.{model}", body, headers)


def _who(served: Served) -> set[tuple[int, str]]:
    return {(seat.version, seat.role) for seat in served.seats}

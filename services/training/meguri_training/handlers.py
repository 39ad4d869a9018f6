"""Events in, events out: when to train, and the training itself."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from sqlmodel import Session

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import hears
from meguri_chassis.deciding import Decider
from meguri_chassis.log import Message, MovedOn
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import PermanentError
from meguri_contracts.events import (
    OPENINGS,
    ApprovalRequested,
    DataCommitted,
    Deployed,
    Evaluation,
    Event,
    LoopBroken,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingRequested,
    TrainingStarted,
)
from meguri_training import runs, store
from meguri_training.fitting import Champion, Fitted, Job
from meguri_training.workers import WorkerDied, Workers

logger = logging.getLogger(__name__)


class Starter:
    """Starts the runs that are due, and breaks loops of more than `max_hops` reactions."""

    def __init__(self, decider: Decider, max_hops: int) -> None:
        self._decider = decider
        self._max_hops = max_hops
        self._awaited: set[str] = set()
        """Models whose storm somebody here waits out."""

    @hears(
        SpecApplied,
        TrainingRequested,
        *OPENINGS,
        TrainingFailed,
        RolloutChanged,
        PromotionRejected,
        ApprovalRequested,
    )
    async def look_at_model(self, event: Event, message: Message) -> None:
        """Something changed about a model, or its last run has its verdict: is a run due?"""
        await self._look(message, lambda session: [store.model(session, event.key)])

    @hears(DataCommitted)
    async def look_at_models_on(self, committed: DataCommitted, message: Message) -> None:
        """New rows: is a run due for any model that learns from them?"""
        await self._look(message, lambda session: store.models_on(session, committed.dataset))

    async def _look(self, message: Message, models: Callable[[Session], list[runs.Model]]) -> None:
        while stormy := await self._start(message, models):
            # Whoever waits already decides on these rows too; its message comes again if this process dies.
            if not (alone := stormy - self._awaited):
                return
            self._awaited |= alone
            try:
                await asyncio.sleep(runs.QUIET)
            finally:
                self._awaited -= alone

    async def _start(self, message: Message, models: Callable[[Session], list[runs.Model]]) -> set[str]:
        """Start what is due, and return the models whose run is better begun when their storm is over."""
        stormy: set[str] = set()

        def due(session: Session) -> Sequence[Event]:
            looked = [(model, self._decide(model, session)) for model in models(session)]
            now = datetime.now(UTC)
            stormy.clear()
            stormy.update(model.name for model, events in looked if events and runs.is_stormy(model, now))
            return [event for model, events in looked if model.name not in stormy for event in events]

        await self._decider.carry_out(
            due, cause=message.id, journey=message.journey, after=message.sequence, hops=message.hops
        )
        return stormy

    def _decide(self, model: runs.Model, session: Session) -> Sequence[Event]:
        decided = runs.decide(model, store.data(session, model), self._max_hops)
        return [_with_chain(event, session) if isinstance(event, LoopBroken) else event for event in decided]


def _with_chain(broken: LoopBroken, session: Session) -> LoopBroken:
    chain = store.causes(session, runs.freshest(broken.triggers).event)
    return broken.model_copy(update={"chain": chain})


class Fitter:
    """Does the fits that were started, each until it has ended once."""

    def __init__(
        self,
        *,
        decider: Decider,
        database: Database,
        projection: Projection,
        artifacts: Artifacts,
        workers: Workers,
        data_url: str,
        tries: int,
    ) -> None:
        self._decider = decider
        self._database = database
        self._projection = projection
        self._artifacts = artifacts
        self._workers = workers
        self._data_url = data_url
        self._tries = tries

    @hears(TrainingStarted)
    async def fit(self, started: TrainingStarted, message: Message) -> None:
        """Fit in a worker process, keep the files, say what came of it. Silence if the run has ended already."""
        await self._projection.reached(message.sequence)
        if await self._database.ask(lambda session: store.has_ended(session, started.run)):
            return
        try:
            fitted = await self._workers.fit(await self._job(started))
            event: Event = await self._trained(started, fitted)
        except WorkerDied as error:
            if message.deliveries < self._tries:
                raise
            event = self._failed(started, f"{error}; tried {message.deliveries} times")
        except PermanentError as error:
            event = self._failed(started, str(error))
        await self._say(event, started.run, message)

    async def _say(self, event: Event, run: str, message: Message) -> None:
        """Append the outcome of a run, unless it has one: of replicas that did the same fit, however late, one is heard."""

        def outcome(session: Session) -> Sequence[Event]:
            return [] if store.has_ended(session, run) else [event]

        while True:
            try:
                said = await self._decider.carry_out(
                    outcome, cause=message.id, journey=message.journey, after=message.sequence, hops=message.hops
                )
            except MovedOn as error:
                # A fit is not done again because others talk much about the same key.
                logger.warning("the outcome of run %s has to wait: %s", run, error)
            else:
                if not said:
                    logger.info("run %s has ended meanwhile: what came of it here is not said", run)
                return

    async def _job(self, started: TrainingStarted) -> Job:
        return Job(
            run=started.run,
            spec=started.spec,
            table_uri=f"{self._data_url}/{started.spec.dataset.name}",
            dataset_version=started.dataset_version,
            champion=await self._champion(started.champion) if started.champion else None,
        )

    async def _champion(self, deployed: Deployed) -> Champion:
        return Champion(deployed.engine, await self._artifacts.get(deployed.served), deployed.signature)

    async def _trained(self, started: TrainingStarted, fitted: Fitted) -> ModelTrained:
        return ModelTrained(
            model=started.model,
            run=started.run,
            spec_version=started.spec_version,
            dataset=started.spec.dataset.name,
            dataset_version=started.dataset_version,
            dataset_digest=started.dataset_digest,
            train_rows=fitted.train_rows,
            holdout_rows=fitted.holdout_rows,
            candidate=Evaluation(version=0, metrics=fitted.candidate),
            champion=_of_champion(started.champion, fitted.champion),
            onnx=await self._artifacts.put(fitted.onnx) if fitted.onnx is not None else None,
            skops=await self._artifacts.put(fitted.skops),
            profile=await self._artifacts.put(fitted.profile),
            signature=fitted.signature,
            parity=fitted.parity,
            engine=fitted.engine,
            engine_reason=fitted.engine_reason,
            environment=fitted.environment,
            seconds=fitted.seconds,
            fit_seconds=fitted.fit_seconds,
        )

    def _failed(self, started: TrainingStarted, reason: str) -> TrainingFailed:
        return TrainingFailed(model=started.model, run=started.run, reason=reason)


def _of_champion(champion: Deployed | None, metrics: dict[str, float] | None) -> Evaluation | None:
    return Evaluation(version=champion.version, metrics=metrics) if champion and metrics else None

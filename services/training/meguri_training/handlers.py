"""Events in, events out: when to train, and the training itself."""

from collections.abc import Sequence

from sqlmodel import Session

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import hears
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import PermanentError
from meguri_contracts.events import (
    ApprovalRequested,
    DataCommitted,
    Deployed,
    DriftDetected,
    Evaluation,
    Event,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingRequested,
    TrainingStarted,
)
from meguri_contracts.names import derived_id
from meguri_training import runs, store
from meguri_training.fitting import Fitted, Job
from meguri_training.workers import WorkerDied, Workers


@hears(
    SpecApplied,
    TrainingRequested,
    DriftDetected,
    TrainingFailed,
    RolloutChanged,
    PromotionRejected,
    ApprovalRequested,
)
def look_at_model(event: Event, session: Session) -> Sequence[Event]:
    """Something changed about a model, or its last run has its verdict: is a run due?"""
    model = store.model(session, event.key)
    return runs.decide(model, store.data(session, model))


@hears(DataCommitted)
def look_at_models_on(committed: DataCommitted, session: Session) -> Sequence[Event]:
    """New rows: is a run due for any model that learns from them?"""
    models = store.models_on(session, committed.dataset)
    return [event for model in models for event in runs.decide(model, store.data(session, model))]


class Fitter:
    """Does the fits that were started, each until it has ended once."""

    def __init__(
        self,
        *,
        log: EventLog,
        database: Database,
        projection: Projection,
        artifacts: Artifacts,
        workers: Workers,
        data_url: str,
        tries: int,
    ) -> None:
        self._log = log
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
        with self._database.read() as session:
            if store.has_ended(session, started.run):
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
        # Both outcomes have one id, so that of two replicas that did the same fit only one is heard.
        outcome = derived_id(started.run, "outcome")
        await self._log.append(event, id=outcome, cause=message.id, journey=message.journey)

    async def _job(self, started: TrainingStarted) -> Job:
        champion = started.champion
        return Job(
            run=started.run,
            spec=started.spec,
            table_uri=f"{self._data_url}/{started.spec.dataset.name}",
            dataset_version=started.dataset_version,
            champion_onnx=await self._artifacts.get(champion.onnx) if champion else None,
            champion_signature=champion.signature if champion else None,
        )

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
            onnx=await self._artifacts.put(fitted.onnx),
            skops=await self._artifacts.put(fitted.skops),
            profile=await self._artifacts.put(fitted.profile),
            signature=fitted.signature,
            parity=fitted.parity,
            environment=fitted.environment,
            seconds=fitted.seconds,
            fit_seconds=fitted.fit_seconds,
        )

    def _failed(self, started: TrainingStarted, reason: str) -> TrainingFailed:
        return TrainingFailed(model=started.model, run=started.run, reason=reason)


def _of_champion(champion: Deployed | None, metrics: dict[str, float] | None) -> Evaluation | None:
    return Evaluation(version=champion.version, metrics=metrics) if champion and metrics else None

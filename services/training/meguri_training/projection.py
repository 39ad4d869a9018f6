"""Events into the tables of training."""

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import (
    OPENINGS,
    ApprovalRequested,
    DataCommitted,
    EpisodeResolved,
    Event,
    LoopBroken,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
    TrainingFailed,
    TrainingPostponed,
    TrainingRequested,
    TrainingStarted,
)
from meguri_training import runs, store

HEARS = (
    SpecApplied,
    DataCommitted,
    TrainingRequested,
    TrainingStarted,
    ModelTrained,
    TrainingFailed,
    LoopBroken,
    RolloutChanged,
    PromotionRejected,
    ApprovalRequested,
    *OPENINGS,
    EpisodeResolved,
    TrainingPostponed,
)


def evolve(session: Session, event: Event, message: Message) -> None:
    if isinstance(event, DataCommitted):
        data = runs.Data(version=event.version, digest=event.digest, total_rows=event.total_rows)
        session.merge(store.DatasetRow(name=event.dataset, state=data.model_dump(mode="json")))
        models = store.models_on(session, event.dataset)
    else:
        models = [store.model(session, event.key)]
    for model in models:
        after = runs.evolve(model, event, message.id, message.time, message.hops)
        dataset = after.spec.dataset.name if after.spec else None
        session.merge(store.ModelRow(name=after.name, dataset=dataset, state=after.model_dump(mode="json")))
    if isinstance(event, TrainingStarted):
        session.merge(store.run_row(event))
    if isinstance(event, ModelTrained | TrainingFailed):
        session.merge(store.EndedRow(run=event.run))

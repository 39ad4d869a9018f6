"""Events into the tables of the registry."""

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import (
    ApprovalRequested,
    DataCommitted,
    Event,
    LoopBroken,
    ModelLoaded,
    ModelRegistered,
    ModelTrained,
    Plan,
    PromotionRejected,
    QualityMeasured,
    RolloutChanged,
    RolloutObserved,
    SpecApplied,
    TrainingFailed,
    TrainingRequested,
    TrainingStarted,
)
from meguri_registry import batches, models, rollouts, store

HEARS = (
    DataCommitted,
    SpecApplied,
    TrainingRequested,
    TrainingStarted,
    ModelTrained,
    TrainingFailed,
    LoopBroken,
    ModelRegistered,
    PromotionRejected,
    ApprovalRequested,
    RolloutChanged,
    ModelLoaded,
    RolloutObserved,
    QualityMeasured,
    *batches.HEARS,
)


def evolve(session: Session, event: Event, message: Message) -> None:
    if isinstance(event, batches.HEARS):
        batches.evolve(session, event, message)
        return
    plan = None
    if event.key_field == "model":
        before = store.model(session, event.key)
        plan, model = before.plan, models.evolve(before, event, message.id, message.time)
        session.merge(store.ModelRow(name=model.name, state=model.model_dump(mode="json")))
    match event:
        case DataCommitted():
            _record_dataset_version(session, event, message)
        case SpecApplied():
            _record_spec(session, event, message)
        case TrainingStarted():
            _record_run(session, event, message)
        case ModelTrained():
            _record_training(session, event, message)
        case TrainingFailed():
            _end_run(session, event.run, "failed", event.reason)
        case ModelRegistered():
            _record(session, event.model, event.run, version=event.version)
        case PromotionRejected() | ApprovalRequested():
            verdict = "rejected" if isinstance(event, PromotionRejected) else "approval requested"
            judged = [one.model_dump(mode="json") for one in event.judged]
            _record(session, event.model, event.run, verdict=verdict, reason=event.reason, judged=judged)
        case RolloutChanged():
            _record_rollout(session, event, message, plan)


def _record_dataset_version(session: Session, event: DataCommitted, message: Message) -> None:
    session.merge(
        store.DatasetVersionRow(
            dataset=event.dataset,
            version=event.version,
            digest=event.digest,
            rows=event.rows,
            total_rows=event.total_rows,
            time=message.time,
        )
    )
    for part in event.events:
        session.merge(store.ContributionRow(dataset=event.dataset, version=event.version, **part.model_dump()))


def _record_spec(session: Session, event: SpecApplied, message: Message) -> None:
    spec = event.spec.model_dump(mode="json")
    session.merge(
        store.SpecRow(
            model=event.model,
            version=event.version,
            digest=event.digest,
            spec=spec,
            actor=event.actor,
            time=message.time,
        )
    )


def _record_run(session: Session, event: TrainingStarted, message: Message) -> None:
    if session.get(store.RunRow, event.run) is None:
        session.add(
            store.RunRow(
                run=event.run,
                model=event.model,
                status="running",
                triggers=[trigger.model_dump() for trigger in event.triggers],
                dataset=event.spec.dataset.name,
                dataset_version=event.dataset_version,
                started=message.time,
            )
        )


def _record_training(session: Session, event: ModelTrained, message: Message) -> None:
    _end_run(session, event.run, "trained")
    if session.get(store.VersionRow, (event.model, event.run)) is None:
        trained = event.model_dump(mode="json")
        session.add(
            store.VersionRow(
                model=event.model, run=event.run, judged=[], trained=trained, event=message.id, time=message.time
            )
        )


def _end_run(session: Session, run: str, status: str, reason: str = "") -> None:
    if (row := session.get(store.RunRow, run)) and row.status == "running":
        row.status, row.reason = status, reason
        session.add(row)


def _record(session: Session, model: str, run: str, **changes: object) -> None:
    if row := session.get(store.VersionRow, (model, run)):
        for name, value in changes.items():
            setattr(row, name, value)
        session.add(row)


def _record_rollout(session: Session, event: RolloutChanged, message: Message, before: Plan | None) -> None:
    plan, shares = event.plan, rollouts.shares(event.plan)
    roles = rollouts.roles(plan)
    session.add(
        store.RolloutRow(
            sequence=message.sequence,
            model=event.model,
            version=plan.champion.version,
            previous=event.previous,
            roles=[{"version": version, "role": roles[version], "share": shares[version]} for version in shares],
            reason=event.reason,
            actor=event.actor,
            time=message.time,
        )
    )
    judged = [one.model_dump(mode="json") for one in event.judged]
    runs = {one.version: one.run for one in (*(before.deployed if before else ()), *plan.deployed)}
    for version, verdict in rollouts.verdicts(before, plan).items():
        changes: dict[str, object] = {"verdict": verdict, "reason": event.reason}
        _record(
            session, event.model, runs[version], **changes | ({"judged": judged} if judged and version in roles else {})
        )
    for version in rollouts.shadowed(before, plan):
        row = session.get(store.VersionRow, (event.model, runs[version]))
        # What was said of it before stays: a rejected version may be looked at as a shadow.
        if row and row.verdict == store.NONE_YET:
            _record(session, event.model, row.run, verdict="shadow", reason=event.reason, judged=judged)

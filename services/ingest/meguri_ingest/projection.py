"""Events into the tables of ingest."""

from sqlmodel import Session

from meguri_chassis.log import Message
from meguri_contracts.events import (
    ApprovalRequested,
    DataArrived,
    DataCommitted,
    DataRejected,
    Event,
    ModelRegistered,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
)
from meguri_ingest.store import DatasetRow, ReceiptRow, UseRow, VersionRow

HEARS = (
    SpecApplied,
    DataArrived,
    DataCommitted,
    DataRejected,
    ModelTrained,
    ModelRegistered,
    PromotionRejected,
    ApprovalRequested,
    RolloutChanged,
)


def evolve(session: Session, event: Event, message: Message) -> None:
    match event:
        case SpecApplied(spec=spec):
            session.merge(DatasetRow(name=spec.dataset.name, declared=spec.dataset.model_dump(mode="json")))
        case DataArrived():
            _open_receipt(session, event, message)
        case DataCommitted():
            _commit(session, event, message)
        case DataRejected():
            row = _receipt(session, event.event, event.dataset, event.producer, message)
            # Its id may have been that of another arrival, whose receipt stands.
            if row.status == "waiting" and row.is_of(event.dataset, event.producer):
                row.status, row.reason = "rejected", event.reason
        case ModelTrained():
            if session.get(UseRow, event.run) is None:
                use = UseRow(
                    run=event.run, model=event.model, dataset=event.dataset, dataset_version=event.dataset_version
                )
                session.add(use)
        case ModelRegistered():
            _use(session, event.run, model_version=event.version)
        case PromotionRejected():
            _use(session, event.run, verdict="rejected")
        case ApprovalRequested():
            _use(session, event.run, verdict="approval requested")
        case RolloutChanged():
            _use(session, event.plan.champion.run, verdict="promoted")


def _open_receipt(session: Session, event: DataArrived, message: Message) -> None:
    if session.get(ReceiptRow, message.id) is None:
        _receipt(session, message.id, event.dataset, message.source, message)


def _commit(session: Session, event: DataCommitted, message: Message) -> None:
    session.merge(
        VersionRow(
            dataset=event.dataset,
            version=event.version,
            digest=event.digest,
            rows=event.rows,
            total_rows=event.total_rows,
            time=message.time,
        )
    )
    for part in event.events:
        row = _receipt(session, part.event, event.dataset, part.producer, message)
        row.status, row.dataset_version = "committed", event.version
        row.rows, row.quarantined = part.rows, part.quarantined


def _receipt(session: Session, event: str, dataset: str, producer: str, message: Message) -> ReceiptRow:
    """The receipt of an event, opened now if the event itself could not be read."""
    row = session.get(ReceiptRow, event)
    if row is None:
        row = ReceiptRow(
            event=event, dataset=dataset, producer=producer, sequence=message.sequence, arrived=message.time
        )
    session.add(row)
    return row


def _use(session: Session, run: str, **changes: object) -> None:
    if row := session.get(UseRow, run):
        for name, value in changes.items():
            setattr(row, name, value)
        session.add(row)

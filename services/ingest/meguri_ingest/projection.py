"""Events into the tables of ingest."""

from sqlmodel import Session, col, select

from meguri_chassis.log import Message
from meguri_contracts.events import (
    ApprovalRequested,
    DataArrived,
    DataCommitted,
    DataRejected,
    Event,
    MessageParked,
    MessageRedriven,
    ModelRegistered,
    ModelTrained,
    PromotionRejected,
    RolloutChanged,
    SpecApplied,
)
from meguri_contracts.names import MAX_ID_LENGTH
from meguri_contracts.topology import INGEST_ARRIVALS, LOG, subject
from meguri_ingest.store import NONE_YET, DatasetRow, ReceiptRow, UseRow, VersionRow

TRIED = ("canary", "A/B test")
"""Verdicts on a run whose version answers a part of the requests."""

HEARS = (
    SpecApplied,
    DataArrived,
    DataCommitted,
    DataRejected,
    MessageParked,
    MessageRedriven,
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
            _reject(session, event, message)
        case MessageParked() if _is_arrival(event):
            _park(session, event, message)
        case MessageRedriven() if _is_arrival(event):
            _send_back(session, event)
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
            _follow(session, event)


def _open_receipt(session: Session, event: DataArrived, message: Message) -> None:
    row = _receipt(session, message.id, event.dataset, message.source, message)
    # An id belongs to the first arrival that can be read; what could not be read under it only opened the receipt.
    if not row.is_settled:
        row.dataset, row.producer = event.dataset, message.source
        row.sequence, row.arrived = message.sequence, message.time
        row.status, row.reason, row.letter = "waiting", "", None


def _reject(session: Session, event: DataRejected, message: Message) -> None:
    row = _receipt(session, event.event, event.dataset, event.producer, message)
    # Its id may have been that of another arrival, whose receipt stands.
    if not row.is_settled and row.is_of(event.dataset, event.producer):
        row.status, row.reason = "rejected", event.reason


def _is_arrival(event: MessageParked | MessageRedriven) -> bool:
    return (event.consumer, event.stream) == (INGEST_ARRIVALS.name, LOG)


def _park(session: Session, event: MessageParked, message: Message) -> None:
    dataset = event.subject.removeprefix(f"{subject(DataArrived.kind(), '')}.")[:MAX_ID_LENGTH]
    is_new = session.get(ReceiptRow, event.event) is None
    row = _receipt(session, event.event, dataset, event.producer, message)
    if is_new:
        row.sequence = event.sequence
    # What is parked under a used id says nothing about the arrival that has the receipt, unless that was sent back as this.
    is_its_own = row.sequence == event.sequence or row.letter is not None
    if is_its_own and not row.is_settled and row.is_of(dataset, event.producer):
        row.status, row.reason, row.letter = "parked", event.reason, event.sequence


def _send_back(session: Session, event: MessageRedriven) -> None:
    row = session.get(ReceiptRow, event.event)
    if row and row.status == "parked" and row.letter == event.sequence:
        if event.sent:
            row.status, row.reason = "rejected", f"put right by {event.actor} and sent as event {event.sent}"
        else:
            row.status, row.reason = "waiting", f"sent back by {event.actor}"
        session.add(row)


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
        row.status, row.reason, row.dataset_version = "committed", "", event.version
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


def _follow(session: Session, event: RolloutChanged) -> None:
    plan = event.plan
    tried = {arm.candidate.run: "A/B test" for arm in (plan.trial.arms if plan.trial else ())}
    tried |= {plan.canary.candidate.run: "canary"} if plan.canary else {}
    for use in session.exec(select(UseRow).where(UseRow.model == event.model, col(UseRow.verdict).in_(TRIED))).all():
        if use.run not in tried:
            _use(session, use.run, verdict="taken back")
    for shadow in plan.shadows:
        if (row := session.get(UseRow, shadow.candidate.run)) and row.verdict == NONE_YET:
            _use(session, row.run, verdict="shadow")
    for run, verdict in (tried | {plan.champion.run: "promoted"}).items():
        _use(session, run, verdict=verdict)


def _use(session: Session, run: str, **changes: object) -> None:
    if row := session.get(UseRow, run):
        for name, value in changes.items():
            setattr(row, name, value)
        session.add(row)

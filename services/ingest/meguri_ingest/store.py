"""Tables of ingest: declared datasets, their versions, and a receipt for every event."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime
from sqlmodel import Field, Session, SQLModel, col, func, select

from meguri_chassis import projection
from meguri_chassis.projection import as_message, recorded
from meguri_chassis.store import BIG, JournalEntry
from meguri_contracts.errors import NotFound
from meguri_contracts.events import DataArrived
from meguri_contracts.spec import Dataset


class NoReceipt(NotFound):
    def __init__(self, event: str) -> None:
        super().__init__(
            f"no event {event!r} was heard: compare the id with the one that was sent (ce-id or Nats-Msg-Id)"
        )


class DatasetRow(SQLModel, table=True):
    __tablename__ = "ingest_dataset"

    name: str = Field(primary_key=True)
    declared: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class VersionRow(SQLModel, table=True):
    __tablename__ = "ingest_version"

    dataset: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    digest: str
    rows: int
    total_rows: int
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class ReceiptRow(SQLModel, table=True):
    """What became of an arrival: waiting, committed, rejected, or parked until somebody puts it right."""

    __tablename__ = "ingest_receipt"

    event: str = Field(primary_key=True)
    dataset: str = Field(index=True)
    producer: str
    status: str = "waiting"
    reason: str = ""
    sequence: int = Field(sa_column=Column(BIG, nullable=False))
    arrived: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    dataset_version: int | None = None
    rows: int = 0
    quarantined: int = 0
    letter: int | None = Field(default=None, sa_column=Column(BIG, nullable=True))
    """Sequence of the message that was parked last, also after it was sent back."""

    @property
    def is_settled(self) -> bool:
        """Whether this is the last word."""
        return self.status in ("committed", "rejected")

    def is_of(self, dataset: str, producer: str) -> bool:
        """Whether an arrival with this id is the same one, or another one that took a used id."""
        return (self.dataset, self.producer) == (dataset, producer)


NONE_YET = "none yet"


class UseRow(SQLModel, table=True):
    """A run that was trained on a dataset version, with the model version that came of it."""

    __tablename__ = "ingest_use"

    run: str = Field(primary_key=True)
    model: str
    model_version: int | None = None
    verdict: str = NONE_YET
    """none yet, rejected, approval requested, shadow, canary, A/B test, promoted, taken back."""
    dataset: str = Field(index=True)
    dataset_version: int


TABLES = (DatasetRow, VersionRow, ReceiptRow, UseRow)
"""What follows from the log."""


def declared(session: Session, name: str) -> Dataset:
    """Return a dataset as a spec declares it. Raises NotFound that names the known ones."""
    row = session.get(DatasetRow, name)
    if row is None:
        known = ", ".join(sorted(session.exec(select(DatasetRow.name)))) or "none"
        raise NotFound(
            f"unknown dataset {name!r}: no applied model spec declares it (declared are: {known}); "
            "apply one with `meguri apply SPEC` and send the data again"
        )
    return Dataset.model_validate(row.declared)


def last_version(session: Session, dataset: str) -> int | None:
    """Return the newest version that was said, None before the first."""
    return session.exec(select(func.max(VersionRow.version)).where(VersionRow.dataset == dataset)).one()


def known(session: Session, events: Collection[str]) -> dict[str, ReceiptRow]:
    """Return the receipts of those of the events that have one."""
    query = select(ReceiptRow).where(col(ReceiptRow.event).in_(events))
    return {row.event: row for row in session.exec(query)}


def receipt(session: Session, event: str) -> ReceiptRow | None:
    """Return the receipt of an event, None if it was not heard."""
    return session.get(ReceiptRow, event)


def sent(session: Session, event: str) -> Sequence[JournalEntry]:
    """Return every arrival with an id as the log has it, oldest first."""
    query = select(JournalEntry).where(JournalEntry.event_id == event, JournalEntry.kind == DataArrived.kind())
    return session.exec(query.order_by(col(JournalEntry.sequence))).all()


def arrivals_between(session: Session, after: int, until: int) -> int:
    """Return how many arrivals the log has after a sequence and up to another."""
    query = select(func.count()).select_from(JournalEntry).where(JournalEntry.kind == DataArrived.kind())
    return session.exec(query.where(col(JournalEntry.sequence) > after, col(JournalEntry.sequence) <= until)).one()


def hops(session: Session, events: Sequence[str]) -> int:
    """Return how many reactions lie between what follows from these arrivals and what came from outside."""
    return 1 + min((_hops(session, event) for event in events), default=0)


def _hops(session: Session, event: str) -> int:
    entry = recorded(session, event)
    message = as_message(entry) if entry else None
    if message is None or message.hops or message.cause in ("", message.id):
        return message.hops if message else 0
    before = projection.hops(session, message.cause)
    return 0 if before is None else before + 1


def receipts(session: Session, dataset: str | None, status: str | None, limit: int) -> Sequence[ReceiptRow]:
    """Return the newest receipts."""
    query = select(ReceiptRow)
    if dataset:
        query = query.where(ReceiptRow.dataset == dataset)
    if status:
        query = query.where(ReceiptRow.status == status)
    return session.exec(query.order_by(col(ReceiptRow.sequence).desc()).limit(limit)).all()


def uses(session: Session, row: ReceiptRow) -> Sequence[UseRow]:
    """Return the runs that were trained on a version that holds the event."""
    if row.dataset_version is None:
        return []
    query = select(UseRow).where(UseRow.dataset == row.dataset, UseRow.dataset_version >= row.dataset_version)
    return session.exec(query.order_by(UseRow.model, col(UseRow.model_version))).all()


def versions(session: Session, dataset: str) -> Sequence[VersionRow]:
    query = select(VersionRow).where(VersionRow.dataset == dataset)
    return session.exec(query.order_by(col(VersionRow.version).desc())).all()

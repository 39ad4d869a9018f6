"""Labels as they arrived, of predictions and of entities, and which prediction each of an entity is about."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, DateTime, Float, Index, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG, utc

AT_ONCE = 5000
"""Ids that a statement names at most."""
Key = tuple[str, datetime]
"""An entity, and the time as of which its label is."""


class LabelRow(SQLModel, table=True):
    """The truth about a prediction, whether that is known yet or not; of several labels the one that stands last in the log."""

    __tablename__ = "monitoring_label"
    __table_args__ = (Index("ix_monitoring_label_sequence", "model", "sequence"),)

    model: str = Field(primary_key=True)
    prediction_id: str = Field(primary_key=True)
    text: str
    number: float | None = Field(sa_column=Column(Float, nullable=True))
    """The label as a number, if it is one."""
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    sequence: int = Field(sa_column=Column(BIG, nullable=False))
    """In the log."""


class EntityLabelRow(SQLModel, table=True):
    """The truth about an entity as of a time; of several labels the one that stands last in the log."""

    __tablename__ = "monitoring_entity_label"
    __table_args__ = (Index("ix_monitoring_entity_label_sequence", "model", "sequence"),)

    model: str = Field(primary_key=True)
    entity: str = Field(primary_key=True)
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    text: str
    number: float | None = Field(sa_column=Column(Float, nullable=True))
    sequence: int = Field(sa_column=Column(BIG, nullable=False))


class MeantRow(SQLModel, table=True):
    """The prediction that a label of an entity is about, as far as predictions are known."""

    __tablename__ = "monitoring_meant"
    __table_args__ = (Index("ix_monitoring_meant_prediction", "model", "prediction_id"),)

    model: str = Field(primary_key=True)
    entity: str = Field(primary_key=True)
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), primary_key=True))
    prediction_id: str
    answered: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


TABLES = (LabelRow, EntityLabelRow)
"""What follows from the log."""


@dataclass(frozen=True)
class Truth:
    """A label. Of several about one prediction the last in the log counts; in one event that of the prediction itself, then
    that of the latest time.
    """

    text: str
    number: float | None
    sequence: int
    time: datetime | None = None
    """Of an entity's label."""

    @property
    def rank(self) -> tuple[int, bool, datetime | None]:
        return self.sequence, self.time is None, self.time


@dataclass(frozen=True)
class Meant:
    """The prediction that a label of an entity is about, and when it was made."""

    prediction_id: str
    answered: datetime

    @property
    def rank(self) -> tuple[datetime, str]:
        return self.answered, self.prediction_id


@dataclass(frozen=True)
class Arrived:
    """Labels after one sequence of the log, up to another."""

    ids: frozenset[str]
    entities: frozenset[Key]
    last: int


def keep_labels(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep labels of one of `TABLES`, no two of them of the same, in place of earlier ones."""
    if rows:
        _upsert(session, table, rows)


def latest_label(session: Session, model: str) -> int:
    """Return the sequence in the log of the last label of a model; 0 when there is none."""
    found = (session.exec(select(func.max(table.sequence)).where(table.model == model)).one() for table in TABLES)
    return max(sequence or 0 for sequence in found)


def count(session: Session, model: str, after: int) -> int:
    """Return how many labels of a model came after a sequence of the log."""
    queries = (
        select(func.count()).select_from(table).where(table.model == model, col(table.sequence) > after)
        for table in TABLES
    )
    return sum(session.exec(query).one() for query in queries)


def arrived(session: Session, model: str, after: int, at_most: int) -> Arrived:
    """Return the labels that stand next after a sequence: those of at least one event, of more up to about `at_most`."""
    ends = [_end(session, table, model, after, at_most) for table in TABLES]
    last = min((end for end in ends if end), default=after)
    ids = select(LabelRow.prediction_id).where(
        LabelRow.model == model, col(LabelRow.sequence) > after, col(LabelRow.sequence) <= last
    )
    entities = select(EntityLabelRow.entity, EntityLabelRow.time).where(
        EntityLabelRow.model == model, col(EntityLabelRow.sequence) > after, col(EntityLabelRow.sequence) <= last
    )
    keys = ((entity, utc(time)) for entity, time in session.exec(entities))
    return Arrived(frozenset(session.exec(ids)), frozenset(keys), last)


def labelled(session: Session, model: str, ids: Iterable[str]) -> set[str]:
    """Return those of the prediction ids that a label is of."""
    found: set[str] = set()
    for part in parts_of(ids):
        query = select(LabelRow.prediction_id).where(LabelRow.model == model, col(LabelRow.prediction_id).in_(part))
        found.update(session.exec(query))
    return found


def of_entities(session: Session, model: str, entities: Iterable[str], since: datetime) -> set[Key]:
    """Return the labels of entities as of a time or later."""
    keys: set[Key] = set()
    for part in parts_of(entities):
        query = select(EntityLabelRow.entity, EntityLabelRow.time).where(
            EntityLabelRow.model == model, col(EntityLabelRow.entity).in_(part), col(EntityLabelRow.time) >= since
        )
        keys.update((entity, utc(time)) for entity, time in session.exec(query))
    return keys


def meant(session: Session, model: str, keys: Collection[Key]) -> dict[Key, Meant]:
    """Return the predictions that labels of entities are about, as far as that was found out."""
    found: dict[Key, Meant] = {}
    for part in parts_of({entity for entity, _ in keys}):
        query = select(MeantRow).where(MeantRow.model == model, col(MeantRow.entity).in_(part))
        for row in session.exec(query):
            if (key := (row.entity, utc(row.time))) in keys:
                found[key] = Meant(row.prediction_id, utc(row.answered))
    return found


def keep_meant(session: Session, model: str, found: Mapping[Key, Meant]) -> None:
    rows = [
        {"model": model, "entity": entity, "time": time, "prediction_id": one.prediction_id, "answered": one.answered}
        for (entity, time), one in found.items()
    ]
    if rows:
        _upsert(session, MeantRow, rows)


def truths(session: Session, model: str, ids: Collection[str], moved: Mapping[Key, Meant]) -> dict[str, Truth]:
    """Return by prediction id the label that counts; `moved` are labels of entities that are about another one now."""
    found: dict[str, Truth] = {}
    for id_, truth in _candidates(session, model, ids, moved):
        if id_ in ids and (id_ not in found or truth.rank > found[id_].rank):
            found[id_] = truth
    return found


def parts_of(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in parts that one statement can name."""
    ordered = sorted(texts)
    for start in range(0, len(ordered), AT_ONCE):
        yield ordered[start : start + AT_ONCE]


def _candidates(
    session: Session, model: str, ids: Collection[str], moved: Mapping[Key, Meant]
) -> Iterator[tuple[str, Truth]]:
    for part in parts_of(ids):
        query = select(LabelRow).where(LabelRow.model == model, col(LabelRow.prediction_id).in_(part))
        for row in session.exec(query):
            yield row.prediction_id, Truth(row.text, row.number, row.sequence)
        same = (
            MeantRow.model == EntityLabelRow.model,
            MeantRow.entity == EntityLabelRow.entity,
            MeantRow.time == EntityLabelRow.time,
        )
        of_entity = select(EntityLabelRow, MeantRow.prediction_id).where(
            *same, MeantRow.model == model, col(MeantRow.prediction_id).in_(part)
        )
        for label, id_ in session.exec(of_entity):
            if (label.entity, utc(label.time)) not in moved:
                yield id_, _truth(label)
    for part in parts_of({entity for entity, _ in moved}):
        labels = select(EntityLabelRow).where(EntityLabelRow.model == model, col(EntityLabelRow.entity).in_(part))
        for label in session.exec(labels):
            if one := moved.get((label.entity, utc(label.time))):
                yield one.prediction_id, _truth(label)


def _truth(label: EntityLabelRow) -> Truth:
    return Truth(label.text, label.number, label.sequence, utc(label.time))


def _end(session: Session, table: Any, model: str, after: int, at_most: int) -> int | None:
    """Return the sequence of the last of the next labels in a table; None when there is none."""
    query = select(table.sequence).where(table.model == model, col(table.sequence) > after).order_by(table.sequence)
    last = session.exec(query.offset(at_most - 1).limit(1)).first()
    return (
        last or session.exec(select(func.max(table.sequence)).where(table.model == model, table.sequence > after)).one()
    )


def _upsert(session: Session, table: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    connection = session.connection()
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.__table__.primary_key]
    new = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=new), list(rows))

"""Labels as they arrived, of predictions and of entities, and which prediction each of an entity is about."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, Column, DateTime, Float, Index, any_, func, literal
from sqlalchemy import select as select_columns
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select
from sqlmodel.sql.sqltypes import AutoString

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
    of_model = select(LabelRow.prediction_id).where(LabelRow.model == model)
    return {
        id_
        for part in parts_of(ids)
        for id_ in session.exec(of_model.where(among(session, LabelRow.prediction_id, part)))
    }


def of_entities(session: Session, model: str, entities: Iterable[str], since: datetime) -> set[Key]:
    """Return the labels of entities as of a time or later."""
    later = select(EntityLabelRow.entity, EntityLabelRow.time).where(
        EntityLabelRow.model == model, col(EntityLabelRow.time) >= since
    )
    return {
        (entity, utc(time))
        for part in parts_of(entities)
        for entity, time in session.exec(later.where(among(session, EntityLabelRow.entity, part)))
    }


def meant(session: Session, model: str, keys: Collection[Key]) -> dict[Key, Meant]:
    """Return the predictions that labels of entities are about, as far as that was found out."""
    found: dict[Key, Meant] = {}
    columns = select(MeantRow.entity, MeantRow.time, MeantRow.prediction_id, MeantRow.answered)
    for query in _of_keys(session, columns, MeantRow, model, keys):
        for entity, time, id_, answered in session.exec(query):
            if (key := (entity, utc(time))) in keys:
                found[key] = Meant(id_, utc(answered))
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


def among(session: Session, column: Any, texts: Sequence[str]) -> Any:
    """Return the condition that a column has one of many texts, as one parameter: thousands of them take long to write."""
    if session.connection().dialect.name == "postgresql":
        return column == any_(literal(list(texts), ARRAY(AutoString)))
    return column.in_(select_columns(func.json_each(json.dumps(texts)).table_valued("value").c.value))


def _candidates(
    session: Session, model: str, ids: Collection[str], moved: Mapping[Key, Meant]
) -> Iterator[tuple[str, Truth]]:
    of_prediction = select(LabelRow.prediction_id, LabelRow.text, LabelRow.number, LabelRow.sequence)
    label: list[Any] = [
        EntityLabelRow.entity,
        EntityLabelRow.text,
        EntityLabelRow.number,
        EntityLabelRow.sequence,
        EntityLabelRow.time,
    ]
    same: list[Any] = [
        MeantRow.model == EntityLabelRow.model,
        MeantRow.entity == EntityLabelRow.entity,
        MeantRow.time == EntityLabelRow.time,
        MeantRow.model == model,
    ]
    of_entity = select_columns(*[col(MeantRow.prediction_id), *label]).where(*same)
    for part in parts_of(ids):
        mine = of_prediction.where(LabelRow.model == model, among(session, LabelRow.prediction_id, part))
        for id_, text, number, sequence in session.exec(mine):
            yield id_, Truth(text, number, sequence)
        for id_, entity, *one in session.connection().execute(
            of_entity.where(among(session, MeantRow.prediction_id, part))
        ):
            if (entity, utc(one[-1])) not in moved:
                yield id_, _truth(*one)
    columns = select_columns(*label)
    for query in _of_keys(session, columns, EntityLabelRow, model, moved):
        for entity, *one in session.connection().execute(query):
            if about := moved.get((entity, utc(one[-1]))):
                yield about.prediction_id, _truth(*one)


def _truth(text: str, number: float | None, sequence: int, time: datetime) -> Truth:
    return Truth(text, number, sequence, utc(time))


def _of_keys(session: Session, columns: Any, table: Any, model: str, keys: Collection[Key]) -> Iterator[Any]:
    """Yield queries for what a table has of keys, and for some more: of each entity from the first time to the last."""
    if not keys:
        return
    times = [time for _, time in keys]
    within = columns.where(table.model == model, col(table.time) >= min(times), col(table.time) <= max(times))
    for part in parts_of({entity for entity, _ in keys}):
        yield within.where(among(session, table.entity, part))


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

"""Predictions with their labels: a row for each version that answered, or was asked beside, and sums over these."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Float, Index, func
from sqlalchemy import delete as delete_rows
from sqlalchemy import select as select_columns
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG
from meguri_monitoring.quality.label_store import among, parts_of
from meguri_monitoring.quality.quality import Cell

PRODUCER = "producer"
"""The slice that there always is."""


class ScoredRow(SQLModel, table=True):
    """What a version answered, and what the label says of it. Of each prediction and version one, whatever comes again."""

    __tablename__ = "monitoring_scored"
    __table_args__ = (
        Index("ix_monitoring_scored_number", "model", "number"),
        Index("ix_monitoring_scored_version", "model", "version", "number"),
    )

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    prediction_id: str = Field(primary_key=True)
    number: int = Field(sa_column=Column(BIG, nullable=False))
    """Counts the rows of a model in the order in which label and prediction found each other; a correction leaves it."""
    shadow: bool
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    """Of the prediction."""
    producer: str
    trace_id: str
    label_sequence: int = Field(sa_column=Column(BIG, nullable=False))
    """Of the label, in the log."""
    label: str | None = None
    """And `answer`: as they are compared with each other; null of a regression."""
    answer: str | None = None
    target: float | None = Field(default=None, sa_column=Column(Float, nullable=True))
    """The label of a regression."""
    probability: float | None = Field(default=None, sa_column=Column(Float, nullable=True))
    """Of the answer."""
    bin: int | None = None
    """Which tenth the probability lies in, from 0."""
    score: float = Field(sa_column=Column(Float, nullable=False))
    """1 or 0 for right or wrong, or minus the absolute error."""
    loss: float | None = Field(default=None, sa_column=Column(Float, nullable=True))
    """Log loss."""
    slices: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))


class JoinedRow(SQLModel, table=True):
    """Up to which stream sequence the predictions of a version were held against the labels that are done."""

    __tablename__ = "monitoring_joined"

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, nullable=False))


@dataclass(frozen=True)
class Range:
    """Which rows of a model are summed."""

    model: str
    version: int
    shadow: bool = False
    since: datetime | None = None
    """First and last time of the predictions; both included."""
    until: datetime | None = None
    label_after: int = 0
    """Sequence of the log after which the label came."""


def joined(session: Session, model: str) -> dict[int, int]:
    """Return by version up to where its predictions are done."""
    return {row.version: row.sequence for row in session.exec(select(JoinedRow).where(JoinedRow.model == model))}


def keep_joined(session: Session, model: str, done: Mapping[int, int]) -> None:
    for version, sequence in done.items():
        session.merge(JoinedRow(model=model, version=version, sequence=sequence))


def keep_scored(session: Session, model: str, ids: Collection[str], rows: Sequence[dict[str, Any]]) -> None:
    """Keep what is known of these predictions now, in place of what was; `rows` in the order in which they are numbered."""
    _forget(session, model, ids, {(row["version"], row["prediction_id"]) for row in rows})
    if not rows:
        return
    connection = session.connection()
    last = session.exec(select(func.max(ScoredRow.number)).where(ScoredRow.model == model)).one() or 0
    numbered = [row | {"model": model, "number": last + place} for place, row in enumerate(rows, 1)]
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(ScoredRow)
    kept = {"model", "version", "prediction_id", "number"}
    new = {name: insert.excluded[name] for name in numbered[0] if name not in kept}
    connection.execute(
        insert.on_conflict_do_update(index_elements=["model", "version", "prediction_id"], set_=new), numbered
    )


def _forget(session: Session, model: str, ids: Collection[str], but: Collection[tuple[int, str]]) -> None:
    """Drop what no label is about any more."""
    gone: dict[int, set[str]] = {}
    for part in parts_of(ids):
        query = select(ScoredRow.version, ScoredRow.prediction_id).where(
            ScoredRow.model == model, among(session, ScoredRow.prediction_id, part)
        )
        for key in session.exec(query):
            if key not in but:
                gone.setdefault(key[0], set()).add(key[1])
    for version, lost in gone.items():
        for part in parts_of(lost):
            session.connection().execute(
                delete_rows(ScoredRow).where(
                    col(ScoredRow.model) == model,
                    col(ScoredRow.version) == version,
                    among(session, ScoredRow.prediction_id, part),
                )
            )


def total(session: Session, rows: Range) -> tuple[int, float, float]:
    """Return how many rows there are, the sum of their scores and of the scores' squares."""
    score = col(ScoredRow.score)
    query = select(func.count(), func.sum(score), func.sum(score * score)).where(*_within(rows))
    number, scores, squares = session.exec(query).one()
    return number, scores or 0.0, squares or 0.0


def mean_target(session: Session, rows: Range) -> float:
    """Return the mean label of a regression; 0 without any."""
    return session.exec(select(func.avg(ScoredRow.target)).where(*_within(rows))).one() or 0.0


def cells(session: Session, rows: Range, by: str | None = None, centre: float = 0.0) -> Iterator[tuple[str, Cell]]:
    """Yield sums of rows that are alike, each with its value of a slice; without one, with the empty text.

    `centre` is near the labels of a regression: the sums of their squares are around it.
    """
    named: list[Any] = []
    if by is not None:
        value: Any = col(ScoredRow.producer) if by == PRODUCER else col(ScoredRow.slices)[by].as_string()
        named = [value.label("value")]
    score, off = col(ScoredRow.score), col(ScoredRow.target) - centre
    summed = (score, score * score, ScoredRow.loss, ScoredRow.probability, off, off * off)
    alike = (*named, col(ScoredRow.label), col(ScoredRow.answer), col(ScoredRow.bin))
    query = select_columns(*alike, func.count(), *map(func.sum, summed)).where(*_within(rows)).group_by(*alike)
    for row in session.connection().execute(query).yield_per(1000):
        found, rest = (str(row[0]), row[1:]) if named else ("", row)
        yield found, Cell(*rest[:4], *(one or 0.0 for one in rest[4:]))


def order(session: Session, rows: Range, after: int, at_most: int) -> list[ScoredRow]:
    """Return the next rows after a number, in the order of these."""
    query = select(ScoredRow).where(*_within(rows), col(ScoredRow.number) > after)
    return list(session.exec(query.order_by(col(ScoredRow.number)).limit(at_most)))


def number_from_end(session: Session, rows: Range, last: int) -> int:
    """Return a number behind which there are the last so many rows; 0 when there are fewer."""
    query = select(ScoredRow.number).where(*_within(rows)).order_by(col(ScoredRow.number).desc())
    return session.exec(query.offset(last).limit(1)).first() or 0


def is_there(session: Session, model: str, version: int, prediction_id: str, number: int) -> bool:
    row = session.get(ScoredRow, (model, version, prediction_id))
    return row is not None and row.number == number


def is_corrected(session: Session, rows: Range, first: int, last: int, label: int) -> bool:
    """Whether a row with a number after `first` up to `last` has a label of after a sequence of the log."""
    query = select(ScoredRow.number).where(
        *_within(replace(rows, label_after=label)), col(ScoredRow.number) > first, col(ScoredRow.number) <= last
    )
    return session.exec(query.limit(1)).first() is not None


def scores_by_producer(session: Session, rows: Range, first: int, last: int) -> dict[str, tuple[int, float]]:
    """Return by producer how many of the rows are numbered so, and the sum of their scores."""
    query = select(ScoredRow.producer, func.count(), func.sum(ScoredRow.score)).where(
        *_within(rows), col(ScoredRow.number) >= first, col(ScoredRow.number) <= last
    )
    return {name: (count, scores) for name, count, scores in session.exec(query.group_by(ScoredRow.producer))}


def worst(session: Session, rows: Range, producer: str, first: int, last: int, at_most: int) -> list[ScoredRow]:
    """Return the rows of a producer with the lowest scores, the latest first."""
    query = select(ScoredRow).where(
        *_within(rows),
        ScoredRow.producer == producer,
        col(ScoredRow.number) >= first,
        col(ScoredRow.number) <= last,
    )
    return list(session.exec(query.order_by(col(ScoredRow.score), col(ScoredRow.number).desc()).limit(at_most)))


def versions(session: Session, model: str) -> set[tuple[int, bool]]:
    """Return the versions that have scored rows, and whether as a shadow."""
    query = select(ScoredRow.version, ScoredRow.shadow).where(ScoredRow.model == model).distinct()
    return {(version, shadow) for version, shadow in session.exec(query)}


def _within(rows: Range) -> list[Any]:
    which = [
        ScoredRow.model == rows.model,
        ScoredRow.version == rows.version,
        col(ScoredRow.shadow).is_(rows.shadow),
    ]
    if rows.since:
        which.append(col(ScoredRow.time) >= rows.since)
    if rows.until:
        which.append(col(ScoredRow.time) <= rows.until)
    if rows.label_after:
        which.append(col(ScoredRow.label_sequence) > rows.label_after)
    return which

"""Tables of episodes: what began and ended, what happened meanwhile, what it rests on; what was heard last, and refused."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import JSON, Column, DateTime, Float, text
from sqlmodel import Field, Session, SQLModel, col, func, select

from meguri_chassis.store import BIG, utc
from meguri_contracts.errors import NotFound
from meguri_monitoring.episodes import episodes
from meguri_monitoring.episodes.episodes import Episode
from meguri_monitoring.verdicts.judging import Judged

KEPT = 200
"""Windows of an episode whose evidence is kept: the first half of them, and the latest."""
LEAST, NEAR = 4, 3
"""Letters with which an id must begin as another does to be near it, and how many of these are named."""
RUNNING, TRIED, ENDED = "running", "tried", "ended"
"""How far the run is that an episode led to: in training or waiting for a verdict, in the traffic plan, done with."""


_JUDGED = TypeAdapter(Judged)


def _text(default: str = "") -> Any:
    return {"server_default": text(f"'{default}'")}


class EpisodeRow(SQLModel, table=True):
    __tablename__ = "monitoring_episode"

    episode: str = Field(primary_key=True)
    model: str = Field(index=True)
    version: int
    detected: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """The event that began it."""
    opened: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    resolved: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=True))
    reason: str = ""
    about: str = Field(default="drift", sa_column_kwargs=_text("drift"))
    subject: str = Field(default="", sa_column_kwargs=_text())
    producer: str = Field(default="", sa_column_kwargs=_text())
    score: float = Field(default=0.0, sa_column=Column(Float, nullable=False, server_default=text("0")))
    """How bad it was when that was last said."""
    action: str = Field(default="retrain", sa_column_kwargs=_text("retrain"))
    event: str = Field(default="", sa_column_kwargs=_text())
    """Id of the event that began it."""
    acknowledged: datetime | None = Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=True))
    actor: str = Field(default="", sa_column_kwargs=_text())
    """Who acknowledged it, and with which `note`."""
    note: str = Field(default="", sa_column_kwargs=_text())
    run: str = Field(default="", sa_column_kwargs=_text())
    """The last run that it led to, and how far that is: `stage`."""
    stage: str = Field(default="", sa_column_kwargs=_text())

    @property
    def status(self) -> str:
        if self.resolved:
            return "resolved"
        return "acknowledged" if self.acknowledged else "opened"


class TimelineRow(SQLModel, table=True):
    """An event of an episode."""

    __tablename__ = "monitoring_timeline"

    episode: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    """In the log."""
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    kind: str
    text: str
    event: str
    trace: str
    """Id of the trace in which it was said; empty without one."""


class EvidenceRow(SQLModel, table=True):
    """What a window of an episode looked like."""

    __tablename__ = "monitoring_evidence"

    episode: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    number: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    """Of the window."""
    judged: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    evidence: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class HeardRow(SQLModel, table=True):
    """When the last prediction of a model was made that was recorded."""

    __tablename__ = "monitoring_heard"

    model: str = Field(primary_key=True)
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


class RefusedRow(SQLModel, table=True):
    """The last predictions of a version that did not fit its reference."""

    __tablename__ = "monitoring_refused"

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, nullable=False))


TABLES = (EpisodeRow, TimelineRow)
"""What follows from the log."""


# --- questions ------------------------------------------------------------------------------------------------------


def open_episodes(session: Session, model: str) -> tuple[Episode, ...]:
    """Return the episodes of a model that have not ended, oldest first."""
    return tuple(_episode(row) for row in _rows(session, model, col(EpisodeRow.resolved).is_(None)))


def reacted(session: Session, model: str) -> datetime | None:
    """Return when the last episode of a champion of a model began that retrained or rolled back."""
    query = select(func.max(EpisodeRow.opened))
    role = func.coalesce(col(EpisodeRow.detected)["role"].as_string(), "champion")
    query = query.where(EpisodeRow.model == model, col(EpisodeRow.action).in_(episodes.REACTIONS), role == "champion")
    found = session.exec(query).one()
    return utc(found) if found else None


def found(session: Session, model: str | None, open_only: bool, about: str | None = None) -> Sequence[EpisodeRow]:
    """Return episodes, newest first."""
    query = select(EpisodeRow)
    if model:
        query = query.where(EpisodeRow.model == model)
    if about:
        query = query.where(EpisodeRow.about == about)
    if open_only:
        query = query.where(col(EpisodeRow.resolved).is_(None))
    return session.exec(query.order_by(col(EpisodeRow.opened).desc(), col(EpisodeRow.episode))).all()


def episode(session: Session, id_: str) -> EpisodeRow:
    """Return an episode. Raises NotFound."""
    row = session.get(EpisodeRow, id_)
    if row is None:
        raise NotFound(f"no episode {id_!r}; {_instead(session, id_)}")
    return row


def known(session: Session, id_: str) -> Sequence[EpisodeRow]:
    """Return an episode, or none."""
    row = session.get(EpisodeRow, id_)
    return [row] if row else []


def begun_by(session: Session, model: str, events: Sequence[str]) -> Sequence[EpisodeRow]:
    """Return the episodes that events with these ids began."""
    return _rows(session, model, col(EpisodeRow.event).in_(events))


def led_to(session: Session, model: str, runs: Sequence[str]) -> Sequence[EpisodeRow]:
    """Return the episodes that led to runs, as far as these are not done with."""
    return _rows(session, model, col(EpisodeRow.run).in_(runs), EpisodeRow.stage != ENDED)


def tried(session: Session, model: str) -> Sequence[EpisodeRow]:
    """Return the episodes that led to a version in the traffic plan that is not champion."""
    return _rows(session, model, EpisodeRow.stage == TRIED)


def latest_of_measures(session: Session, model: str, evaluator: str) -> Sequence[EpisodeRow]:
    """Return the latest episode of each number of an evaluator."""
    of_evaluator = col(EpisodeRow.subject).startswith(f"{evaluator}.", autoescape=True)
    rows = _rows(session, model, EpisodeRow.about == "measure", of_evaluator)
    return list({row.subject: row for row in rows}.values())


def lines(session: Session, episode: str) -> Sequence[TimelineRow]:
    """Return what happened in an episode, in the order of the log."""
    return session.exec(
        select(TimelineRow).where(TimelineRow.episode == episode).order_by(col(TimelineRow.sequence))
    ).all()


def evidence(session: Session, episode: str) -> Sequence[EvidenceRow]:
    """Return what the windows of an episode looked like, in their order."""
    query = select(EvidenceRow).where(EvidenceRow.episode == episode)
    return session.exec(query.order_by(col(EvidenceRow.version), col(EvidenceRow.number))).all()


def has_evidence(session: Session, episode: str) -> bool:
    return session.exec(select(EvidenceRow.number).where(EvidenceRow.episode == episode).limit(1)).first() is not None


def keep_evidence(session: Session, episode: str, judged: Judged, evidence: dict[str, Any] | None) -> None:
    """Keep what a window of an episode looked like. Of a long one the windows in the middle make room."""
    kept = _JUDGED.dump_python(judged, mode="json")
    session.merge(
        EvidenceRow(episode=episode, version=judged.version, number=judged.number, judged=kept, evidence=evidence or {})
    )
    session.flush()
    of_episode = select(EvidenceRow).where(EvidenceRow.episode == episode).order_by(col(EvidenceRow.number))
    if session.exec(of_episode.offset(KEPT).limit(1)).first():
        session.delete(session.exec(of_episode.offset(KEPT // 2).limit(1)).one())


# --- predictions ----------------------------------------------------------------------------------------------------


def keep_heard(session: Session, model: str, time: datetime) -> None:
    """Keep when the last prediction of a model was made; to be written together with the position in the stream."""
    known = heard(session, model)
    session.merge(HeardRow(model=model, time=max(time, known) if known else time))


def heard(session: Session, model: str) -> datetime | None:
    """Return when the last prediction of a model was made; None before the first."""
    row = session.get(HeardRow, model)
    return utc(row.time) if row else None


def heard_models(session: Session) -> list[str]:
    """Return the models that had a prediction."""
    return list(session.exec(select(HeardRow.model).order_by(HeardRow.model)).all())


def keep_refused(session: Session, model: str, version: int, sequence: int) -> None:
    """Keep that predictions of a version did not fit its reference."""
    known = session.get(RefusedRow, (model, version))
    latest = max(sequence, known.sequence) if known else sequence
    session.merge(RefusedRow(model=model, version=version, sequence=latest))


def refused(session: Session, model: str, version: int) -> int:
    """Return the last sequence of predictions of a version that did not fit its reference; 0 without any."""
    row = session.get(RefusedRow, (model, version))
    return row.sequence if row else 0


def _instead(session: Session, id_: str) -> str:
    """What somebody may have meant who asks for an episode that there is not: a model, or one whose id begins so."""
    if session.exec(select(EpisodeRow.episode).where(EpisodeRow.model == id_).limit(1)).first():
        return f"{id_!r} is a model: `meguri episodes {id_}` lists its episodes"
    begins = col(EpisodeRow.episode).startswith(id_[:LEAST], autoescape=True)
    near = session.exec(select(EpisodeRow.episode).where(begins).limit(NEAR)).all() if len(id_) >= LEAST else ()
    return f"near are: {', '.join(near)}" if near else "`meguri episodes` lists those that there are"


def _rows(session: Session, model: str, *conditions: Any) -> Sequence[EpisodeRow]:
    query = select(EpisodeRow).where(EpisodeRow.model == model, *conditions)
    return session.exec(query.order_by(col(EpisodeRow.opened), col(EpisodeRow.episode))).all()


def _episode(row: EpisodeRow) -> Episode:
    return Episode(
        id=row.episode,
        version=row.version,
        about=row.about,  # type: ignore[arg-type]
        subject=row.subject,
        producer=row.producer,
        score=row.score,
        acknowledged=row.acknowledged is not None,
        role=row.detected.get("role", "champion"),
    )

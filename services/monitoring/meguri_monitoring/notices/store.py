"""Tables of who is to be told of episodes, and who was."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import JSON, Column, DateTime
from sqlmodel import Field, Session, SQLModel, col, select
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG, Parked, utc
from meguri_contracts.events import EpisodeResolved, NoticeFailed, NoticeSent
from meguri_contracts.spec import Notify
from meguri_contracts.topology import MONITORING_NOTICES
from meguri_monitoring.episodes import telling
from meguri_monitoring.episodes.looks import Opening
from meguri_monitoring.episodes.store import EpisodeRow
from meguri_monitoring.wording.wording import Language

Moment = Literal["opened", "resolved"]

AT_ONCE = 1000
"""Episodes that a query names; databases have a limit."""


class NotifyRow(SQLModel, table=True):
    """Who is to be told of a model's episodes, if anybody is."""

    __tablename__ = "monitoring_notify"

    model: str = Field(primary_key=True)
    urls: list[str] = Field(sa_column=Column(JSON, nullable=False))
    language: Language = Field(sa_type=AutoString)
    since: int = Field(sa_column=Column(BIG, nullable=False))
    """Sequence in the log since which somebody is told: nobody hears of what was before."""


class NoticeRow(SQLModel, table=True):
    """What became of a message to one target: the latest that was said of it."""

    __tablename__ = "monitoring_notice"

    episode: str = Field(primary_key=True)
    moment: str = Field(primary_key=True)
    target: str = Field(primary_key=True)
    model: str
    subject: str = ""
    error: str = ""
    """Why it was given up; empty once it was sent."""
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


TABLES = (NotifyRow, NoticeRow)
"""What follows from the log."""


@dataclass(frozen=True)
class Began:
    """How and when an episode began."""

    event: Opening
    time: datetime


def keep_notify(session: Session, model: str, notify: Notify, sequence: int) -> None:
    """Keep who is to be told, by the spec at a sequence of the log."""
    known = session.get(NotifyRow, model)
    if not notify.urls:
        if known:
            session.delete(known)
        return
    since = known.since if known else sequence
    session.merge(NotifyRow(model=model, urls=list(notify.urls), language=notify.language, since=since))


def keep_notice(session: Session, event: NoticeSent | NoticeFailed, time: datetime) -> None:
    told: dict[str, Any] = {"subject": event.subject} if isinstance(event, NoticeSent) else {"error": event.error}
    row = NoticeRow(
        episode=event.episode, moment=event.moment, target=event.target, model=event.model, time=time, **told
    )
    session.merge(row)


def notify(session: Session, model: str) -> NotifyRow | None:
    """Return who is to be told; None for nobody."""
    return session.get(NotifyRow, model)


def all_to_be_told(session: Session) -> Sequence[NotifyRow]:
    return session.exec(select(NotifyRow).order_by(NotifyRow.model)).all()


def notices(session: Session, episode: str) -> Sequence[NoticeRow]:
    """Return what became of the messages about an episode."""
    return session.exec(select(NoticeRow).where(NoticeRow.episode == episode).order_by(col(NoticeRow.time))).all()


def not_told(session: Session, episodes: Sequence[str]) -> Mapping[str, Sequence[NoticeRow]]:
    """Return by episode the messages that were given up, oldest first."""
    failed = select(NoticeRow).where(NoticeRow.error != "").order_by(col(NoticeRow.time))
    found: dict[str, list[NoticeRow]] = defaultdict(list)
    for some in range(0, len(episodes), AT_ONCE):
        for row in session.exec(failed.where(col(NoticeRow.episode).in_(episodes[some : some + AT_ONCE]))):
            found[row.episode].append(row)
    return found


def given_up(session: Session) -> NoticeRow | None:
    """Return the latest message that was given up, if any such is a dead letter still."""
    if not session.exec(select(Parked).where(Parked.consumer == MONITORING_NOTICES.name)).first():
        return None
    failed = select(NoticeRow).where(NoticeRow.error != "")
    return session.exec(failed.order_by(col(NoticeRow.time).desc())).first()


def opening(session: Session, end: EpisodeResolved) -> Began | None:
    """Return how the episode began that now ends; None for one that is not known."""
    row = session.get(EpisodeRow, end.episode)
    if row is None:
        return None
    return Began(telling.read(row.detected), utc(row.opened))

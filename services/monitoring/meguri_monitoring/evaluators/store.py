"""Tables of evaluators: how far they have come, and windows of their numbers."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import JSON, Column, delete
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG, Position
from meguri_contracts.errors import NotFound
from meguri_monitoring import store
from meguri_monitoring.episodes.episodes import State
from meguri_monitoring.evaluators.measures import Watched
from meguri_monitoring.verdicts.judging import Judged

KEPT = 2000
"""Windows of an evaluator that are kept."""
_WATCHED = TypeAdapter(Watched)
_JUDGED = TypeAdapter(Judged)


class MeasureRow(SQLModel, table=True):
    """The baseline of an evaluator's numbers, and the window that is filled."""

    __tablename__ = "monitoring_measure"

    model: str = Field(primary_key=True)
    evaluator: str = Field(primary_key=True)
    watched: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class MeasureWindowRow(SQLModel, table=True):
    """A closed window of an evaluator's numbers. `decided` once it was asked what follows from it."""

    __tablename__ = "monitoring_measure_window"

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True, autoincrement=True))
    model: str = Field(index=True)
    evaluator: str
    rollout: int = Field(sa_column=Column(BIG, nullable=False))
    """Sequence of the rollout that it belongs to."""
    judged: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    evidence: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    """What the verdict rests on."""
    decided: bool = False


def position(model: str, evaluator: str) -> str:
    """Name of the position up to which the rows of an evaluator are counted into windows."""
    return f"measures/{model}/{evaluator}"


def standing(session: Session, model: str, evaluator: str) -> tuple[State, int]:
    """Return what is known of a model, and up to which sequence its evaluator has come."""
    found = session.get(Position, position(model, evaluator))
    return store.state(session, model), found.sequence if found else 0


def stands(session: Session, model: str, evaluator: str) -> Position:
    """Return up to where an evaluator has come. Raises NotFound where it never was."""
    found = session.get(Position, position(model, evaluator))
    if found is None:
        store.require_known(session, model)
        asked = ", ".join(one.evaluator for one in store.rule(session, model).evaluators) or "none"
        said = f"evaluator {evaluator!r} has evaluated nothing of {model!r} yet; the spec of {model} asks for: {asked}"
        raise NotFound(said)
    return found


def watched(session: Session, model: str, evaluator: str) -> Watched:
    row = session.get(MeasureRow, (model, evaluator))
    return _WATCHED.validate_python(row.watched) if row else Watched()


def keep_watched(session: Session, model: str, evaluator: str, watched: Watched) -> None:
    session.merge(MeasureRow(model=model, evaluator=evaluator, watched=_WATCHED.dump_python(watched, mode="json")))


def keep_window(
    session: Session, model: str, evaluator: str, rollout: int, judged: Judged, evidence: dict[str, Any]
) -> None:
    kept = _JUDGED.dump_python(judged, mode="json")
    session.add(MeasureWindowRow(model=model, evaluator=evaluator, rollout=rollout, judged=kept, evidence=evidence))


def judged(kept: dict[str, Any]) -> Judged:
    """Return a judged window as it was before it was kept."""
    return _JUDGED.validate_python(kept)


def undecided(session: Session, model: str, evaluator: str) -> Sequence[MeasureWindowRow]:
    """Return the windows of an evaluator from which nothing was concluded yet, oldest first."""
    query = select(MeasureWindowRow).where(
        MeasureWindowRow.model == model,
        MeasureWindowRow.evaluator == evaluator,
        col(MeasureWindowRow.decided).is_(False),
    )
    return session.exec(query.order_by(col(MeasureWindowRow.id))).all()


def up_to(session: Session, row: MeasureWindowRow, count: int) -> list[MeasureWindowRow]:
    """Return the latest `count` windows of the same evaluator and rollout up to one, oldest first."""
    query = select(MeasureWindowRow).where(
        MeasureWindowRow.model == row.model,
        MeasureWindowRow.evaluator == row.evaluator,
        MeasureWindowRow.rollout == row.rollout,
        col(MeasureWindowRow.id) <= row.id,
    )
    return list(session.exec(query.order_by(col(MeasureWindowRow.id).desc()).limit(count)).all())[::-1]


def windows(session: Session, model: str, evaluator: str, limit: int) -> Sequence[MeasureWindowRow]:
    """Return the latest windows of an evaluator, newest first."""
    query = select(MeasureWindowRow).where(MeasureWindowRow.model == model, MeasureWindowRow.evaluator == evaluator)
    return session.exec(query.order_by(col(MeasureWindowRow.id).desc()).limit(limit)).all()


def mark_decided(session: Session, id_: int) -> None:
    """Say that it was concluded what follows from a window; now and then the oldest that nobody needs are forgotten."""
    row = session.get(MeasureWindowRow, id_)
    if row is None:
        return
    row.decided = True
    session.add(row)
    if row.judged["number"] % (KEPT // 10) == 0:
        own = (MeasureWindowRow.model == row.model, MeasureWindowRow.evaluator == row.evaluator)
        latest = select(MeasureWindowRow.id).where(*own).order_by(col(MeasureWindowRow.id).desc()).limit(KEPT)
        old = delete(MeasureWindowRow).where(
            col(MeasureWindowRow.model) == row.model,
            col(MeasureWindowRow.evaluator) == row.evaluator,
            col(MeasureWindowRow.decided).is_(True),
            col(MeasureWindowRow.id).not_in(session.exec(latest).all()),
        )
        session.connection().execute(old)

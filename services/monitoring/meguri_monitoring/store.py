"""Tables of monitoring: what it knows of models, versions, plans, labels, episodes."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Float, Index, Integer, false, func, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG, Position
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import Artifact
from meguri_contracts.spec import Monitor
from meguri_monitoring import episode_store
from meguri_monitoring.episodes import State

PREDICTIONS = "predictions"
"""Name of the position in the stream of predictions."""
MANY = 10_000
"""Labels read at once."""


class Behind(TemporaryError):
    """The tables that follow from the log stand before the windows: they are being made again."""


def _number() -> Any:
    return Column(BIG, nullable=False, server_default=text("0"))


class ModelRow(SQLModel, table=True):
    __tablename__ = "monitoring_model"

    name: str = Field(primary_key=True)
    rule: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    state: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    rollout: int = Field(default=0, sa_column=_number())
    hops: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))


class VersionRow(SQLModel, table=True):
    """A version that was in a traffic plan, with its reference profile."""

    __tablename__ = "monitoring_version"

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    profile: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    shadow: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Whether it ever was a shadow."""


class PlanRow(SQLModel, table=True):
    """Which versions answer the requests of a model, and since when it is these."""

    __tablename__ = "monitoring_plan"

    model: str = Field(primary_key=True)
    champion: int
    challengers: list[int] = Field(sa_column=Column(JSON, nullable=False))
    since: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    rollout: int = Field(sa_column=Column(BIG, nullable=False))
    """Sequence of the rollout since which it is these."""
    hops: int
    measured: list[dict[str, Any]] = Field(sa_column=Column(JSON, nullable=False))
    """What the last quality-measured said of them; empty before the first."""

    @property
    def versions(self) -> tuple[int, ...]:
        """The champion first."""
        return (self.champion, *self.challengers)


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


TABLES = (ModelRow, VersionRow, PlanRow, LabelRow)
"""What follows from the log."""


def state(session: Session, model: str) -> State:
    """Return what is known of a model; what is open and when was last reacted is what the table of episodes says."""
    row = session.get(ModelRow, model)
    if row is None:
        return State(model=model)
    return State(
        model=model,
        champion=row.state["champion"],
        rollout=row.rollout,
        hops=row.hops,
        episodes=episode_store.open_episodes(session, model),
        reacted=episode_store.reacted(session, model),
    )


def rule(session: Session, model: str) -> Monitor:
    """Return how a model is watched; as usual if nothing was said about it."""
    row = session.get(ModelRow, model)
    return Monitor.model_validate(row.rule) if row else Monitor()


def keep(session: Session, state: State, rule: Monitor) -> None:
    row = ModelRow(
        name=state.model,
        rule=rule.model_dump(),
        state={"model": state.model, "champion": state.champion, "episode": _for_older_replicas(state)},
        rollout=state.rollout,
        hops=state.hops,
    )
    session.merge(row)


def _for_older_replicas(state: State) -> dict[str, Any] | None:
    """The open episode of drift, where replicas look for it that know of no other kind."""
    drift = state.open("drift")
    if drift is None:
        return None
    return {"id": drift.id, "version": drift.version, "feature": drift.subject, "producer": drift.producer}


def models(session: Session) -> Sequence[ModelRow]:
    return session.exec(select(ModelRow).order_by(ModelRow.name)).all()


def versions(session: Session, model: str | None = None) -> Sequence[VersionRow]:
    """Return the versions that were in a traffic plan, newest first."""
    query = select(VersionRow).order_by(VersionRow.model, col(VersionRow.version).desc())
    return session.exec(query.where(VersionRow.model == model) if model else query).all()


def keep_version(session: Session, model: str, version: int, profile: Artifact, *, shadow: bool) -> None:
    known = session.get(VersionRow, (model, version))
    was_shadow = known is not None and known.shadow
    row = VersionRow(model=model, version=version, profile=profile.model_dump(), shadow=shadow or was_shadow)
    session.merge(row)


def reference(session: Session, model: str, version: int) -> Artifact | None:
    """Return where the reference profile of a version is; None for a version that was never rolled out."""
    row = session.get(VersionRow, (model, version))
    return Artifact.model_validate(row.profile) if row else None


def plan(session: Session, model: str) -> PlanRow | None:
    """Return who answers the requests of a model; None for one without a champion."""
    return session.get(PlanRow, model)


def with_challengers(session: Session) -> set[str]:
    """Return the models whose requests others than the champion answer too."""
    return {row.model for row in session.exec(select(PlanRow)).all() if row.challengers}


def keep_labels(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep labels, each of another prediction of the same model, in place of earlier ones."""
    if not rows:
        return
    connection = session.connection()
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(LabelRow)
    new = {name: insert.excluded[name] for name in ("text", "number", "time", "sequence")}
    connection.execute(insert.on_conflict_do_update(index_elements=["model", "prediction_id"], set_=new), list(rows))


def latest_label(session: Session, model: str) -> int:
    """Return the sequence in the log of the last label of a model; 0 when there is none."""
    query = select(func.max(LabelRow.sequence)).where(LabelRow.model == model)
    return session.exec(query).one() or 0


def labels(session: Session, model: str, after: int) -> Iterator[Sequence[tuple[str, str, float | None]]]:
    """Yield prediction id, text and number of the labels of a model that came after a sequence, many at a time."""
    query = select(LabelRow.prediction_id, LabelRow.text, LabelRow.number)
    query = query.where(LabelRow.model == model, col(LabelRow.sequence) > after)
    for rows in session.connection().execute(query).yield_per(MANY).partitions():
        yield [(id_, text_, number) for id_, text_, number in rows]


def position(session: Session) -> int | None:
    """Return how far the predictions are counted into windows; None when that was never begun, or everything is lost."""
    row = session.get(Position, PREDICTIONS)
    return row.sequence if row else None

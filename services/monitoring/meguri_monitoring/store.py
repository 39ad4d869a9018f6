"""Tables of monitoring: what it knows of models, versions, plans, labels, episodes."""

from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Integer, false, text
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG, JournalEntry, Position, utc
from meguri_contracts.errors import NotFound, TemporaryError
from meguri_contracts.events import Artifact
from meguri_contracts.spec import Monitor
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import State

PREDICTIONS = "predictions"
"""Name of the position in the stream of predictions."""
NEAR = 3
"""Names that are offered for one that is not known."""


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


TABLES = (ModelRow, VersionRow, PlanRow)
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
        challengers={int(version): role for version, role in row.state.get("challengers", {}).items()},
        episodes=episode_store.open_episodes(session, model),
        reacted=episode_store.reacted(session, model),
    )


def rollout(session: Session, model: str) -> int:
    """Return the sequence of the rollout that holds for a model; 0 before the first."""
    row = session.get(ModelRow, model)
    return row.rollout if row else 0


def rule(session: Session, model: str) -> Monitor:
    """Return how a model is watched; as usual if nothing was said about it."""
    row = session.get(ModelRow, model)
    return Monitor.model_validate(row.rule) if row else Monitor()


def keep(session: Session, state: State, rule: Monitor) -> None:
    # Without any as releases did that knew of none, so that their rows are right.
    beside = {"challengers": {str(one): role for one, role in state.challengers.items()}} if state.challengers else {}
    row = ModelRow(
        name=state.model,
        rule=rule.model_dump(),
        state={"model": state.model, "champion": state.champion, "episode": _for_older_replicas(state)} | beside,
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


def require_known(session: Session, name: str) -> None:
    """Raise NotFound for a model that nothing is known of, with the names that come near."""
    known = [row.name for row in models(session)]
    if name in known:
        return
    if not known:
        raise NotFound(f"no model {name!r}: none has a spec yet, `meguri apply` gives it one")
    near = get_close_matches(name, known) or [one for one in known if name in one][:NEAR]
    listed = f"near are: {', '.join(near)}" if near else "`meguri models` lists those that are known"
    raise NotFound(f"no model {name!r}; {listed}")


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


def watched_since(session: Session, model: str, version: int) -> datetime | None:
    """Return since when a version answers as what it is now: since it is champion, or beside the champion with the others of
    the plan. None of one that does not answer."""
    known = plan(session, model)
    if known is None or version not in known.versions:
        return None
    if version != known.champion:
        return utc(known.since)
    entry = session.get(JournalEntry, state(session, model).rollout)
    return utc(entry.time) if entry else None


def position(session: Session) -> int | None:
    """Return how far the predictions are counted into windows; None when that was never begun, or everything is lost."""
    row = session.get(Position, PREDICTIONS)
    return row.sequence if row else None

"""Tables of the registry and the questions asked of them."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, text
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.projection import as_message
from meguri_chassis.store import BIG, JournalEntry, utc
from meguri_contracts.errors import NotFound
from meguri_contracts.events import Deployed, Event, RolloutChanged
from meguri_contracts.spec import Dataset
from meguri_registry.models import Model


def _json() -> Any:
    return Column(JSON, nullable=False)


def _time() -> Any:
    return Column(DateTime(timezone=True), nullable=False)


NONE_YET = "none yet"
"""The verdict on a version of which nothing was said."""


class ModelRow(SQLModel, table=True):
    """The state that decisions rest on."""

    __tablename__ = "registry_model"

    name: str = Field(primary_key=True)
    state: dict[str, Any] = Field(sa_column=_json())


class SpecRow(SQLModel, table=True):
    __tablename__ = "registry_spec"

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    digest: str
    spec: dict[str, Any] = Field(sa_column=_json())
    actor: str
    time: datetime = Field(sa_column=_time())


class RunRow(SQLModel, table=True):
    __tablename__ = "registry_run"

    run: str = Field(primary_key=True)
    model: str = Field(index=True)
    status: str
    """running, trained, failed."""
    reason: str = ""
    triggers: list[dict[str, Any]] = Field(sa_column=_json())
    dataset: str
    dataset_version: int
    started: datetime = Field(sa_column=_time())


class VersionRow(SQLModel, table=True):
    __tablename__ = "registry_version"

    model: str = Field(primary_key=True)
    run: str = Field(primary_key=True)
    version: int | None = Field(default=None, index=True)
    verdict: str = NONE_YET
    """none yet, rejected, approval requested, canary, A/B test, promoted, taken back."""
    reason: str = ""
    judged: list[dict[str, Any]] = Field(sa_column=_json())
    trained: dict[str, Any] = Field(sa_column=_json())
    """The event model-trained."""
    event: str
    time: datetime = Field(sa_column=_time())


class RolloutRow(SQLModel, table=True):
    __tablename__ = "registry_rollout"

    sequence: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    model: str = Field(index=True)
    version: int
    """The champion."""
    previous: int | None = None
    roles: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default=text("'[]'"))
    )
    """All versions of the plan, each with its role and its share. Empty if a replica wrote it that knew champions only."""
    reason: str
    actor: str
    time: datetime = Field(sa_column=_time())


class DatasetVersionRow(SQLModel, table=True):
    __tablename__ = "registry_dataset_version"

    dataset: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    digest: str
    rows: int
    total_rows: int
    time: datetime = Field(sa_column=_time())


class ContributionRow(SQLModel, table=True):
    """Which arrival is in which dataset version."""

    __tablename__ = "registry_contribution"

    event: str = Field(primary_key=True)
    dataset: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    producer: str
    rows: int
    quarantined: int


TABLES = (ModelRow, SpecRow, RunRow, VersionRow, RolloutRow, DatasetVersionRow, ContributionRow)
"""What follows from the log."""


def model(session: Session, name: str) -> Model:
    """Return the state of a model; an empty one if nothing was heard of it."""
    row = session.get(ModelRow, name)
    return _state(session, row) if row else Model(name=name)


def known_model(session: Session, name: str) -> Model:
    """Return the state of a model that has a spec. Raises NotFound that names the known ones."""
    found = model(session, name)
    if found.spec is None:
        known = ", ".join(sorted(row.name for row in session.exec(select(ModelRow)))) or "none"
        raise NotFound(f"no model {name!r}; known are: {known}")
    return found


def models(session: Session) -> list[Model]:
    return [_state(session, row) for row in session.exec(select(ModelRow).order_by(ModelRow.name)).all()]


def datasets_of_others(session: Session, name: str) -> dict[str, Dataset]:
    """Return the datasets that models other than `name` declare."""
    specs = [model.spec for model in models(session) if model.name != name and model.spec]
    return {spec.dataset.name: spec.dataset for spec in specs}


def versions(session: Session, name: str) -> Sequence[VersionRow]:
    """Return the versions of a model, newest first."""
    query = select(VersionRow).where(VersionRow.model == name, col(VersionRow.version).is_not(None))
    return session.exec(query.order_by(col(VersionRow.version).desc())).all()


def version(session: Session, name: str, number: int) -> VersionRow:
    """Return a version. Raises NotFound."""
    query = select(VersionRow).where(VersionRow.model == name, VersionRow.version == number)
    row = session.exec(query).first()
    if row is None:
        raise NotFound(f"model {name!r} has no version {number}")
    return row


def deployable(session: Session, name: str, number: int) -> Deployed:
    """Return what serving a version needs. Raises NotFound."""
    trained = version(session, name, number).trained
    return Deployed.model_validate({**trained, "version": number})


def rollouts(session: Session, name: str) -> Sequence[RolloutRow]:
    """Return all changes of a model's champion, newest first."""
    query = select(RolloutRow).where(RolloutRow.model == name).order_by(col(RolloutRow.sequence).desc())
    return session.exec(query).all()


def champion_since(session: Session, name: str) -> datetime | None:
    """Return since when the champion is champion; None when there is none."""
    found = rollouts(session, name)
    begun = [row for row in found if row.version != row.previous]
    return utc(begun[0].time) if begun else None


def champion_at(session: Session, name: str, time: datetime) -> RolloutRow:
    """Return the rollout in force at a time. Raises NotFound when there was none yet."""
    found = next((row for row in rollouts(session, name) if utc(row.time) <= time), None)
    if found is None:
        raise NotFound(f"model {name!r} had no champion at {time.isoformat()}")
    return found


def said_until(
    session: Session, kinds: Sequence[type[Event]], time: datetime, key: str | None
) -> Iterator[tuple[Event, str, datetime]]:
    """Yield the events of these kinds said up to a time in UTC that had an effect, in log order; of all keys or one.

    Each comes with its id and its time.
    """
    query = select(JournalEntry).where(
        col(JournalEntry.kind).in_([kind.kind() for kind in kinds]),
        col(JournalEntry.applied),
        col(JournalEntry.time) <= time,
    )
    if key is not None:
        query = query.where(JournalEntry.key == key)
    entries = session.exec(query.order_by(col(JournalEntry.sequence)).execution_options(yield_per=1000))
    return ((message.event, message.id, message.time) for message in map(as_message, entries))


def runs(session: Session, name: str) -> Sequence[RunRow]:
    query = select(RunRow).where(RunRow.model == name).order_by(col(RunRow.started).desc())
    return session.exec(query).all()


def contributions(session: Session, dataset: str, up_to: int) -> Sequence[ContributionRow]:
    """Return the arrivals in a dataset version, oldest first."""
    query = select(ContributionRow).where(ContributionRow.dataset == dataset, ContributionRow.version <= up_to)
    return session.exec(query.order_by(col(ContributionRow.version), ContributionRow.event)).all()


def used_in(session: Session, event: str) -> list[tuple[ContributionRow, Sequence[VersionRow]]]:
    """Return for an arrival the dataset versions that it is in, each with the model versions trained on it."""
    found = session.exec(select(ContributionRow).where(ContributionRow.event == event)).all()
    return [(row, _trained_on(session, row.dataset, row.version)) for row in found]


def _trained_on(session: Session, dataset: str, version: int) -> Sequence[VersionRow]:
    query = select(VersionRow).join(RunRow, col(RunRow.run) == col(VersionRow.run))
    query = query.where(RunRow.dataset == dataset, RunRow.dataset_version >= version)
    return session.exec(query.order_by(VersionRow.model, col(VersionRow.version))).all()


def _state(session: Session, row: ModelRow) -> Model:
    state = row.state
    # Written by a replica that knew champions only, before an upgrade or while it rolls: the journal has the whole plan.
    if "plan" not in state and (newest := next(iter(rollouts(session, row.name)), None)):
        entry = session.get(JournalEntry, newest.sequence)
        if entry and isinstance(rollout := as_message(entry).event, RolloutChanged):
            state = state | {"plan": rollout.plan, "rollout": entry.event_id, "since": utc(entry.time)}
    return Model.model_validate(state)

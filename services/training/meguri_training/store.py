"""Tables of training: what it knows of models and datasets, and which runs have ended."""

import json
from typing import Any
from urllib.parse import unquote

from sqlalchemy import JSON, Column
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.projection import recorded
from meguri_chassis.store import BIG
from meguri_contracts.errors import NotFound
from meguri_contracts.events import Link, TrainingStarted
from meguri_training.runs import Data, Model

CHAIN = 32
"""How far causes are followed back."""


class ModelRow(SQLModel, table=True):
    __tablename__ = "training_model"

    name: str = Field(primary_key=True)
    dataset: str | None = Field(default=None, index=True)
    state: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class DatasetRow(SQLModel, table=True):
    __tablename__ = "training_dataset"

    name: str = Field(primary_key=True)
    state: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class RunRow(SQLModel, table=True):
    """A run that was started: it learns from a dataset up to a version."""

    __tablename__ = "training_run"

    run: str = Field(primary_key=True)
    model: str = Field(index=True)
    dataset: str = Field(index=True)
    dataset_version: int = Field(sa_column=Column(BIG, nullable=False))


class EndedRow(SQLModel, table=True):
    """A run that needs no fit any more: trained or failed."""

    __tablename__ = "training_ended"

    run: str = Field(primary_key=True)


TABLES = (ModelRow, DatasetRow, RunRow, EndedRow)
"""What follows from the log."""


def model(session: Session, name: str) -> Model:
    """Return the state of a model; an empty one if nothing was heard of it."""
    row = session.get(ModelRow, name)
    return Model.model_validate(row.state) if row else Model(name=name)


def known_model(session: Session, name: str) -> Model:
    """Return the state of a model that has a spec. Raises NotFound."""
    found = model(session, name)
    if found.spec is None:
        raise NotFound(f"no model {name!r}; known are: {', '.join(one.name for one in models(session)) or 'none'}")
    return found


def models(session: Session) -> list[Model]:
    return [Model.model_validate(row.state) for row in session.exec(select(ModelRow).order_by(ModelRow.name))]


def models_on(session: Session, dataset: str) -> list[Model]:
    """Return the models whose spec names a dataset."""
    rows = session.exec(select(ModelRow).where(ModelRow.dataset == dataset).order_by(ModelRow.name))
    return [Model.model_validate(row.state) for row in rows]


def data(session: Session, model: Model) -> Data | None:
    """Return the newest version of a model's dataset."""
    row = session.get(DatasetRow, model.spec.dataset.name) if model.spec else None
    return Data.model_validate(row.state) if row else None


def data_of(session: Session, dataset: str) -> Data:
    """Return the newest version of a dataset. Raises NotFound."""
    row = session.get(DatasetRow, dataset)
    if row is None:
        raise NotFound(f"no rows of a dataset {dataset!r} were committed")
    return Data.model_validate(row.state)


def run_row(started: TrainingStarted) -> RunRow:
    return RunRow(
        run=started.run,
        model=started.model,
        dataset=started.spec.dataset.name,
        dataset_version=started.dataset_version,
    )


def run_with(session: Session, model: str, dataset: str, version: int) -> str | None:
    """Return the first run of a model that learned from a dataset version; None if there is none."""
    query = select(RunRow.run).where(RunRow.model == model, RunRow.dataset == dataset)
    query = query.where(col(RunRow.dataset_version) >= version)
    return session.exec(query.order_by(col(RunRow.dataset_version), col(RunRow.run))).first()


def causes(session: Session, event_id: str) -> tuple[Link, ...]:
    """Return an event and what caused it, the latest first, as far back as training heard of it, at most CHAIN."""
    chain: list[Link] = []
    while len(chain) < CHAIN and (entry := recorded(session, event_id)):
        chain.append(Link(event=entry.event_id, kind=entry.kind, sequence=entry.sequence))
        cause = unquote(json.loads(entry.headers).get("ce-causeid", ""))
        if cause in {link.event for link in chain}:
            break
        event_id = cause
    return tuple(chain)


def has_ended(session: Session, run: str) -> bool:
    return session.get(EndedRow, run) is not None

"""Tables of training: what it knows of models and datasets, and which runs have ended."""

from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, Session, SQLModel, select

from meguri_contracts.errors import NotFound
from meguri_training.runs import Data, Model


class ModelRow(SQLModel, table=True):
    __tablename__ = "training_model"

    name: str = Field(primary_key=True)
    dataset: str | None = Field(default=None, index=True)
    state: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class DatasetRow(SQLModel, table=True):
    __tablename__ = "training_dataset"

    name: str = Field(primary_key=True)
    state: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class EndedRow(SQLModel, table=True):
    """A run that needs no fit any more: trained or failed."""

    __tablename__ = "training_ended"

    run: str = Field(primary_key=True)


TABLES = (ModelRow, DatasetRow, EndedRow)
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


def has_ended(session: Session, run: str) -> bool:
    return session.get(EndedRow, run) is not None

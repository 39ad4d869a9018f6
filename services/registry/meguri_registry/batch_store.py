"""Tables of the batches, and the questions asked of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, DateTime
from sqlmodel import Field, Session, SQLModel, col, select

from meguri_chassis.store import BIG
from meguri_contracts.errors import NotFound


def _time() -> Any:
    return Column(DateTime(timezone=True), nullable=False)


class BatchRow(SQLModel, table=True):
    """A batch as far as it is known."""

    __tablename__ = "registry_batch"

    model: str = Field(primary_key=True)
    batch: str = Field(primary_key=True)
    status: str
    """requested, running, completed, failed."""
    reason: str = ""
    """Why it failed."""
    actor: str
    input: str
    output: str
    asked_version: int | None = None
    """The version that was asked for; none for the champion of the moment."""
    version: int | None = None
    run: str = ""
    input_digest: str = ""
    rows: int | None = Field(default=None, sa_column=Column(BIG, nullable=True))
    shards: int | None = None
    digest: str = ""
    requested: int = Field(sa_column=Column(BIG, nullable=False, index=True))
    """Sequence of the request in the log."""
    time: datetime = Field(sa_column=_time())


class BatchShardRow(SQLModel, table=True):
    """A part of a batch that is predicted."""

    __tablename__ = "registry_batch_shard"

    model: str = Field(primary_key=True)
    batch: str = Field(primary_key=True)
    shard: int = Field(primary_key=True)
    rows: int = Field(sa_column=Column(BIG, nullable=False))
    uri: str
    digest: str
    replica: str
    seconds: float


TABLES = (BatchRow, BatchShardRow)


def batches(session: Session, model: str | None, limit: int) -> Sequence[BatchRow]:
    """Return the latest batches, newest first; of all models or of one."""
    query = select(BatchRow).order_by(col(BatchRow.requested).desc()).limit(limit)
    return session.exec(query if model is None else query.where(BatchRow.model == model)).all()


def batch(session: Session, name: str, model: str | None) -> BatchRow:
    """Return a batch; of models that have one of the same name the latest. Raises NotFound."""
    query = select(BatchRow).where(BatchRow.batch == name).order_by(col(BatchRow.requested).desc())
    row = session.exec(query if model is None else query.where(BatchRow.model == model)).first()
    if row is None:
        raise NotFound(f"no batch {name!r}{f' of model {model!r}' if model else ''} is known")
    return row


def shards(session: Session, row: BatchRow) -> Sequence[BatchShardRow]:
    """Return the parts of a batch that are predicted, in their order."""
    query = select(BatchShardRow).where(BatchShardRow.model == row.model, BatchShardRow.batch == row.batch)
    return session.exec(query.order_by(col(BatchShardRow.shard))).all()

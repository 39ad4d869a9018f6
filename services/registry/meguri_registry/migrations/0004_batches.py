"""Batches and their parts."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "registry_batch",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("batch", AutoString(), primary_key=True),
        sa.Column("status", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("input", AutoString(), nullable=False),
        sa.Column("output", AutoString(), nullable=False),
        sa.Column("asked_version", sa.Integer(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("run", AutoString(), nullable=False),
        sa.Column("input_digest", AutoString(), nullable=False),
        sa.Column("rows", BIG, nullable=True),
        sa.Column("shards", sa.Integer(), nullable=True),
        sa.Column("digest", AutoString(), nullable=False),
        sa.Column("requested", BIG, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_registry_batch_requested", "registry_batch", ["requested"])
    op.create_table(
        "registry_batch_shard",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("batch", AutoString(), primary_key=True),
        sa.Column("shard", sa.Integer(), primary_key=True),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("uri", AutoString(), nullable=False),
        sa.Column("digest", AutoString(), nullable=False),
        sa.Column("replica", AutoString(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
    )

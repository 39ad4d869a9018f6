"""The first tables of ingest."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG, create_log_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_log_tables()
    time = sa.DateTime(timezone=True)
    op.create_table(
        "ingest_dataset",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("declared", sa.JSON(), nullable=False),
    )
    op.create_table(
        "ingest_version",
        sa.Column("dataset", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("digest", AutoString(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("total_rows", sa.Integer(), nullable=False),
        sa.Column("time", time, nullable=False),
    )
    op.create_table(
        "ingest_receipt",
        sa.Column("event", AutoString(), primary_key=True),
        sa.Column("dataset", AutoString(), nullable=False),
        sa.Column("producer", AutoString(), nullable=False),
        sa.Column("status", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("sequence", BIG, nullable=False),
        sa.Column("heard", sa.Integer(), nullable=False),
        sa.Column("arrived", time, nullable=False),
        sa.Column("dataset_version", sa.Integer(), nullable=True),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("quarantined", sa.Integer(), nullable=False),
    )
    op.create_index("ix_ingest_receipt_dataset", "ingest_receipt", ["dataset"])
    op.create_table(
        "ingest_use",
        sa.Column("run", AutoString(), primary_key=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("model_version", sa.Integer(), nullable=True),
        sa.Column("verdict", AutoString(), nullable=False),
        sa.Column("dataset", AutoString(), nullable=False),
        sa.Column("dataset_version", sa.Integer(), nullable=False),
    )
    op.create_index("ix_ingest_use_dataset", "ingest_use", ["dataset"])

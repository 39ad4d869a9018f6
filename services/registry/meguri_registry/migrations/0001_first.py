"""The first tables of the registry."""

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
        "registry_model",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("state", sa.JSON(), nullable=False),
    )
    op.create_table(
        "registry_spec",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("digest", AutoString(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("time", time, nullable=False),
    )
    op.create_table(
        "registry_run",
        sa.Column("run", AutoString(), primary_key=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("status", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("triggers", sa.JSON(), nullable=False),
        sa.Column("dataset", AutoString(), nullable=False),
        sa.Column("dataset_version", sa.Integer(), nullable=False),
        sa.Column("started", time, nullable=False),
    )
    op.create_index("ix_registry_run_model", "registry_run", ["model"])
    op.create_table(
        "registry_version",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("run", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("verdict", AutoString(), nullable=False),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("judged", sa.JSON(), nullable=False),
        sa.Column("trained", sa.JSON(), nullable=False),
        sa.Column("event", AutoString(), nullable=False),
        sa.Column("time", time, nullable=False),
    )
    op.create_index("ix_registry_version_version", "registry_version", ["version"])
    op.create_table(
        "registry_rollout",
        sa.Column("sequence", BIG, primary_key=True, autoincrement=False),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("actor", AutoString(), nullable=False),
        sa.Column("time", time, nullable=False),
    )
    op.create_index("ix_registry_rollout_model", "registry_rollout", ["model"])
    op.create_table(
        "registry_dataset_version",
        sa.Column("dataset", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("digest", AutoString(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("total_rows", sa.Integer(), nullable=False),
        sa.Column("time", time, nullable=False),
    )
    op.create_table(
        "registry_contribution",
        sa.Column("event", AutoString(), primary_key=True),
        sa.Column("dataset", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("producer", AutoString(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("quarantined", sa.Integer(), nullable=False),
    )

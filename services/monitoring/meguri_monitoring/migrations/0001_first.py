"""The first tables of monitoring."""

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
        "monitoring_model",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("rule", sa.JSON(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
    )
    op.create_table(
        "monitoring_version",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("profile", sa.JSON(), nullable=False),
    )
    op.create_table(
        "monitoring_episode",
        sa.Column("episode", AutoString(), primary_key=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("detected", sa.JSON(), nullable=False),
        sa.Column("opened", time, nullable=False),
        sa.Column("resolved", time, nullable=True),
        sa.Column("reason", AutoString(), nullable=False),
    )
    op.create_index("ix_monitoring_episode_model", "monitoring_episode", ["model"])
    op.create_table(
        "monitoring_open_window",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("window", sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        "monitoring_judged_window",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("judged", sa.JSON(), nullable=False),
        sa.Column("decided", sa.Boolean(), nullable=False),
        sa.Column("stale", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_monitoring_judged_window_model", "monitoring_judged_window", ["model"])

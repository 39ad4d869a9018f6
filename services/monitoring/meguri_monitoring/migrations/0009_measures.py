"""How far evaluators have come, and windows of their numbers."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "monitoring_measure",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("evaluator", AutoString(), primary_key=True),
        sa.Column("watched", sa.JSON(), nullable=False),
    )
    op.create_table(
        "monitoring_measure_window",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("evaluator", AutoString(), nullable=False),
        sa.Column("rollout", BIG, nullable=False),
        sa.Column("judged", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("decided", sa.Boolean(), nullable=False),
    )
    op.create_index("ix_monitoring_measure_window_model", "monitoring_measure_window", ["model"])

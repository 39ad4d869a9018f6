"""Windows are planned, counted in parts by any replica, and judged. The tables of before stay for older replicas."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "monitoring_planned",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("rollout", BIG, nullable=False),
        sa.Column("planner", sa.JSON(), nullable=False),
    )
    op.create_table(
        "monitoring_window",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("rollout", BIG, nullable=False),
        sa.Column("key", BIG, nullable=False),
        sa.Column("length", BIG, nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("first", BIG, nullable=False),
        sa.Column("last", BIG, nullable=False),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("late", BIG, nullable=False),
        sa.Column("judged", sa.JSON(), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=True),
        sa.Column("context", sa.JSON(), nullable=True),
        sa.Column("decided", sa.Boolean(), nullable=False),
        sa.Column("episode", AutoString(), nullable=True),
    )
    of_a_version = ["model", "version", "rollout", "length", "key"]
    op.create_index("ix_monitoring_window_key", "monitoring_window", of_a_version, unique=True)
    op.create_index("ix_monitoring_window_decided", "monitoring_window", ["decided", "model", "version", "number"])
    op.create_table(
        "monitoring_part",
        sa.Column("id", BIG, primary_key=True, autoincrement=True),
        sa.Column("window", BIG, nullable=False, index=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first", BIG, nullable=False),
        sa.Column("last", BIG, nullable=False),
        sa.Column("skip", BIG, nullable=False),
        sa.Column("rows", BIG, nullable=False),
        sa.Column("counted", sa.LargeBinary(), nullable=True),
    )
    op.create_table(
        "monitoring_lease",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("replica", AutoString(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
    )

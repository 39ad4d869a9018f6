"""Labels of entities, which answers they are about, and predictions with their labels. Only adds: older replicas go on."""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0007"
down_revision = "0006"


def _text(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, AutoString(), primary_key=key, nullable=nullable)


def _time(name: str, *, key: bool = False) -> sa.Column[datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), primary_key=key, nullable=False)


def upgrade() -> None:
    op.create_table(
        "monitoring_entity_label",
        _text("model", key=True),
        _text("entity", key=True),
        _time("time", key=True),
        _text("text"),
        sa.Column("number", sa.Float(), nullable=True),
        sa.Column("sequence", BIG, nullable=False),
    )
    op.create_index("ix_monitoring_entity_label_sequence", "monitoring_entity_label", ["model", "sequence"])
    op.create_table(
        "monitoring_meant",
        _text("model", key=True),
        _text("entity", key=True),
        _time("time", key=True),
        _text("prediction_id"),
        _time("answered"),
    )
    op.create_index("ix_monitoring_meant_prediction", "monitoring_meant", ["model", "prediction_id"])
    op.create_table(
        "monitoring_joined",
        _text("model", key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("sequence", BIG, nullable=False),
    )
    _create_scored()


def _create_scored() -> None:
    op.create_table(
        "monitoring_scored",
        _text("model", key=True),
        sa.Column("version", sa.Integer(), primary_key=True, autoincrement=False),
        _text("prediction_id", key=True),
        sa.Column("number", BIG, nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        _time("time"),
        _text("producer"),
        _text("trace_id"),
        sa.Column("label_sequence", BIG, nullable=False),
        _text("label", nullable=True),
        _text("answer", nullable=True),
        sa.Column("target", sa.Float(), nullable=True),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("bin", sa.Integer(), nullable=True),
        sa.Column("score", sa.Float(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=True),
        sa.Column("slices", sa.JSON(), nullable=False),
    )
    op.create_index("ix_monitoring_scored_number", "monitoring_scored", ["model", "number"])
    op.create_index("ix_monitoring_scored_version", "monitoring_scored", ["model", "version", "number"])

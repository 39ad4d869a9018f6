"""The first tables of training."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import create_log_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_log_tables()
    op.create_table(
        "training_model",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("dataset", AutoString(), nullable=True),
        sa.Column("state", sa.JSON(), nullable=False),
    )
    op.create_index("ix_training_model_dataset", "training_model", ["dataset"])
    op.create_table(
        "training_dataset",
        sa.Column("name", AutoString(), primary_key=True),
        sa.Column("state", sa.JSON(), nullable=False),
    )
    op.create_table("training_ended", sa.Column("run", AutoString(), primary_key=True))

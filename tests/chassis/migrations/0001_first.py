"""The tables of the toy."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import create_log_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_log_tables()
    op.create_table(
        "toy_tally",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("applied", sa.Integer(), nullable=False),
        sa.Column("gaps", sa.Integer(), nullable=False),
        sa.Column("last", AutoString(), nullable=False),
    )

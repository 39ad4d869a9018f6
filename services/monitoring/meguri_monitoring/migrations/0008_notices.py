"""Who is to be told of episodes, and who was."""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "monitoring_notify",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("urls", sa.JSON(), nullable=False),
        sa.Column("language", AutoString(), nullable=False),
        sa.Column("since", BIG, nullable=False),
    )
    op.create_table(
        "monitoring_notice",
        sa.Column("episode", AutoString(), primary_key=True),
        sa.Column("moment", AutoString(), primary_key=True),
        sa.Column("target", AutoString(), primary_key=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("subject", AutoString(), nullable=False),
        sa.Column("error", AutoString(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
    )

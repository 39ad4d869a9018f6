"""A receipt may be that of a dead letter."""

import sqlalchemy as sa
from alembic import op

from meguri_chassis.store import BIG

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("ingest_receipt", sa.Column("letter", BIG, nullable=True))

"""The journal keeps every message that is heard, and what is parked is known."""

from alembic import op

from meguri_chassis.store import keep_whole_journal

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    keep_whole_journal()
    # The journal knows how often an event was sent.
    op.drop_column("ingest_receipt", "heard")

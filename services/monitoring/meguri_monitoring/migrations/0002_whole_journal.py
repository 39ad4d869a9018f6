"""The journal keeps every message that is heard, and what is parked is known."""

from meguri_chassis.store import keep_whole_journal

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    keep_whole_journal()

"""How far evaluators have come, and windows of their numbers."""

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    pass

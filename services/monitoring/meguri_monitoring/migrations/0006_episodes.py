"""Episodes of every kind, their timeline and evidence."""

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    pass

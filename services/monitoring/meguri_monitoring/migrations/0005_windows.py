"""Windows are planned, counted in parts by any replica, and judged."""

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    pass

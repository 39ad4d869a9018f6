"""Windows that wait, the latest ones and those of an episode are found without reading all others."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    waiting, of_episode = sa.text("judged IS NULL"), sa.text("episode IS NOT NULL")
    op.create_index("ix_monitoring_window_number", "monitoring_window", ["model", "version", "rollout", "number"])
    op.create_index(
        "ix_monitoring_window_waiting", "monitoring_window", ["id"], sqlite_where=waiting, postgresql_where=waiting
    )
    op.create_index(
        "ix_monitoring_window_episode",
        "monitoring_window",
        ["episode"],
        sqlite_where=of_episode,
        postgresql_where=of_episode,
    )

"""A rollout's row names all versions of its plan. Only adds, so that older replicas go on."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("registry_rollout", sa.Column("roles", sa.JSON(), nullable=False, server_default=sa.text("'[]'")))

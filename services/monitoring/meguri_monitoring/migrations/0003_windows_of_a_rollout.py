"""Windows belong to a rollout, and models know theirs. Only adds, so that older replicas go on: they still write `stale`."""

import json

import sqlalchemy as sa
from alembic import op

from meguri_chassis.store import BIG

revision = "0003"
down_revision = "0002"

MODEL = sa.table("monitoring_model", sa.column("name"), sa.column("rollout"), sa.column("hops"))
OPEN = sa.table("monitoring_open_window", sa.column("model"), sa.column("rollout"))
JUDGED = sa.table("monitoring_judged_window", sa.column("model"), sa.column("stale"), sa.column("rollout"))
JOURNAL = sa.table("log_journal", *(sa.column(name) for name in ("sequence", "kind", "key", "headers", "applied")))


def upgrade() -> None:
    for table in ("monitoring_model", "monitoring_open_window", "monitoring_judged_window"):
        op.add_column(table, sa.Column("rollout", BIG, nullable=False, server_default="0"))
    op.add_column("monitoring_model", sa.Column("hops", sa.Integer(), nullable=False, server_default="0"))
    connection = op.get_bind()
    rollouts = sa.select(JOURNAL.c.key, JOURNAL.c.sequence, JOURNAL.c.headers)
    applied = rollouts.where(JOURNAL.c.kind == "rollout-changed", JOURNAL.c.applied).order_by(JOURNAL.c.sequence)
    latest = {key: (sequence, headers) for key, sequence, headers in connection.execute(applied)}
    for model, (sequence, headers) in latest.items():
        hops = json.loads(headers).get("ce-hops", "0")
        known = {"rollout": sequence, "hops": int(hops) if hops.isascii() and hops.isdigit() and len(hops) <= 9 else 0}
        connection.execute(sa.update(MODEL).where(MODEL.c.name == model).values(**known))
        connection.execute(sa.update(OPEN).where(OPEN.c.model == model).values(rollout=sequence))
        current = sa.update(JUDGED).where(JUDGED.c.model == model, JUDGED.c.stale.is_(False))
        connection.execute(current.values(rollout=sequence))

"""Who answers the requests of a model, versions that were shadows, and labels. Only adds, so that older replicas go on."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0004"
down_revision = "0003"

PLAN_COLUMNS = (
    sa.Column("champion", sa.Integer(), nullable=False),
    sa.Column("challengers", sa.JSON(), nullable=False),
    sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    sa.Column("rollout", BIG, nullable=False),
    sa.Column("hops", sa.Integer(), nullable=False),
    sa.Column("measured", sa.JSON(), nullable=False),
)
JOURNAL = sa.table(
    "log_journal",
    *(sa.column(name) for name in ("sequence", "kind", "key", "headers", "body", "applied")),
    sa.column("time", sa.DateTime(timezone=True)),
)


def upgrade() -> None:
    op.add_column("monitoring_version", sa.Column("shadow", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "monitoring_label",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("prediction_id", AutoString(), primary_key=True),
        sa.Column("text", AutoString(), nullable=False),
        sa.Column("number", sa.Float(), nullable=True),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sequence", BIG, nullable=False),
    )
    op.create_index("ix_monitoring_label_sequence", "monitoring_label", ["model", "sequence"])
    plans = op.create_table("monitoring_plan", sa.Column("model", AutoString(), primary_key=True), *PLAN_COLUMNS)
    if known := _plans():
        op.bulk_insert(plans, known)


def _plans() -> list[dict[str, Any]]:
    """The plans of rollouts that were applied before: only champions answered then."""
    rollouts = sa.select(JOURNAL).where(JOURNAL.c.kind == "rollout-changed", JOURNAL.c.applied)
    plans: dict[str, dict[str, Any]] = {}
    for entry in op.get_bind().execute(rollouts.order_by(JOURNAL.c.sequence)).mappings():
        body = json.loads(entry["body"])
        champion = body.get("data", body).get("plan", {}).get("champion", {}).get("version")
        if champion is None or plans.get(entry["key"], {}).get("champion") == champion:
            continue
        hops = json.loads(entry["headers"]).get("ce-hops", "0")
        plans[entry["key"]] = {
            "model": entry["key"],
            "champion": champion,
            "challengers": [],
            "since": entry["time"],
            "rollout": entry["sequence"],
            "hops": int(hops) if hops.isascii() and hops.isdigit() and len(hops) <= 9 else 0,
            "measured": [],
        }
    return list(plans.values())

"""Episodes of every kind, their timeline and evidence. Only adds, so that older replicas go on."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime(timezone=True)
TEXTS = {"about": "drift", "subject": "", "producer": "", "action": "retrain", "event": "", "actor": "", "note": ""}
EPISODE = sa.table(
    "monitoring_episode",
    *(sa.column(name) for name in ("episode", "subject", "producer", "score", "event")),
    sa.column("detected", sa.JSON()),
)
MODEL = sa.table("monitoring_model", sa.column("name"), sa.column("rule", sa.JSON()))
JOURNAL = sa.table("log_journal", *(sa.column(name) for name in ("sequence", "event_id", "kind", "body", "applied")))


def upgrade() -> None:
    for name, default in (TEXTS | {"run": "", "stage": ""}).items():
        op.add_column("monitoring_episode", sa.Column(name, AutoString(), nullable=False, server_default=default))
    op.add_column("monitoring_episode", sa.Column("score", sa.Float(), nullable=False, server_default="0"))
    op.add_column("monitoring_episode", sa.Column("acknowledged", TIME, nullable=True))
    op.create_table(
        "monitoring_timeline",
        sa.Column("episode", AutoString(), primary_key=True),
        sa.Column("sequence", BIG, primary_key=True, autoincrement=False),
        sa.Column("time", TIME, nullable=False),
        *(sa.Column(name, AutoString(), nullable=False) for name in ("kind", "text", "event", "trace")),
    )
    op.create_table(
        "monitoring_evidence",
        sa.Column("episode", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("number", BIG, primary_key=True, autoincrement=False),
        sa.Column("judged", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
    )
    op.create_table(
        "monitoring_heard",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("time", TIME, nullable=False),
    )
    op.create_table(
        "monitoring_refused",
        sa.Column("model", AutoString(), primary_key=True),
        sa.Column("version", sa.Integer(), primary_key=True),
        sa.Column("sequence", BIG, nullable=False),
    )
    _describe_episodes()
    _leave_drift_to_people()


def _describe_episodes() -> None:
    """Fill in what the events say that began the episodes of before."""
    connection = op.get_bind()
    begun = {body["episode"]: id_ for id_, body in _said("drift-detected") if "episode" in body}
    for id_, detected in connection.execute(sa.select(EPISODE.c.episode, EPISODE.c.detected)).all():
        known = {
            "subject": detected["feature"],
            "producer": detected["producer"],
            "score": detected["distance"],
            "event": begun.get(id_, ""),
        }
        connection.execute(sa.update(EPISODE).where(EPISODE.c.episode == id_).values(**known))


def _leave_drift_to_people() -> None:
    """Where a spec says that drift is no reason to train again, an episode of it is only told."""
    connection = op.get_bind()
    specs = {body["model"]: body["spec"] for _, body in _said("spec-applied") if "spec" in body and "model" in body}
    for name, rule in connection.execute(sa.select(MODEL.c.name, MODEL.c.rule)).all():
        if specs.get(name, {}).get("retrain", {}).get("drift", True) is False:
            kept = {**rule, "actions": {"drift": "notify"}}
            connection.execute(sa.update(MODEL).where(MODEL.c.name == name).values(rule=kept))


def _said(kind: str) -> list[tuple[str, dict[str, Any]]]:
    entries = sa.select(JOURNAL.c.event_id, JOURNAL.c.body).where(JOURNAL.c.kind == kind, JOURNAL.c.applied)
    found = [(id_, json.loads(body)) for id_, body in op.get_bind().execute(entries.order_by(JOURNAL.c.sequence))]
    return [(id_, body.get("data", body)) for id_, body in found]

"""What each run learned from is kept, also of those that were started before."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from meguri_chassis.store import BIG

revision = "0003"
down_revision = "0002"

STARTED = sa.text("SELECT body FROM log_journal WHERE kind = 'training-started' AND applied ORDER BY sequence")


def upgrade() -> None:
    table = op.create_table(
        "training_run",
        sa.Column("run", AutoString(), primary_key=True),
        sa.Column("model", AutoString(), nullable=False),
        sa.Column("dataset", AutoString(), nullable=False),
        sa.Column("dataset_version", BIG, nullable=False),
    )
    op.create_index("ix_training_run_model", "training_run", ["model"])
    op.create_index("ix_training_run_dataset", "training_run", ["dataset"])
    started = [json.loads(bytes(body)) for (body,) in op.get_bind().execute(STARTED)]
    rows = {said["run"]: _row(said) for said in started}
    if rows:
        op.get_bind().execute(sa.insert(table), list(rows.values()))


def _row(said: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": said["run"],
        "model": said["model"],
        "dataset": said["spec"]["dataset"]["name"],
        "dataset_version": said["dataset_version"],
    }

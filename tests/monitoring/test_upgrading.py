"""Databases of before, brought up to date."""

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from alembic import command

from meguri_chassis.store import Database
from meguri_contracts.events import DriftDetected, Window
from meguri_monitoring import store
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.episodes import store as episode_store
from meguri_monitoring.episodes.episodes import Episode

BEGAN = datetime(2026, 5, 1, 12, tzinfo=UTC)
DETECTED = DriftDetected(
    model="m",
    version=2,
    episode="ep",
    feature="x",
    producer="camera-c",
    share=0.9,
    distance=1.5,
    ks=0.6,
    p_value=1e-9,
    drifted=("x",),
    window=Window(first=1, last=9, rows=300),
)


def test_an_episode_of_before_is_open_as_it_was(database_url):
    database = Database(database_url, MIGRATIONS)
    with database.engine.begin() as connection:
        command.upgrade(database.alembic(connection), "0004")
        tables = sqlalchemy.MetaData()
        tables.reflect(connection)
        for table, rows in _before().items():
            connection.execute(tables.tables[table].insert(), rows)
    database.migrate()

    with database.read() as session:
        state, rule, row = store.state(session, "m"), store.rule(session, "m"), episode_store.episode(session, "ep")
    database.close()
    assert state.episodes == (Episode("ep", 2, "drift", "x", "camera-c", 1.5),)
    assert (state.champion, state.rollout, state.reacted) == (2, 7, BEGAN)
    assert (row.event, row.status, row.action, row.about) == ("said-1", "opened", "retrain", "drift")
    assert (rule.action("drift"), rule.action("performance"), rule.windows) == ("notify", "retrain", 3)


def _before() -> dict[str, list[dict[str, Any]]]:
    """What the release before had of a model whose spec says that drift is no reason to train again."""
    known = ("model", "version", "episode", "feature", "producer", "share", "distance", "ks", "p_value", "drifted")
    detected = {**{field: json.loads(DETECTED.model_dump_json())[field] for field in known}, "samples": []}
    detected["window"] = {"first": 1, "last": 9, "rows": 300}
    episode = {"id": "ep", "version": 2, "feature": "x", "producer": "camera-c"}
    rule = {"window_rows": 500, "min_rows": 200, "p_value": 0.001, "distance": 0.1, "windows": 3}
    spec = {"model": "m", "retrain": {"rows": 1, "first_rows": 1, "drift": False}, "monitor": rule}
    entry = {"key": "m", "time": BEGAN, "headers": "{}", "applied": True}
    return {
        "log_journal": [
            entry | {"sequence": 5, "event_id": "spec-1", "kind": "spec-applied", "body": _body(model="m", spec=spec)},
            entry | {"sequence": 9, "event_id": "said-1", "kind": "drift-detected", "body": _body(**detected)},
        ],
        "monitoring_model": [
            {
                "name": "m",
                "rule": rule,
                "state": {"model": "m", "champion": 2, "episode": episode},
                "rollout": 7,
                "hops": 3,
            }
        ],
        "monitoring_episode": [
            {"episode": "ep", "model": "m", "version": 2, "detected": detected, "opened": BEGAN, "reason": ""}
        ],
    }


def _body(**event: Any) -> bytes:
    return json.dumps(event).encode()

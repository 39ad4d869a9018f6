"""What is kept of windows."""

from typing import Any

import numpy as np
from sqlalchemy import event
from sqlmodel import select

from meguri_chassis.store import Database
from meguri_contracts.spec import Monitor
from meguri_monitoring.app import MIGRATIONS
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows import windows
from meguri_monitoring.windows.store import WindowRow
from meguri_monitoring.windows.windows import Planner


def test_windows_of_versions_that_served_for_a_short_while_are_forgotten_too(database_url, monkeypatch):
    """A model that learns anew each day: no version of it ever has many windows, but there are many versions."""
    monkeypatch.setattr(window_store, "KEPT", 20)
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    for version in range(1, 11):
        with database.write() as session:
            for number in range(5):
                episode = "ep" if (version, number) == (1, 3) else None
                row = _window(version, number, episode)
                session.add(row)
                session.flush()
                window_store.mark_decided(session, row.id or 0)

    with database.read() as session:
        kept = [(row.version, row.number) for row in session.exec(select(WindowRow).order_by(WindowRow.id))]
    database.close()
    assert kept[0] == (1, 3)
    assert kept[1:] == [(version, number) for version in range(6, 11) for number in range(5)]


def test_a_window_of_which_two_parts_came_in_one_group_of_messages_is_kept_once(database_url):
    rule = Monitor(window_rows=50_000)
    first = windows.plan(Planner(), 1, np.zeros(20_000, np.int64), rule)
    second = windows.plan(first.planner, 2, np.zeros(30_000, np.int64), rule)
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    with database.write() as session:
        kept = window_store.keep_windows(session, "m", 1, 0, [*first.windows, *second.windows])
    with database.read() as session:
        (row,) = session.exec(select(WindowRow)).all()
        parts = window_store.parts_of(session, row.id or 0)
    database.close()

    assert [id_ for id_, _ in kept] == [row.id] * 2
    assert [part.id for part in parts] == [id_ for _, ids in kept for id_ in ids]
    assert (row.number, row.rows, row.parts, sum(part.rows for part in parts)) == (0, 50_000, len(parts), 50_000)


def _window(version: int, number: int, episode: str | None) -> WindowRow:
    return WindowRow(
        model="m",
        version=version,
        rollout=version,
        key=number,
        length=0,
        number=number,
        first=1,
        last=1,
        rows=1,
        parts=1,
        judged={},
        episode=episode,
    )


def test_of_an_episode_without_end_the_first_windows_are_kept(database_url, monkeypatch):
    monkeypatch.setattr(window_store, "KEPT", 20)
    database = Database(database_url, MIGRATIONS)
    database.migrate()
    for number in range(101):
        with database.write() as session:
            row = _window(1, number, None)
            session.add(row)
            session.flush()
            window_store.mark_episode(session, row.id or 0, "endless")
            window_store.mark_decided(session, row.id or 0)

    with database.read() as session:
        kept = [row.number for row in session.exec(select(WindowRow).order_by(WindowRow.id))]
    database.close()
    assert kept == [*range(20), *range(80, 101)]


def test_windows_that_wait_and_the_latest_ones_are_found_without_reading_all_others(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/test.db", MIGRATIONS)
    database.migrate()
    asked: list[tuple[str, Any]] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda _, __, query, values, *___: asked.append((query, values))
    )
    with database.read() as session:
        window_store.all_uncounted(session)
        window_store.latest(session, "m", 1, 1, 2)
        window_store.undecided(session)
        window_store.mark_episode(session, 1, "ep")
    with database.engine.connect() as connection:
        plans = [
            row[-1]
            for query in asked[1:]
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query[0]}", query[1])
        ]
    database.close()

    of_windows = [step for step in plans if "monitoring_window" in step]
    assert not [step for step in of_windows if step.startswith("SCAN") and "_waiting" not in step]
    assert not [step for step in plans if step == "USE TEMP B-TREE FOR ORDER BY"]

"""Tables are made again from the log and windows are not; what was said of lost windows is not said again."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import sqlalchemy
from alembic import command

from meguri_chassis.store import Database
from meguri_contracts.events import DriftDetected, EpisodeResolved, RolloutChanged
from meguri_monitoring import store
from meguri_monitoring.app import MIGRATIONS
from tests.conftest import until
from tests.monitoring.conftest import WINDOW, Monitoring, message, values
from tests.monitoring.state import counted, digest, wipe


async def story(monitoring: Monitoring) -> int:
    """Drift begins, ends, and begins again with another version; returns the sequence of the last prediction."""
    await monitoring.watch()
    for part, moved in enumerate((3.0, 0.0)):
        await monitoring.predict(*bodies(monitoring, moved, 10 * part))
        await monitoring.windows(2 * part + 2)
    await monitoring.said(EpisodeResolved)
    await monitoring.roll_out(2)
    last = await monitoring.predict(*bodies(monitoring, 3.0, 20, version=2), message(monitoring.model, values(30, 9)))
    await monitoring.said(DriftDetected, 2)
    return last


def bodies(monitoring: Monitoring, moved: float, seed: int, version: int = 1, count: int = 2) -> list[bytes]:
    return [message(monitoring.model, values(WINDOW, seed + n, moved), version=version) for n in range(count)]


async def all_said(monitoring: Monitoring) -> list[str]:
    kinds = (DriftDetected, EpisodeResolved)
    return [message.id for kind in kinds for message in await monitoring.wire.heard(kind, monitoring.model)]


async def has_counted(url: str, last: int) -> None:
    await until(lambda: counted(url)["position"] == [last], "the count")


# --- in place ---------------------------------------------------------------------------------------------------------


async def test_a_replay_while_predictions_go_on_changes_neither_tables_nor_windows(at, database_url):
    async with at() as monitoring, at() as other:
        await has_counted(database_url, await story(monitoring))
        before, windows, said = await digest(monitoring), counted(database_url), await all_said(monitoring)

        lines, last = await asyncio.gather(
            monitoring.http.post("/log/replay"), monitoring.predict(*(bodies(monitoring, 3.0, 50, version=2, count=6)))
        )
        await has_counted(database_url, last)
        step = json.loads(lines.text.splitlines()[-1])
        assert (step["before"], step["after"], step["differ"]) == (before[1], before[1], [])
        assert await digest(other) == before
        after = counted(database_url)
        assert after["judged"][: len(windows["judged"])] == windows["judged"]
        assert len(after["judged"]) == len(windows["judged"]) + 6
        assert await all_said(monitoring) == said


async def test_a_version_that_comes_back_begins_its_windows_anew(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        await has_counted(database_url, await monitoring.predict(*bodies(monitoring, 3.0, 1, count=1)))
        await has_counted(database_url, await monitoring.predict(message(monitoring.model, values(60, 3, 3.0))))
        await monitoring.roll_out(2)
        await monitoring.roll_out(1)
        await digest(monitoring)
        await has_counted(database_url, await monitoring.predict(*bodies(monitoring, 3.0, 5, count=1)))

        # One window of each rollout moved: neither begins an episode, and what was open is not counted on.
        assert [one["window"]["rows"] for one in await monitoring.windows(2)] == [WINDOW, WINDOW]
        assert await all_said(monitoring) == []
        await monitoring.predict(*bodies(monitoring, 3.0, 6, count=1))
        (detected,) = await monitoring.said(DriftDetected)
        assert detected.version == 1


async def test_drift_and_its_end_are_one_reaction_further_from_outside_than_the_rollout(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        rollout = (await monitoring.wire.heard(RolloutChanged, monitoring.model))[-1]
        await monitoring.roll_out(2)
        await monitoring.wire.publish("rollout-changed", monitoring.model, rollout.body, {"ce-hops": "4"})
        await digest(monitoring)
        for part, moved in enumerate((3.0, 0.0)):
            await monitoring.predict(*bodies(monitoring, moved, 10 * part))
        await monitoring.said(EpisodeResolved)

        heard = [
            (await monitoring.wire.heard(kind, monitoring.model))[0].hops for kind in (DriftDetected, EpisodeResolved)
        ]
        assert heard == [5, 5]


async def test_windows_that_one_message_fills_are_told_apart(at, database_url):
    async with at() as monitoring:
        await monitoring.watch()
        rows = [values(2 * WINDOW, seed, moved) for seed, moved in ((1, 3.0), (2, 0.0), (3, 3.0))]
        await monitoring.predict(message(monitoring.model, np.concatenate(rows)))
        first, second = await monitoring.said(DriftDetected, 2)
        (resolved,) = await monitoring.said(EpisodeResolved)

        assert first.episode == resolved.episode != second.episode


# --- with a wiped database --------------------------------------------------------------------------------------------


async def test_a_wiped_database_is_made_again_and_nothing_is_said_a_second_time(at, database_url):
    async with at() as monitoring:
        last = await story(monitoring)
        await has_counted(database_url, last)
        before, said = await digest(monitoring), await all_said(monitoring)
    wipe(database_url)

    async with at() as monitoring, at() as other:
        await has_counted(database_url, last)
        assert await digest(monitoring) == await digest(other) == before
        assert counted(database_url)["judged"] == []
        # What comes now is counted; the drift that goes on was said already.
        more = await monitoring.predict(*bodies(monitoring, 3.0, 70, version=2))
        await has_counted(database_url, more)
        assert len(await monitoring.windows(2)) == 2
        assert await all_said(monitoring) == said
        await monitoring.predict(*bodies(monitoring, 0.0, 80, version=2))
        assert len(await monitoring.said(EpisodeResolved, 2)) == 2


async def test_tables_that_are_wiped_while_the_service_runs_are_made_again(at, database_url):
    async with at() as monitoring, at() as other:
        await has_counted(database_url, await story(monitoring))
        before, said = await digest(monitoring), await all_said(monitoring)
        wipe(database_url)
        # The next prediction tells both.
        last = await monitoring.predict(*bodies(monitoring, 3.0, 70, version=2))
        await has_counted(database_url, last)

        assert await digest(monitoring) == await digest(other) == before
        assert await all_said(monitoring) == said
        assert monitoring.kept(2).height == 4 * WINDOW


async def test_without_tables_of_predictions_all_that_the_stream_holds_is_counted(at, database_url, tmp_path):
    async with at() as monitoring:
        await monitoring.watch()
        last = await monitoring.predict(*bodies(monitoring, 3.0, 1, count=4))
        await has_counted(database_url, last)
        await monitoring.said(DriftDetected)
        windows, said = counted(database_url), await all_said(monitoring)
    wipe(database_url)

    async with at("elsewhere") as monitoring:
        await has_counted(database_url, last)
        assert counted(database_url) == windows
        assert await all_said(monitoring) == said
        assert monitoring.kept().height == 4 * WINDOW


# --- existing databases -----------------------------------------------------------------------------------------------


def test_windows_of_an_older_database_belong_to_its_last_rollout(database_url):
    database = Database(database_url, MIGRATIONS)
    with database.engine.begin() as connection:
        command.upgrade(database.alembic(connection), "0002")
        tables = sqlalchemy.MetaData()
        tables.reflect(connection)
        for table, rows in _older().items():
            connection.execute(tables.tables[table].insert(), rows)
    database.migrate()

    with database.read() as session:
        state = store.state(session, "m")
        assert (state.champion, state.rollout, state.hops) == (2, 7, 3)
        plan = store.plan(session, "m")
        assert plan is not None
        assert (plan.versions, plan.rollout, plan.hops, plan.measured) == ((2,), 7, 3, [])
        rollouts = dict(
            session.connection().execute(sqlalchemy.text("SELECT id, rollout FROM monitoring_judged_window")).all()
        )
    database.close()
    assert rollouts == {1: 0, 2: 7}


def _older() -> dict[str, list[dict[str, Any]]]:
    span = {"first": 1, "last": 2, "rows": 3}
    judged = {"version": 2, "window": span, "judged": True, "drifted": [], "producer": "", "share": 0, "samples": []}
    body = json.dumps({"plan": {"champion": {"version": 2}}}).encode()
    entry = {"kind": "rollout-changed", "key": "m", "time": datetime.now(UTC), "body": body}
    return {
        "log_journal": [
            entry | {"sequence": 5, "event_id": "a", "headers": "{}", "applied": True, "body": b"{}"},
            entry | {"sequence": 7, "event_id": "b", "headers": json.dumps({"ce-hops": "3"}), "applied": True},
            entry | {"sequence": 8, "event_id": "b", "headers": "{}", "applied": False},
        ],
        "monitoring_model": [{"name": "m", "rule": {}, "state": {"model": "m", "champion": 2, "episode": None}}],
        "monitoring_open_window": [{"model": "m", "version": 2, "window": b"{}"}],
        "monitoring_judged_window": [
            {"id": 1, "model": "m", "version": 2, "judged": judged, "decided": True, "stale": True},
            {"id": 2, "model": "m", "version": 2, "judged": judged, "decided": True, "stale": False},
        ],
    }

"""Versions of a service run side by side: what is new is left alone by the old, until a replay applies it."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.util import CommandError
from sqlmodel import Session, select

from meguri_chassis import log, telemetry
from meguri_chassis.bus import hears
from meguri_chassis.log import Message
from meguri_chassis.store import Database, JournalEntry
from meguri_contracts.events import ModelRegistered, TrainingRequested
from meguri_registry.app import MIGRATIONS as REGISTRY_MIGRATIONS
from meguri_registry.app import build
from meguri_registry.settings import Settings
from tests.chassis import toy as toys
from tests.chassis.hearing import NAME, all_done, give_version, hearing
from tests.chassis.toy import Toy, register, toy
from tests.conftest import Broker, until
from tests.services import Wire, name, running, wire

BODY = {"reason": "r", "actor": "test"}
NEWER = "meguri.training-requested.v2"
COLUMN = """
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("toy_tally", sa.Column("team", sa.String(), nullable=False, server_default=""))
"""


@pytest.fixture
async def own(broker: Broker) -> AsyncIterator[Wire]:
    async with wire(broker) as own:
        yield own


async def request(own: Wire, model: str, type_: str = TrainingRequested.type, **fields: Any) -> int:
    headers = {"ce-type": type_, "ce-id": name("e"), "ce-specversion": "1.0", "ce-source": "test"}
    return await own.publish("training-requested", model, json.dumps(BODY | fields).encode(), headers)


def applied(replica: Toy) -> list[bool]:
    """Of each journal entry, whether it changed the tables."""
    with replica.database.read() as session:
        return list(session.exec(select(JournalEntry.applied).order_by(JournalEntry.sequence)))


# --- events -----------------------------------------------------------------------------------------------------------


async def test_an_event_with_fields_that_nobody_knows_yet_is_handled(own, broker, database_url):
    async with toy(database_url, own.js) as replica, hearing(broker, give_version, decider=replica.decider):
        await request(own, "m", team="blue", nested={"ce-type": "x", "deep": [1, {"er": None}]})
        (said,) = await until(lambda: own.said(ModelRegistered, "m"))
        await until(lambda: all_done(own))

        assert (said.version, said.run) == (1, "r")
        assert await own.parked(NAME) == []


async def test_an_event_of_a_newer_version_is_left_alone_and_kept_and_the_next_is_handled(own, broker, database_url):
    ignored = telemetry.HANDLED.labels(NAME, "training-requested", "ignored")
    before = ignored._value.get()
    async with toy(database_url, own.js) as replica, hearing(broker, give_version, decider=replica.decider):
        await request(own, "m", NEWER, reason={"text": "another shape"})
        last = await request(own, "m")
        await until(lambda: own.said(ModelRegistered, "m"))
        await until(lambda: all_done(own))
        await replica.projection.reached(last + 1)

        assert ignored._value.get() == before + 1
        assert await own.parked(NAME) == []
        assert applied(replica) == [False, True, True]
        assert (replica.tally("m").version, replica.tally("m").applied) == (1, 2)
        assert replica.projection.left_alone == {last - 1}


async def test_a_replay_after_the_upgrade_applies_what_was_left_alone(own, database_url, monkeypatch):
    async with toy(database_url, own.js) as old:
        left = await request(own, "m", NEWER)
        await old.projection.reached(await request(own, "other"))
        assert old.tally("m").applied == 0

    monkeypatch.setitem(log.BY_TYPE, NEWER, TrainingRequested)
    async with toy(database_url, own.js) as new:
        await new.projection.reached(await request(own, "other"))
        assert new.projection.left_alone == {left}
        async for step in new.projection.rebuild(lambda: own.js):
            last = step
        assert sorted(table for table in last.after if last.after[table] != last.before[table]) == [
            "log_journal",
            "toy_tally",
        ]
        assert new.tally("m").applied == 1
        assert new.projection.left_alone == set()


async def test_a_replay_says_what_a_release_of_before_did_not_keep(own, database_url):
    async with toy(database_url, own.js, hears=[ModelRegistered]) as old:
        await request(own, "m")
        await old.projection.reached(await request(own, "m"))

    async with toy(database_url, own.js) as new:
        await new.projection.reached(await request(own, "m"))
        for keep, missing in ((False, {"training-requested": 2}), (True, {"training-requested": 2}), (False, {})):
            async for step in new.projection.rebuild(lambda: own.js, keep=keep):
                last = step
            assert last.not_kept == missing
        assert new.tally("m").applied == 3


async def test_operators_see_what_was_left_alone_also_after_a_restart(own, broker, database_url, tmp_path):
    settings = Settings(nats_url=broker.url, database_url=database_url, var=tmp_path)
    last = await own.publish("model-trained", "m", b"{}", {"ce-type": "meguri.model-trained.v2", "ce-id": "1"})
    for _ in range(2):
        async with running(build(settings)) as http:
            await http.get("/log", headers={"Meguri-After": str(last)})
            ready = (await http.get("/health/ready")).json()

            assert (ready["ready"], ready["reasons"]) == (True, [])
            assert ready["warnings"] == [
                "1 events of newer versions were left alone: after the upgrade `meguri replay registry` applies them"
            ]
    assert await own.parked("registry-judge") == []


# --- replicas of two versions -----------------------------------------------------------------------------------------


def newer(folder: Path) -> Path:
    """The migrations of the next release of the toy: one column more."""
    shutil.copytree(toys.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "0003_teams.py").write_text(COLUMN)
    return folder


def evolve_with_team(session: Session, event: Any, message: Message) -> None:
    toys.evolve(session, event, message)
    session.flush()
    table = sa.table("toy_tally", sa.column("model"), sa.column("team"))
    if team := json.loads(message.body).get("team"):
        session.connection().execute(sa.update(table).where(table.c.model == event.key).values(team=team))


@asynccontextmanager
async def newer_toy(url: str, own: Wire, folder: Path) -> AsyncIterator[Toy]:
    """A replica of the next release: it knows a field `team` of the event, and has a column for it."""
    Database(url, newer(folder)).migrate()
    async with toy(url, own.js, evolve=evolve_with_team) as replica:
        yield replica


def teams(replica: Toy) -> set[str]:
    with replica.database.read() as session:
        return set(session.connection().execute(sa.text("SELECT team FROM toy_tally")).scalars())


async def test_replicas_of_two_versions_share_consumer_and_tables(own, broker, database_url, tmp_path):
    handled: dict[str, int] = {"old": 0, "new": 0}

    def handler(version: str) -> Any:
        @hears(TrainingRequested)
        def give(event: TrainingRequested, session: Any) -> Sequence[ModelRegistered]:
            handled[version] += 1
            return register(event.model, event.reason)(session)

        return give

    async with (
        toy(database_url, own.js) as old,
        newer_toy(database_url, own, tmp_path / "newer") as new,
        hearing(broker, handler("old"), decider=old.decider),
        hearing(broker, handler("new"), decider=new.decider),
    ):
        for number in range(40):
            await request(own, f"m-{number % 4}", team="blue")
        await until(lambda: all_done(own))
        last = (await own.js.stream_info(log.LOG)).state.last_seq
        await old.projection.reached(last)
        await new.projection.reached(last)
        tallies = [[replica.tally(f"m-{number}") for number in range(4)] for replica in (old, new)]

        assert all(handled.values()), handled
        assert tallies[0] == tallies[1]
        assert [(tally.version, tally.applied, tally.gaps) for tally in tallies[0]] == [(10, 20, 0)] * 4
        # What the old one applied lacks the new column; a replay after the upgrade puts it there.
        async for _ in new.projection.rebuild(lambda: own.js):
            pass
        assert teams(new) == {"blue"}
        assert [old.tally(f"m-{number}") for number in range(4)] == tallies[0]


async def test_an_old_replica_starts_on_a_database_that_a_newer_one_has_migrated(own, database_url, tmp_path):
    Database(database_url, newer(tmp_path / "newer")).migrate()

    async with toy(database_url, own.js) as old:
        await old.projection.reached(await request(own, "m", team="blue"))
        assert old.tally("m").applied == 1
        with old.database.read() as session:
            version = session.connection().execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        assert version == "0003"


async def test_a_service_is_ready_on_a_database_of_a_newer_release(broker, database_url, tmp_path):
    database = Database(database_url, REGISTRY_MIGRATIONS)
    database.migrate()
    with database.write() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()

    settings = Settings(nats_url=broker.url, database_url=database_url, var=tmp_path)
    async with running(build(settings)) as http:
        assert (await http.get("/log")).status_code == 200


def test_a_database_of_something_else_is_not_taken_for_a_newer_one(database_url):
    database = Database(database_url, toys.MIGRATIONS)
    database.migrate()
    with database.write() as session:
        session.connection().execute(sa.text("UPDATE alembic_version SET version_num = 'ffee'"))
    with pytest.raises(CommandError, match="ffee"):
        database.migrate()
    database.close()


def test_a_database_of_an_older_release_is_brought_up_to_date(database_url):
    database = Database(database_url, toys.MIGRATIONS)
    with database.engine.begin() as connection:
        command.upgrade(database.alembic(connection), "0001")
    database.migrate()

    assert "log_parked" in sa.inspect(database.engine).get_table_names()
    database.close()

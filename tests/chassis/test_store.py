"""The database of a service: the same on SQLite and PostgreSQL."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import JSON
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, select

from meguri_chassis import store
from meguri_chassis.store import _MIGRATION_LOCK, Database, StoreUnavailable, keep_heads, locked_position, move_position
from meguri_contracts.errors import TemporaryError
from tests.chassis.toy import MIGRATIONS, Tally, migrated
from tests.conftest import PATIENCE, ROOT, until

SERVICES = sorted(path.parents[1].name for path in ROOT.glob("services/*/*/migrations"))


@pytest.fixture
def database(database_url):
    database = migrated(database_url)
    yield database
    database.close()


def test_the_services_with_tables_are_found():
    assert {"ingest", "monitoring", "registry", "training"} <= set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_the_migrations_of_a_service_make_the_tables_that_its_code_uses(service, database_url):
    app = import_module(f"meguri_{service}.app")
    database = Database(database_url, Path(app.__file__).parent / "migrations")
    database.migrate()

    def is_its_own(_, name, kind, *__):
        return kind != "table" or name.startswith((f"{service}_", "log_"))

    with database.engine.connect() as connection:
        options = {"include_object": is_its_own, "compare_type": True, "compare_server_default": _differs}
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)
    database.close()

    assert differences == []
    assert [name for name in SQLModel.metadata.tables if name.startswith(f"{service}_")]


def _differs(_: Any, __: Any, column: Any, kept: str | None, ___: str | None, said: str | None) -> bool | None:
    """Whether two defaults differ; None leaves it to alembic, which asks the database, and PostgreSQL compares no JSON."""
    return (kept or "").partition("::")[0] != said if isinstance(column.type, JSON) else None


def test_migrating_again_changes_nothing(database):
    with database.write() as session:
        session.add(Tally(model="m", version=3))
    database.migrate()

    with database.read() as session:
        assert session.get(Tally, "m").version == 3


def two_that_migrate(url: str) -> list[subprocess.Popen[bytes]]:
    migrate = f"from tests.chassis.toy import migrated; migrated({url!r})"
    return [subprocess.Popen([sys.executable, "-c", migrate], cwd=ROOT) for _ in range(2)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_replicas_that_start_together_migrate_once(database_url):
    replicas = two_that_migrate(database_url)

    assert [replica.wait(PATIENCE) for replica in replicas] == [0, 0]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_replica_that_waited_sees_that_another_has_migrated(database_url):
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(database_url, autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
        replicas = two_that_migrate(database_url)
        await until(lambda: gate.execute(waiting).fetchone() == (2,), "both replicas at the lock")

    assert [replica.wait(PATIENCE) for replica in replicas] == [0, 0]


def test_a_reader_sees_one_moment_of_the_database(database):
    with database.write() as session:
        session.add(Tally(model="m", version=1))
    with database.read() as reader:
        before = reader.exec(select(Tally.version)).all()
        with database.write() as session:
            session.add(Tally(model="n", version=2))

        assert reader.exec(select(Tally.version)).all() == before == [1]
    with database.read() as reader:
        assert sorted(reader.exec(select(Tally.version)).all()) == [1, 2]


def test_what_a_failing_writer_wrote_is_undone(database):
    def fail() -> None:
        with database.write() as session:
            session.add(Tally(model="m"))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.read() as session:
        assert session.get(Tally, "m") is None


def test_the_second_of_two_projections_waits_for_the_first_even_before_there_is_a_position(database):
    def second() -> int:
        with database.write() as session:
            return locked_position(session, "log")

    with ThreadPoolExecutor() as pool:
        with database.write() as session:
            assert locked_position(session, "log") == 0
            waiting = pool.submit(second)
            assert not wait([waiting], timeout=0.2).done
            move_position(session.connection(), "log", 7)

        assert waiting.result(timeout=PATIENCE) == 7


def test_positions_and_heads_are_written_over_and_may_need_64_bits(database):
    for sequence in (1, 2**62):
        with database.write() as session:
            move_position(session.connection(), "log", sequence)
            keep_heads(session.connection(), {"a": sequence, "b": sequence})
            keep_heads(session.connection(), {})
    with database.write() as session:
        assert locked_position(session, "log") == 2**62


@pytest.mark.parametrize("url", ["postgresql://meguri@127.0.0.1:1/nothing", "sqlite:////proc/nowhere/test.db"])
def test_a_database_that_does_not_answer_is_a_matter_of_time(url):
    database = Database(url, MIGRATIONS)
    for use in (database.read, database.write):
        with pytest.raises(StoreUnavailable, match="the database does not answer") as failure, use() as session:
            session.get(Tally, "m")
        assert isinstance(failure.value, TemporaryError)


def test_a_mistake_of_our_own_is_not_excused_by_the_database(database):
    with database.write() as session:
        session.add(Tally(model="m"))
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(Tally(model="m"))


def test_any_text_that_json_can_hold_can_be_kept(database):
    with database.write() as session:
        session.add(Tally(model="m", last="巡り \x00 \U0001f501"))
    with database.read() as session:
        assert session.get(Tally, "m").last.startswith("巡り ")
        assert session.get(Tally, "m").last.endswith(" \U0001f501")


def test_a_new_file_that_others_begin_with_at_the_same_time_is_tried_again():
    answers = [sqlite3.OperationalError("database is locked"), sqlite3.OperationalError("database is locked"), None]

    class Connection:
        def execute(self, statement: str) -> None:
            if error := answers.pop(0):
                raise error

    store._write_ahead(Connection())
    assert answers == []

    answers[:] = [sqlite3.OperationalError("disk I/O error")]
    with pytest.raises(sqlite3.OperationalError, match="disk"):
        store._write_ahead(Connection())

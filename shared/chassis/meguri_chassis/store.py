"""A service's own database: SQLite or PostgreSQL with the same code, migrated at start, written by its projection only."""

import asyncio
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.abc import Buffer
from psycopg.types.string import StrDumperUnknown
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Engine, LargeBinary, bindparam, event, exc, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Field, Session, SQLModel, col, create_engine
from sqlmodel.sql.sqltypes import AutoString

from meguri_contracts.errors import TemporaryError

logger = logging.getLogger(__name__)

T = TypeVar("T")
BIG = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
"""64 bits on both databases; stream sequences and byte counts need them."""

_WRITE_SQLITE = {"meguri_write": True}
_WRITE_POSTGRESQL = {"isolation_level": "READ COMMITTED"}
"""A writer locks its position row first, and must then see what the writer before it committed."""

WRITE_AHEAD_PATIENCE = 30.0
"""Seconds over which a new SQLite file may be locked by others that begin with it."""
KEPT_ROWS = 5000
"""Rows that a writer keeps at most."""

_MIGRATION_LOCK = 0x6D656775
"""Key of the PostgreSQL advisory lock that lets one replica migrate at a time."""


class StoreUnavailable(TemporaryError):
    """The database does not answer."""


class Position(SQLModel, table=True):
    """How far a projection has come: the last stream sequence that it applied."""

    __tablename__ = "log_position"

    projection: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, nullable=False))
    rebuilt: int = Field(default=0, sa_column=Column(BIG, nullable=False, server_default="0"))
    """How often the tables were made again from the log."""


class Head(SQLModel, table=True):
    """The last sequence of any event of a key: what an append for that key expects."""

    __tablename__ = "log_head"

    key: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, nullable=False))


class JournalEntry(SQLModel, table=True):
    """A message of the log that this service hears, verbatim, so that a lost log can be made again."""

    __tablename__ = "log_journal"

    sequence: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    event_id: str = Field(index=True)
    kind: str
    key: str
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
    headers: str
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    applied: bool = Field(default=True, sa_column=Column(Boolean, nullable=False, server_default=sqlalchemy.true()))
    """Whether it changed the tables: not one that cannot be read, nor one that was heard before."""


class Parked(SQLModel, table=True):
    """A message that a consumer could not handle and nobody sent back yet."""

    __tablename__ = "log_parked"

    consumer: str = Field(primary_key=True)
    stream: str = Field(primary_key=True)
    sequence: int = Field(sa_column=Column(BIG, primary_key=True, autoincrement=False))
    event: str
    reason: str
    time: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))


_LOCKED = (
    select(col(Position.sequence), col(Position.rebuilt))
    .where(col(Position.projection) == bindparam("name"))
    .with_for_update()
)


def create_log_tables() -> None:
    """Create the tables of this module; the first migration of each service calls it."""
    op.create_table(
        "log_position",
        Column("projection", AutoString(), primary_key=True),
        Column("sequence", BIG, nullable=False),
    )
    op.create_table("log_head", Column("key", AutoString(), primary_key=True), Column("sequence", BIG, nullable=False))
    op.create_table(
        "log_journal",
        Column("sequence", BIG, primary_key=True, autoincrement=False),
        Column("event_id", AutoString(), nullable=False),
        Column("kind", AutoString(), nullable=False),
        Column("key", AutoString(), nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("headers", AutoString(), nullable=False),
        Column("body", LargeBinary, nullable=False),
    )
    op.create_index("ix_log_journal_event_id", "log_journal", ["event_id"])
    op.create_index("ix_log_journal_kind", "log_journal", ["kind"])


def keep_whole_journal() -> None:
    """Journal what was not applied, and keep what is parked; a later migration of each service calls it."""
    # A kind that nobody knows can be longer than what an index takes.
    op.drop_index("ix_log_journal_kind", "log_journal")
    op.add_column("log_position", Column("rebuilt", BIG, nullable=False, server_default="0"))
    op.add_column("log_journal", Column("applied", Boolean, nullable=False, server_default=sqlalchemy.true()))
    op.create_table(
        "log_parked",
        Column("consumer", AutoString(), primary_key=True),
        Column("stream", AutoString(), primary_key=True),
        Column("sequence", BIG, primary_key=True, autoincrement=False),
        Column("event", AutoString(), nullable=False),
        Column("reason", AutoString(), nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
    )


def locked_position(session: Session, name: str) -> int:
    """Return how far a projection has come; until the end of the transaction nobody else can move it."""
    return locked(session, name)[0]


def locked(session: Session, name: str) -> tuple[int, int]:
    """Return how far a projection has come and how often it was rebuilt, and lock it as `locked_position` does."""
    connection = session.connection()
    found = connection.execute(_LOCKED, {"name": name}).one_or_none()
    if found is None:
        # Without a row there is nothing to lock: of two that come first, one waits here for the other.
        first = _insert(connection.dialect.name, Position).on_conflict_do_nothing()
        connection.execute(first, {"projection": name, "sequence": 0})
        found = connection.execute(_LOCKED, {"name": name}).one()
    return found[0], found[1]


def count_rebuild(connection: sqlalchemy.Connection, name: str) -> None:
    """Say that the tables of a projection were made again, to whoever keeps rows of them."""
    connection.execute(update(Position).where(col(Position.projection) == name).values(rebuilt=Position.rebuilt + 1))


def move_position(connection: sqlalchemy.Connection, name: str, sequence: int) -> None:
    """Say how far a projection has come."""
    connection.execute(
        _upsert(connection.dialect.name, Position, "projection"), [{"projection": name, "sequence": sequence}]
    )


def keep_heads(connection: sqlalchemy.Connection, heads: Mapping[str, int]) -> None:
    """Say the last sequence of each key."""
    if rows := [{"key": key, "sequence": sequence} for key, sequence in sorted(heads.items())]:
        connection.execute(_upsert(connection.dialect.name, Head, "key"), rows)


@cache
def _upsert(dialect: str, table: type[SQLModel], key: str) -> postgresql.Insert | sqlite.Insert:
    statement = _insert(dialect, table)
    return statement.on_conflict_do_update(index_elements=[key], set_={"sequence": statement.excluded.sequence})


def _insert(dialect: str, table: type[SQLModel]) -> postgresql.Insert | sqlite.Insert:
    return (postgresql if dialect == "postgresql" else sqlite).insert(table)


class Database:
    """Sessions on one database. `migrations` is the folder of the service's Alembic versions."""

    def __init__(self, url: str, migrations: Path) -> None:
        self.url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self.migrations = migrations
        self.engine = _engine(self.url)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment of the database, from its first query to its end."""
        with _translated(), self.session() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that writes: committed at the end, rolled back on an error, one writer at a time on SQLite."""
        with _translated(), self.session() as session:
            self.begin_writing(session)
            yield session
            session.commit()

    async def ask(self, question: Callable[[Session], T]) -> T:
        """Answer a question of a coroutine in a thread: a database that is slow to answer must not hold up the event loop."""

        def answered() -> T:
            with self.read() as session:
                return question(session)

        return await asyncio.to_thread(answered)

    async def change(self, by: Callable[[Session], T]) -> T:
        """Write for a coroutine, likewise."""

        def changed() -> T:
            with self.write() as session:
                return by(session)

        return await asyncio.to_thread(changed)

    def session(self) -> Session:
        """A session that has not begun yet; whoever takes it begins, commits and closes it. Undone if it is only closed."""
        return Session(self.engine, expire_on_commit=False)

    def begin_writing(self, session: Session) -> None:
        with _translated():
            session.connection(execution_options=_WRITE_SQLITE if self.is_sqlite else _WRITE_POSTGRESQL)

    def migrate(self) -> None:
        """Bring the tables up to date. Replicas that start together wait for each other.

        Tables that a newer release has brought further are taken as they are: migrations only add.
        """
        with _translated():
            if self.is_sqlite and (path := self.engine.url.database):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            # Whoever waited for the lock must see what was done meanwhile, so no snapshot from before.
            as_writer = _WRITE_SQLITE if self.is_sqlite else _WRITE_POSTGRESQL
            with self.engine.connect().execution_options(**as_writer) as connection:
                if not self.is_sqlite:
                    connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                config = self.alembic(connection)
                if ahead := _ahead(connection, config):
                    logger.warning(
                        "the database is at %s, newer than this code; newer replicas only added to it", ahead
                    )
                else:
                    command.upgrade(config, "head")
                connection.commit()

    def alembic(self, connection: sqlalchemy.Connection) -> Config:
        """Return the Alembic configuration for this database on an open connection."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.set_main_option("version_locations", str(self.migrations))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        return config

    def close(self) -> None:
        self.engine.dispose()


class Writer:
    """Transactions of one writer that keeps the latest rows it has seen, so as not to ask for them again.

    That is right for as long as nobody else writes; whoever notices that somebody did says `forget`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session = database.session()
        # A session alone holds no row that nobody else holds.
        self._rows: deque[Any] = deque(maxlen=KEPT_ROWS)
        for happening in ("loaded_as_persistent", "pending_to_persistent"):
            event.listen(self._session, happening, lambda _, row: self._rows.append(row))

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """The session in a transaction: committed at the end; on an error rolled back and everything forgotten."""
        try:
            with _translated():
                self._database.begin_writing(self._session)
                yield self._session
                self._session.commit()
        except BaseException:
            self._session.rollback()
            self.forget()
            raise

    def forget(self) -> None:
        """Ask for every row again from now on."""
        self._session.expunge_all()
        self._rows.clear()


def _ahead(connection: sqlalchemy.Connection, config: Config) -> str | None:
    """Return the version of a database that a newer release has migrated; revisions are numbers of four digits."""
    current = MigrationContext.configure(connection).get_current_revision()
    newest = ScriptDirectory.from_config(config).get_current_head()
    return current if current and newest and current.isdigit() and current > newest else None


def utc(time: datetime) -> datetime:
    """Give a time read from SQLite, which keeps no time zone, its UTC back."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError) as error:
        raise StoreUnavailable(f"the database does not answer: {error.orig}") from error


def _engine(url: str) -> Engine:
    if not url.startswith("sqlite"):
        return _postgresql(url)
    engine = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        # The driver would begin transactions at the first write only, so that reads would see no snapshot.
        connection.isolation_level = None
        _write_ahead(connection)
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        write = connection.get_execution_options().get("meguri_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _write_ahead(connection: Any) -> None:
    """Have the log written ahead. Of several that do this to a new file at once, all but one are told to try again, at once."""
    until = time.monotonic() + WRITE_AHEAD_PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return


def _postgresql(url: str) -> Engine:
    # In UTC, because Python has no year 0, where year 1 of other zones lies.
    in_utc = {"options": "-c timezone=UTC"}
    engine = create_engine(url, pool_pre_ping=True, isolation_level="REPEATABLE READ", connect_args=in_utc)

    @event.listens_for(engine, "connect")
    def _set_up(connection: psycopg.Connection[Any], _: Any) -> None:
        connection.adapters.register_dumper(str, _WithoutNul)

    return engine


class _WithoutNul(StrDumperUnknown):
    """PostgreSQL takes no NUL in a text; JSON does, and an upstream's text must not stop a projection."""

    def dump(self, obj: str) -> Buffer | None:
        return super().dump(obj.replace("\x00", "?"))

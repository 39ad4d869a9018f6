"""Tables of windows: planned, counted in parts, judged."""

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    delete,
    func,
    or_,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased
from sqlmodel import Field, Session, SQLModel, col, select
from sqlmodel.sql.expression import SelectOfScalar

from meguri_chassis.store import BIG
from meguri_monitoring.store import Behind
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows.windows import Part, Planner, Window

KEPT = 2000
"""Judged windows of a version that are kept, and of all versions before the present rollout, beside those of episodes: of each
episode as many, the first ones."""
LEASE = 5.0
"""Seconds after which another replica takes over from one that was recording."""

_PLANNER = TypeAdapter(Planner)
_JUDGED = TypeAdapter(Judged)
_WAITING = text("judged IS NULL")
_OF_EPISODE = text("episode IS NOT NULL")


class PlannedRow(SQLModel, table=True):
    """How far the rows of a version are planned since a rollout."""

    __tablename__ = "monitoring_planned"

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    rollout: int = Field(sa_column=Column(BIG, nullable=False))
    planner: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))


class WindowRow(SQLModel, table=True):
    """A window of which at least a part is planned. It has a number once it is closed, and a verdict once that is counted."""

    __tablename__ = "monitoring_window"
    __table_args__ = (
        Index("ix_monitoring_window_key", "model", "version", "rollout", "length", "key", unique=True),
        Index("ix_monitoring_window_decided", "decided", "model", "version", "number"),
        Index("ix_monitoring_window_number", "model", "version", "rollout", "number"),
        Index("ix_monitoring_window_waiting", "id", sqlite_where=_WAITING, postgresql_where=_WAITING),
        Index("ix_monitoring_window_episode", "episode", sqlite_where=_OF_EPISODE, postgresql_where=_OF_EPISODE),
    )

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True, autoincrement=True))
    model: str
    version: int
    rollout: int = Field(sa_column=Column(BIG, nullable=False))
    """Sequence of the rollout that it belongs to."""
    key: int = Field(sa_column=Column(BIG, nullable=False))
    length: int = Field(sa_column=Column(BIG, nullable=False))
    number: int | None = None
    first: int = Field(sa_column=Column(BIG, nullable=False))
    last: int = Field(sa_column=Column(BIG, nullable=False))
    rows: int = Field(sa_column=Column(BIG, nullable=False))
    parts: int
    late: int = Field(default=0, sa_column=Column(BIG, nullable=False))
    """Rows that came after it was closed."""
    judged: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))
    evidence: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))
    """What the verdict rests on, when something moved."""
    context: dict[str, str] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True), nullable=True))
    """Of the trace in which it was judged."""
    decided: bool = False
    """Whether it was asked what follows from it."""
    episode: str | None = None
    """An episode that it opened, or that was open when it was judged."""

    @property
    def verdict(self) -> Judged:
        return _JUDGED.validate_python(self.judged)

    @property
    def moved(self) -> bool:
        """Whether it may be that something moved."""
        return self.judged is not None and any(finding["moved"] for finding in self.judged["findings"])


class PartRow(SQLModel, table=True):
    """A part of a window that is to be counted; `counted` are the shares of its producers."""

    __tablename__ = "monitoring_part"

    id: int | None = Field(default=None, sa_column=Column(BIG, primary_key=True, autoincrement=True))
    window: int = Field(sa_column=Column(BIG, nullable=False, index=True))
    number: int
    first: int = Field(sa_column=Column(BIG, nullable=False))
    last: int = Field(sa_column=Column(BIG, nullable=False))
    skip: int = Field(sa_column=Column(BIG, nullable=False))
    rows: int = Field(sa_column=Column(BIG, nullable=False))
    counted: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))

    @property
    def part(self) -> Part:
        return Part(self.number, self.first, self.last, self.skip, self.rows)


class LeaseRow(SQLModel, table=True):
    """Which replica does what only one should do at a time. That two do it for a moment does no harm."""

    __tablename__ = "monitoring_lease"

    name: str = Field(primary_key=True)
    replica: str
    until: float = Field(sa_column=Column(Float, nullable=False))
    """Seconds since 1970."""


def _of_before() -> None:
    """Tables of windows that only replicas of the release before write. A later migration drops them."""
    of_a_window = (Column("model", String, nullable=False), Column("version", Integer, nullable=False))
    Table(
        "monitoring_open_window",
        SQLModel.metadata,
        Column("model", String, primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("window", LargeBinary, nullable=False),
        Column("rollout", BIG, nullable=False, server_default=text("0")),
    )
    Table(
        "monitoring_judged_window",
        SQLModel.metadata,
        Column("id", BIG, primary_key=True, autoincrement=True),
        *of_a_window,
        Column("judged", JSON, nullable=False),
        Column("decided", Boolean, nullable=False),
        Column("stale", Boolean, nullable=False),
        Column("rollout", BIG, nullable=False, server_default=text("0")),
        Index("ix_monitoring_judged_window_model", "model"),
    )


_of_before()


# --- planned


def planner(session: Session, model: str, version: int, rollout: int) -> Planner:
    """Return how far a version is planned; from a new beginning if that was under an earlier rollout. Raises Behind."""
    row = session.get(PlannedRow, (model, version))
    if row is None:
        return Planner()
    if rollout < row.rollout:
        raise Behind(f"windows of {model} are of rollout {row.rollout}, the tables know {rollout}")
    known = _PLANNER.validate_python(row.planner)
    return known if row.rollout == rollout else Planner(last=known.last)


def keep_planner(session: Session, model: str, version: int, rollout: int, planner: Planner) -> None:
    """Keep how far a version is planned; the windows of an earlier rollout that are still open never close."""
    before = session.get(PlannedRow, (model, version))
    if before is not None and before.rollout != rollout:
        _forget_open(session, model, version)
    row = PlannedRow(model=model, version=version, rollout=rollout, planner=_PLANNER.dump_python(planner, mode="json"))
    session.merge(row)


def keep_windows(
    session: Session, model: str, version: int, rollout: int, windows: Sequence[Window]
) -> list[tuple[int, Sequence[int]]]:
    """Keep windows as planned; return of each the id and those of its new parts."""
    rows: list[WindowRow] = []
    for window in windows:
        # At once: of a window with two parts in one group of messages the second must find the first.
        rows.append(_window(session, model, version, rollout, window))
        session.add(rows[-1])
    session.flush()
    parts = [
        [PartRow(window=row.id or 0, **asdict(part)) for part in window.parts]
        for row, window in zip(rows, windows, strict=True)
    ]
    session.add_all(part for of_window in parts for part in of_window)
    session.flush()
    return [(row.id or 0, [part.id or 0 for part in its]) for row, its in zip(rows, parts, strict=True)]


def count_late(
    session: Session, model: str, version: int, rollout: int, length: int, late: Iterable[tuple[int, int]]
) -> None:
    """Add rows that came too late to the windows, by key, that they would have belonged to."""
    for key, rows in late:
        here = (
            col(WindowRow.model) == model,
            col(WindowRow.version) == version,
            col(WindowRow.rollout) == rollout,
            col(WindowRow.length) == length,
            col(WindowRow.key) == key,
        )
        session.connection().execute(update(WindowRow).where(*here).values(late=col(WindowRow.late) + rows))


# --- counted


def to_count(session: Session, ids: Sequence[int]) -> list[PartRow]:
    """Return those of the parts that nobody has counted, in their order."""
    query = select(PartRow).where(col(PartRow.id).in_(ids), col(PartRow.counted).is_(None))
    return list(session.exec(query.order_by(col(PartRow.id))).all())


def all_uncounted(session: Session) -> list[tuple[WindowRow, list[int], bool]]:
    """Return the windows that wait to be counted, with the ids of their parts that do, and whether they wait for a verdict."""
    waiting = select(WindowRow).where(
        col(WindowRow.judged).is_(None),
        or_(
            col(WindowRow.number).is_not(None),
            col(WindowRow.id).in_(select(PartRow.window).where(col(PartRow.counted).is_(None))),
        ),
    )
    rows = session.exec(waiting.order_by(col(WindowRow.id))).all()
    parts: dict[int, list[int]] = {row.id or 0: [] for row in rows}
    uncounted = select(PartRow.id, PartRow.window).where(col(PartRow.counted).is_(None)).order_by(col(PartRow.id))
    for part, window in session.exec(uncounted).all():
        if window in parts:
            parts[window].append(part or 0)
    return [(row, parts[row.id or 0], row.number is not None) for row in rows]


def window(session: Session, id_: int) -> WindowRow | None:
    return session.get(WindowRow, id_)


def windows(session: Session, ids: Iterable[int]) -> list[WindowRow]:
    query = select(WindowRow).where(col(WindowRow.id).in_(list(ids)))
    return list(session.exec(query.order_by(col(WindowRow.id))).all())


def parts_of(session: Session, window: int) -> list[PartRow]:
    """Return the parts of a window that are planned, in their order."""
    return list(session.exec(select(PartRow).where(PartRow.window == window).order_by(col(PartRow.number))).all())


def mark_counted(session: Session, part: int, counted: bytes) -> None:
    session.connection().execute(update(PartRow).where(col(PartRow.id) == part).values(counted=counted))


def keep_judged(
    session: Session, id_: int, judged: Judged, evidence: dict[str, Any] | None, context: dict[str, str]
) -> bool:
    """Keep the verdict on a window, and forget its parts; whether it had none before."""
    row = session.get(WindowRow, id_, with_for_update=True)
    if row is None or row.judged is not None:
        return False
    row.judged, row.evidence, row.context = _JUDGED.dump_python(judged, mode="json"), evidence, context
    session.add(row)
    session.connection().execute(delete(PartRow).where(col(PartRow.window) == id_))
    return True


# --- judged


def undecided(session: Session, but: Collection[str] = (), limit: int = 100) -> list[WindowRow]:
    """Return judged windows from which nothing was concluded yet, each after all those of its version and rollout before it.

    Without those of some models.
    """
    before = aliased(WindowRow)
    earlier = (
        select(before.id)
        .where(
            before.model == WindowRow.model,
            before.version == WindowRow.version,
            before.rollout == WindowRow.rollout,
            col(before.number) < WindowRow.number,
            col(before.judged).is_(None),
        )
        .exists()
    )
    query = select(WindowRow).where(col(WindowRow.decided).is_(False), col(WindowRow.judged).is_not(None), ~earlier)
    query = query.where(col(WindowRow.model).not_in(list(but)))
    order = (col(WindowRow.model), col(WindowRow.version), col(WindowRow.rollout), col(WindowRow.number))
    return list(session.exec(query.order_by(*order).limit(limit)).all())


def rows_up_to(session: Session, row: WindowRow, count: int) -> list[WindowRow]:
    """Return the latest `count` judged windows of the same version and rollout up to one, oldest first."""
    query = _judged_of(row.model, row.version, row.rollout).where(col(WindowRow.number) <= row.number)
    return list(reversed(session.exec(query.limit(count)).all()))


def judged_up_to(session: Session, row: WindowRow, count: int) -> list[Judged]:
    """Return what these say."""
    return [one.verdict for one in rows_up_to(session, row, count)]


def latest(session: Session, model: str, version: int, rollout: int, count: int) -> list[Judged]:
    """Return the latest `count` judged windows of a version's rollout, oldest first."""
    rows = session.exec(_judged_of(model, version, rollout).limit(count)).all()
    return [one.verdict for one in reversed(rows)]


def judged_windows(session: Session, model: str, limit: int, version: int | None = None) -> Sequence[WindowRow]:
    """Return the latest judged windows of a model, newest first."""
    query = select(WindowRow).where(WindowRow.model == model, col(WindowRow.judged).is_not(None))
    if version is not None:
        query = query.where(WindowRow.version == version)
    return session.exec(query.order_by(col(WindowRow.id).desc()).limit(limit)).all()


def since_rollout(session: Session, model: str, version: int, first: int, last: int) -> Sequence[WindowRow]:
    """Return the judged windows of a version since the rollout to which the one from `first` to `last` belongs, oldest first.

    Those that nobody needed are forgotten. Empty when that one is.
    """
    of_version = (WindowRow.model == model, WindowRow.version == version, col(WindowRow.judged).is_not(None))
    window = select(WindowRow.rollout).where(*of_version, WindowRow.first == first, WindowRow.last == last)
    rollout = session.exec(window.order_by(col(WindowRow.rollout).desc()).limit(1)).first()
    query = select(WindowRow).where(*of_version, WindowRow.rollout == rollout)
    return session.exec(query.order_by(col(WindowRow.number))).all()


def mark_decided(session: Session, id_: int) -> None:
    """Say that it was concluded what follows from a window; now and then the oldest that nobody needs are forgotten."""
    row = session.get(WindowRow, id_)
    if row is None:
        return
    row.decided = True
    session.add(row)
    if row.number is not None and row.number % (KEPT // 10) == 0:
        session.flush()
        _forget_old(session, row)


def mark_episode(session: Session, id_: int, episode: str) -> None:
    """Say that a window belongs to an episode, and is kept as long as that is; not of one that seems to have no end."""
    kept = select(WindowRow.id).where(WindowRow.episode == episode).limit(KEPT)
    few = select(func.count()).select_from(kept.subquery()).scalar_subquery() < KEPT
    session.connection().execute(update(WindowRow).where(col(WindowRow.id) == id_, few).values(episode=episode))


# --- one at a time


def take_lease(session: Session, name: str, replica: str) -> float:
    """Take or prolong the lease of `name` for LEASE seconds; return 0 if it is ours, or else for how many seconds it is not."""
    now = time.time()
    connection = session.connection()
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(LeaseRow)
    # One that ends later than any lease does is of a clock that was ahead: nobody may ever prolong it.
    until = col(LeaseRow.until)
    free = or_(col(LeaseRow.replica) == replica, until < now, until > now + 2 * LEASE)
    taken = insert.values(name=name, replica=replica, until=now + LEASE).on_conflict_do_update(
        index_elements=["name"], set_={"replica": replica, "until": now + LEASE}, where=free
    )
    connection.execute(taken)
    row = session.get(LeaseRow, name)
    return 0.0 if row is None or row.replica == replica else max(row.until - now, 0.0)


def _judged_of(model: str, version: int, rollout: int) -> SelectOfScalar[WindowRow]:
    query = select(WindowRow).where(
        WindowRow.model == model,
        WindowRow.version == version,
        WindowRow.rollout == rollout,
        col(WindowRow.judged).is_not(None),
    )
    return query.order_by(col(WindowRow.number).desc())


def _window(session: Session, model: str, version: int, rollout: int, window: Window) -> WindowRow:
    query = select(WindowRow).where(
        WindowRow.model == model,
        WindowRow.version == version,
        WindowRow.rollout == rollout,
        WindowRow.length == window.length,
        WindowRow.key == window.key,
    )
    # A window by rows whose first part this is was never kept before.
    known = None if len(window.parts) == window.planned else session.exec(query).one_or_none()
    row = known or WindowRow(
        model=model,
        version=version,
        rollout=rollout,
        length=window.length,
        key=window.key,
        first=window.first,
        parts=0,
        last=0,
        rows=0,
    )
    row.last, row.rows, row.parts, row.number = window.last, window.rows, window.planned, window.number
    return row


def _forget_open(session: Session, model: str, version: int) -> None:
    query = select(WindowRow.id).where(WindowRow.model == model, WindowRow.version == version)
    open_ = query.where(col(WindowRow.number).is_(None))
    connection = session.connection()
    connection.execute(delete(PartRow).where(col(PartRow.window).in_(open_)))
    connection.execute(delete(WindowRow).where(col(WindowRow.id).in_(open_)))


def _forget_old(session: Session, row: WindowRow) -> None:
    """Forget what nobody needs of a version, and of all versions of its model before the present rollout."""
    unneeded = (
        col(WindowRow.model) == row.model,
        col(WindowRow.decided).is_(True),
        col(WindowRow.episode).is_(None),
    )
    connection = session.connection()
    if row.number:
        old = or_(col(WindowRow.rollout) < row.rollout, col(WindowRow.number) < row.number - KEPT)
        connection.execute(delete(WindowRow).where(*unneeded, col(WindowRow.version) == row.version, old))
    before = (*unneeded, col(WindowRow.rollout) < row.rollout)
    newest = select(WindowRow.id).where(*before).order_by(col(WindowRow.id).desc())
    if last := session.exec(newest.offset(KEPT).limit(1)).first():
        connection.execute(delete(WindowRow).where(*before, col(WindowRow.id) <= last))

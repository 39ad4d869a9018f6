"""Windows counted and judged, by any replica: the second half of what becomes of predictions."""

import asyncio
import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from nats.aio.msg import Msg
from sqlmodel import Session

from meguri_chassis import telemetry
from meguri_chassis.profiles import Profile
from meguri_chassis.store import Database
from meguri_chassis.work import WorkQueue
from meguri_contracts import events
from meguri_contracts.errors import TemporaryError
from meguri_contracts.spec import Monitor
from meguri_monitoring import store
from meguri_monitoring.predictions import tables
from meguri_monitoring.predictions.predictions import SEQUENCE
from meguri_monitoring.predictions.recent import Recent
from meguri_monitoring.profiles import profiling
from meguri_monitoring.profiles.profiling import Share
from meguri_monitoring.profiles.references import References
from meguri_monitoring.verdicts import judging
from meguri_monitoring.verdicts.evidence import evidence
from meguri_monitoring.verdicts.judging import Judged
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.planning import Task
from meguri_monitoring.windows.store import PartRow, WindowRow
from meguri_monitoring.windows.windows import SECOND, Part

logger = logging.getLogger(__name__)

Shares = Mapping[str, Share]
_BIG = struct.Struct("<qq")


@dataclass(frozen=True)
class Counted:
    """A part of a window that was counted: what each producer brought, and when; microseconds since 1970."""

    shares: Shares
    began: int
    ended: int

    def to_bytes(self) -> bytes:
        return _BIG.pack(self.began, self.ended) + profiling.shares_to_bytes(self.shares)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Counted":
        return cls(profiling.shares_from_bytes(data[_BIG.size :]), *_BIG.unpack_from(data))

    @classmethod
    def of(cls, parts: "Sequence[Counted]") -> "Counted":
        """Return the whole of which these are the parts, in their order."""
        there = [part for part in parts if part.shares] or parts
        shares = profiling.merged([part.shares for part in there])
        return cls(shares, min(part.began for part in there), max(part.ended for part in there))


class NotYet(TemporaryError):
    """Rows that were planned are not in the table that this replica sees."""


@dataclass(frozen=True)
class Verdict:
    window: int
    judged: Judged
    evidence: dict[str, Any] | None


class Counter:
    """Counts parts of windows, and judges a window when the last of its parts is counted."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        database: Database,
        references: References,
        recent: Recent,
        data_url: str,
        judged: Callable[[], None],
    ) -> None:
        self._recent = recent
        self._queue = queue
        self._database = database
        self._references = references
        self._data_url = data_url
        self._judged = judged
        self._unjudged: dict[tuple[str, int], str] = {}
        """By model and version why no window of it can be judged."""

    def trouble(self) -> str | None:
        """Which versions that answer get no verdicts and why, in words for an operator."""
        if not (unjudged := sorted(self._unjudged.items())):
            return None
        with self._database.read() as session:
            plans = {model: store.plan(session, model) for (model, _), _ in unjudged}
        return (
            "; ".join(
                f"{model} version {version} gets no verdicts: {why}"
                for (model, version), why in unjudged
                if (plan := plans[model]) and version in plan.versions
            )
            or None
        )

    async def run(self) -> None:
        """Count for ever."""
        await self._queue.work(self._take)

    async def _take(self, msg: Msg) -> None:
        task = Task.from_json(msg.data)
        with telemetry.processing(
            "windows",
            [msg.headers or {}],
            journey=f"monitoring-windows-{msg.metadata.sequence.stream}",
            event_id=f"monitoring-windows-{msg.metadata.sequence.stream}",
            prompt=msg.metadata.num_delivered == 1,
            attributes={"meguri.model": task.model, "meguri.model.version": task.version},
        ):
            await self.count(task)
        self._judged()

    async def count(self, task: Task) -> None:
        """Count the parts of a task that nobody has counted, and judge the windows that are complete then."""
        reference = await self._references.of(task.model, task.version)
        if reference is None:
            raise TemporaryError(f"the reference profile of {task.model} version {task.version} cannot be read")
        await asyncio.to_thread(self._count, task, reference)

    def _count(self, task: Task, reference: Profile) -> None:
        with self._database.read() as session:
            parts = window_store.to_count(session, task.parts)
            rows = {row.id: row for row in window_store.windows(session, {part.window for part in parts})}
            rule = store.rule(session, task.model)
        counted = self._count_parts(task, [(part, rows[part.window]) for part in parts], reference)
        whole = {part.window: counted[part.id or 0] for part in parts if _is_whole(rows[part.window])}
        verdicts = [self._verdict(rows[id_], one, reference, rule) for id_, one in whole.items()]
        with self._database.write() as session:
            for part in parts:
                if part.window not in whole:
                    window_store.mark_counted(session, part.id or 0, counted[part.id or 0].to_bytes())
            _keep(session, verdicts)
        for id_ in dict.fromkeys([*(part.window for part in parts), *task.windows]):
            if id_ not in whole:
                self._judge_if_complete(id_, reference, rule)

    def _count_parts(
        self, task: Task, parts: Sequence[tuple[PartRow, WindowRow]], reference: Profile
    ) -> dict[int, Counted]:
        """Return by id of each part what is in it."""
        if not parts:
            return {}
        first, last = min(part.first for part, _ in parts), max(part.last for part, _ in parts)
        rows = self._recent.between(task.model, task.version, first, last)
        uri = tables.table_uri(self._data_url, task.model, task.version)
        try:
            return _counted(tables.between(uri, first, last) if rows is None else rows, parts, reference)
        except NotYet as error:
            if tables.kept_up_to(uri) < last:
                raise
            # A table that somebody deleted: its windows must not keep those behind them from being judged for ever.
            logger.error("rows of %s version %d are lost: %s", task.model, task.version, error)
            return _counted(tables.between(uri, first, last), parts, reference, all_=False)

    def _judge_if_complete(self, id_: int, reference: Profile, rule: Monitor) -> None:
        with self._database.read() as session:
            row = window_store.window(session, id_)
            if row is None or row.number is None or row.judged is not None:
                return
            parts = [part.counted for part in window_store.parts_of(session, id_)]
        if len(parts) < row.parts or any(part is None for part in parts):
            return
        counted = Counted.of([Counted.from_bytes(part) for part in parts if part])
        verdict = self._verdict(row, counted, reference, rule)
        with self._database.write() as session:
            _keep(session, [verdict])

    def _verdict(self, row: WindowRow, counted: Counted, reference: Profile, rule: Monitor) -> Verdict:
        judged = verdict(row, counted, reference, rule)
        if judged.lasting:
            self._unjudged[row.model, row.version] = judged.why
        else:
            self._unjudged.pop((row.model, row.version), None)
        moved = any(finding.moved for finding in judged.findings)
        return Verdict(row.id or 0, judged, evidence(judged, counted.shares, reference) if moved else None)


def verdict(row: WindowRow, counted: Counted, reference: Profile, rule: Monitor) -> Judged:
    """Hold a window that was counted against the reference of its version."""
    began, ended = (row.key, row.key + row.length) if row.length else (counted.began, counted.ended)
    known = bool(row.length or counted.shares)
    return judging.judge(
        row.version,
        row.number or 0,
        events.Window(first=row.first, last=row.last, rows=row.rows),
        counted.shares,
        reference,
        rule,
        began=_iso(began) if known else "",
        ended=_iso(ended) if known else "",
        seconds=(ended - began) / SECOND,
        late=row.late,
    )


def counted(rows: pl.DataFrame, reference: Profile) -> Counted:
    """Count rows of predictions."""
    if not rows.height:
        return Counted({}, 0, 0)
    times = rows["time"].to_physical()
    return Counted(profiling.by_producer(reference, rows), int(times.min()), int(times.max()))  # type: ignore[arg-type]


def _counted(
    rows: pl.DataFrame, parts: Sequence[tuple[PartRow, WindowRow]], reference: Profile, *, all_: bool = True
) -> dict[int, Counted]:
    return {
        part.id or 0: counted(rows_of(rows, part.part, window.key, window.length, all_=all_), reference)
        for part, window in parts
    }


def rows_of(rows: pl.DataFrame, part: Part, key: int, length: int, *, all_: bool = True) -> pl.DataFrame:
    """Return the rows of a part out of rows in the order of the stream.

    Raises NotYet when some are missing, unless those that are there will do.
    """
    sequences = rows[SEQUENCE]
    start, end = sequences.search_sorted(part.first, "left"), sequences.search_sorted(part.last, "right")
    found = rows[start:end]
    if length:
        found = found.filter(pl.col("time").to_physical().is_between(key, key + length, closed="left"))
    found = found[part.skip : part.skip + part.rows]
    if all_ and found.height < part.rows:
        raise NotYet(f"{found.height} of {part.rows} rows from {part.first} to {part.last} are in the table")
    return found


def _iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / SECOND, UTC).isoformat()


def _is_whole(row: WindowRow) -> bool:
    """Whether a window is closed and has the one part only."""
    return row.number is not None and row.parts == 1


def _keep(session: Session, verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        window_store.keep_judged(session, verdict.window, verdict.judged, verdict.evidence, telemetry.carrier())

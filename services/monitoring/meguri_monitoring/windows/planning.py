"""Which rows belong to which window, kept before anybody counts them; and the tasks that replicas share the counting by."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlmodel import Session

from meguri_contracts.errors import Malformed
from meguri_monitoring import store
from meguri_monitoring.predictions.predictions import ROLE, SHADOW, Batch
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows import windows

TASK_ROWS = 20_000
"""Rows that a replica counts at a time, about."""


@dataclass(frozen=True)
class Task:
    """Parts of windows that are to be counted, and windows that may be judged then."""

    model: str
    version: int
    parts: tuple[int, ...]
    windows: tuple[int, ...]
    rows: int = 0

    def with_(self, other: "Task") -> "Task":
        """Return a task of both, which are of one version."""
        parts, closed = (*self.parts, *other.parts), (*self.windows, *other.windows)
        return Task(self.model, self.version, parts, closed, self.rows + other.rows)

    def to_json(self) -> bytes:
        named = {"model": self.model, "version": self.version, "parts": self.parts, "windows": self.windows}
        return json.dumps(named).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Task":
        """Raises Malformed when `data` is not what `to_json` gave."""
        try:
            told = json.loads(data)
            return cls(str(told["model"]), int(told["version"]), tuple(told["parts"]), tuple(told["windows"]))
        except (ValueError, LookupError, TypeError) as error:
            raise Malformed(f"not a task: {type(error).__name__}: {error}") from error


def planned(session: Session, model: str, version: int, batches: Sequence[Batch]) -> Iterator[Task]:
    """Plan the windows of the answers that were given, keep them, and return what is to be counted."""
    rule, rollout = store.rule(session, model), store.rollout(session, model)
    planner = window_store.planner(session, model, version, rollout)
    news: list[windows.Window] = []
    late: list[tuple[int, int]] = []
    for batch in batches:
        times = batch.frame.filter(pl.col(ROLE) != SHADOW)["time"].to_physical().to_numpy()
        plan = windows.plan(planner, batch.sequence, times, rule, stored=_microseconds(batch.stored))
        planner = plan.planner
        news += plan.windows
        late += plan.late.items()
    window_store.keep_planner(session, model, version, rollout, planner)
    kept = window_store.keep_windows(session, model, version, rollout, news)
    window_store.count_late(session, model, version, rollout, planner.length, late)
    yield from _grouped(
        Task(
            model, version, tuple(parts), (id_,) if window.number is not None else (), sum(p.rows for p in window.parts)
        )
        for window, (id_, parts) in zip(news, kept, strict=True)
    )


def tasks_of(uncounted: Iterable[tuple[window_store.WindowRow, list[int], bool]]) -> Iterator[Task]:
    """Return the tasks for windows that wait: no larger than when they were planned, however many parts a window has."""
    return _grouped(task for row, parts, closed in uncounted for task in _by_part(row, parts, closed=closed))


def _by_part(row: window_store.WindowRow, parts: Sequence[int], *, closed: bool) -> Iterator[Task]:
    rows = row.rows // max(row.parts, 1)
    for part in parts:
        yield Task(row.model, row.version, (part,), (), rows)
    if closed:
        yield Task(row.model, row.version, (), (row.id or 0,))


def _grouped(tasks: Iterable[Task]) -> Iterator[Task]:
    """Put small tasks of one version together."""
    waiting: dict[tuple[str, int], Task] = {}
    for task in tasks:
        key = (task.model, task.version)
        waiting[key] = waiting[key].with_(task) if key in waiting else task
        if waiting[key].rows >= TASK_ROWS:
            yield waiting.pop(key)
    yield from waiting.values()


def _microseconds(time: datetime | None) -> int | None:
    """Since 1970."""
    return None if time is None else round(time.timestamp() * windows.SECOND)

"""Finds windows that nobody is going to count, and has them counted: their task was never told because the replica that planned
them died, could not be done when it came, or was lost by the broker."""

import asyncio
import logging
from dataclasses import dataclass

from meguri_chassis import telemetry
from meguri_chassis.store import Database
from meguri_chassis.work import WorkQueue
from meguri_contracts.errors import MeguriError
from meguri_contracts.topology import WINDOW_PREFIX
from meguri_monitoring.windows import store as window_store
from meguri_monitoring.windows.planning import tasks_of

logger = logging.getLogger(__name__)

EVERY = 15.0
"""Seconds between two looks."""


@dataclass(frozen=True)
class _Seen:
    """What was not counted when the last task had a sequence."""

    windows: frozenset[int]
    last: int


class Sweeper:
    """Looks now and then. What is not counted although all tasks of then are done is told once more."""

    def __init__(self, queue: WorkQueue, database: Database) -> None:
        self._queue = queue
        self._database = database
        self._seen = _Seen(frozenset(), 0)

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self.look()
            except MeguriError as error:
                logger.warning("windows that wait are not looked for: %s", error)

    async def look(self) -> None:
        """Tell of the windows that waited when it was last looked and whose tasks are gone. Raises TemporaryError."""
        if not await self._queue.is_done_up_to(self._seen.last):
            return
        last = await self._queue.last()
        waiting = await self._database.ask(window_store.all_uncounted)
        left = [one for one in waiting if one[0].id in self._seen.windows]
        for task in tasks_of(left):
            logger.info("windows of %s version %d are told of again", task.model, task.version)
            last = await self._queue.put(f"{WINDOW_PREFIX}.{task.model}", task.to_json(), telemetry.carrier())
        self._seen = _Seen(frozenset(row.id or 0 for row, _, _ in waiting), last)

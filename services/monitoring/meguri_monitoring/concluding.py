"""Says what follows from judged windows, from silence and from commands."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from sqlmodel import Session

from meguri_chassis.deciding import Decider
from meguri_chassis.store import Database
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import Event
from meguri_contracts.names import derived_id
from meguri_monitoring import episodes, store, window_store
from meguri_monitoring.window_store import WindowRow

logger = logging.getLogger(__name__)


class Concluder:
    def __init__(self, *, database: Database, decider: Decider) -> None:
        self._database = database
        self._decider = decider
        self._something = asyncio.Event()
        self._something.set()

    def look(self) -> None:
        """Have judged windows looked at."""
        self._something.set()

    async def run(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            try:
                while await self._conclude():
                    pass
            except TemporaryError as error:
                logger.warning("nothing can be concluded: %s", error)
                await asyncio.sleep(1)
                self._something.set()

    async def _conclude(self) -> bool:
        """Say what follows from each judged window, in their order; again after a crash in between."""
        rows = await self._database.ask(
            lambda session: [(row, store.state(session, row.model).hops) for row in window_store.undecided(session)]
        )
        for row, hops in rows:
            cause = _cause(row)
            await self._decider.carry_out(partial(_follows, row), cause=cause, journey=cause, hops=hops)
            await self._database.change(partial(window_store.mark_decided, id_=row.id or 0))
        return bool(rows)


def _cause(row: WindowRow) -> str:
    """The same for the same predictions, however often they were counted."""
    place = (row.version, row.rollout, row.number, row.first, row.last)
    return derived_id(row.model, "window", *map(str, place))


def _follows(row: WindowRow, session: Session) -> Sequence[Event]:
    state, rule = store.state(session, row.model), store.rule(session, row.model)
    if row.rollout != state.rollout:
        return []
    # Windows without a verdict may lie between those that count.
    now = datetime.fromisoformat(row.verdict.ended)
    return episodes.decide(state, window_store.judged_up_to(session, row, 4 * rule.windows), rule, now)

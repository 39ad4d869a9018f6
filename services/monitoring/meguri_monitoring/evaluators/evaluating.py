"""Looks after evaluators: each works by itself; one that fails is tried again, told of, and holds up no other.

An evaluator follows the tables of predictions in the order of the stream. Its own table says how far it has come, the database
how far its rows are counted into windows: a replica that is killed in between leaves nothing out and does nothing twice, and of
two that do the same at once one is too late.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import uuid4

from sqlmodel import Session

from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import MeasuresRefilled
from meguri_contracts.names import derived_id
from meguri_contracts.spec import Watch
from meguri_monitoring import store
from meguri_monitoring.episodes.concluding import follows
from meguri_monitoring.evaluators import failing, measure_windows, measures
from meguri_monitoring.evaluators import store as measure_store
from meguri_monitoring.evaluators.following import Follower
from meguri_monitoring.evaluators.store import MeasureWindowRow

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Least seconds between two looks, and how long a request may be on its way in several messages."""
PAUSE_AT_MOST = 60.0
"""Seconds between tries of an evaluator that fails."""
SIFT_AFTER, TELL_AFTER = 2, 3
"""Failures in a row after which requests that fail alone are set aside, and after which an episode begins."""


@dataclass(frozen=True)
class _Trouble:
    reason: str
    failures: int
    pause: float
    until: float


class Evaluators:
    """Looks at models whose specs name evaluators, soon after predictions of theirs came into the tables."""

    def __init__(
        self, *, log: EventLog, database: Database, projection: Projection, decider: Decider, follower: Follower
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._decider = decider
        self._follower = follower
        self._due: dict[str, int] = {}
        """Sequence up to which predictions are to be looked at; 0 for all that are kept."""
        self._something = asyncio.Event()
        self._settled = 0
        """Up to here predictions were kept a while ago: requests that began there are whole."""
        self._at_work: set[tuple[str, str]] = set()
        self._troubles: dict[tuple[str, str], _Trouble] = {}
        self._refilling = asyncio.Lock()

    def look(self, models: Iterable[str]) -> None:
        """Have models looked at: predictions of theirs came."""
        self._due.update(dict.fromkeys(models, 0))
        self._something.set()

    def trouble(self) -> str | None:
        """Which evaluators do not work at the moment and why, in words for an operator."""
        said = [failing.said(name, model, one.reason) for (model, name), one in self._troubles.items()]
        return "; ".join(said) or None

    async def run(self) -> None:
        """Look for ever."""
        await self._begin()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._something.wait()
                self._something.clear()
                due, self._due = self._due, {}
                try:
                    kept = await self._database.ask(store.position) or 0
                    settled, self._settled = self._settled, kept
                    for model, wanted in sorted(due.items()):
                        await self._look_at(tasks, model, settled, wanted or kept)
                except TemporaryError as error:
                    logger.warning("evaluators wait: %s", error)
                    self._again(due)
                await asyncio.sleep(EVERY)

    async def _begin(self) -> None:
        """A replica that died may have left something to do, so everything is due."""
        while True:
            try:
                await self._projection.reached(await self._log.last_sequence())
                self.look(row.name for row in await self._database.ask(store.models))
            except TemporaryError as error:
                logger.warning("evaluators do not begin yet: %s", error)
                await asyncio.sleep(EVERY)
            else:
                return

    def _again(self, due: dict[str, int]) -> None:
        self._due = due | self._due
        self._something.set()

    async def _look_at(self, tasks: asyncio.TaskGroup, model: str, settled: int, wanted: int) -> None:
        rule = await self._database.ask(lambda session: store.rule(session, model))
        names = {watch.evaluator for watch in rule.evaluators}
        self._troubles = {key: one for key, one in self._troubles.items() if key[0] != model or key[1] in names}
        later = [watch for watch in rule.evaluators if self._is_busy(model, watch.evaluator)]
        for watch in rule.evaluators:
            if watch not in later:
                self._at_work.add((model, watch.evaluator))
                tasks.create_task(self._try(model, watch, settled))
        if later or (rule.evaluators and settled < wanted):
            self._again({model: wanted})

    def _is_busy(self, model: str, evaluator: str) -> bool:
        """Whether it is at work, or waits to be tried again."""
        trouble = self._troubles.get((model, evaluator))
        return (model, evaluator) in self._at_work or (trouble is not None and time.monotonic() < trouble.until)

    async def _try(self, model: str, watch: Watch, settled: int) -> None:
        key = model, watch.evaluator
        try:
            await self._evaluate(model, watch, settled)
        except Exception as error:
            # Whatever it is, it must keep neither others from their work nor itself once it is put right.
            self._troubles[key] = trouble = _troubled(self._troubles.get(key), error)
            said = failing.said(watch.evaluator, model, trouble.reason)
            logger.error("%s; next try in %.0f s", said, trouble.pause, exc_info=error)
            self.look([model])
        else:
            self._troubles.pop(key, None)
        finally:
            self._at_work.discard(key)

    async def _evaluate(self, model: str, watch: Watch, settled: int) -> None:
        trouble = self._troubles.get((model, watch.evaluator))
        if trouble and trouble.failures >= TELL_AFTER:
            await self._tell(model, watch.evaluator, reason=trouble.reason)
        failures = trouble.failures if trouble else 0
        tell = partial(self._tell_left_out, model, watch.evaluator)
        await self._follower.follow(model, watch, settled, failures, sifting=failures >= SIFT_AFTER, tell=tell)
        await self._conclude(model, watch.evaluator)
        await self._tell(model, watch.evaluator)

    # --- rows into windows, windows into episodes

    async def _conclude(self, model: str, evaluator: str) -> None:
        """Say what follows from each window, in their order; again after a crash in between."""
        for row, hops in await self._database.ask(partial(_undecided, model, evaluator)):
            before = await self._database.ask(partial(measure_windows.open_episodes, row=row))
            for subject in measures.subjects(measure_store.judged(row.judged)):
                cause = derived_id(model, "measure", subject, str(row.rollout), str(row.judged["number"]))
                decide = partial(measure_windows.follows, row, subject)
                await self._decider.carry_out(decide, cause=cause, journey=cause, hops=hops)
            await self._decider.settled()
            await self._database.change(partial(measure_windows.conclude, row=row, before=before))

    # --- evaluators that fail

    async def _tell_left_out(self, model: str, evaluator: str, at: int, failed: Mapping[str, str]) -> None:
        await self._tell(model, evaluator, at=at, failed=failed)

    async def _tell(
        self,
        model: str,
        evaluator: str,
        *,
        reason: str = "",
        at: int | None = None,
        failed: Mapping[str, str] | None = None,
        whole: bool | None = None,
    ) -> None:
        """Begin, worsen or end the episode about an evaluator.

        `whole` says whether all that is kept was tried again, when somebody asked for that: it then does what it had left out.
        Only what comes next shows whether one works that did not.
        """
        state, stands = await self._database.ask(lambda session: measure_store.standing(session, model, evaluator))
        episode = state.open("evaluator", evaluator)
        if state.champion is None:
            return
        if reason:
            look = failing.does_not_work(state.champion, evaluator, stands, reason)
        elif failed:
            look = failing.leaves_out(state, evaluator, at or stands, failed, all_=whole or False)
        elif episode and (whole if episode.score else whole is None):
            look = failing.works(state.champion, evaluator, episode)
        else:
            return
        cause = derived_id(model, "evaluator", evaluator, look.place, str(look.moved))
        decide = partial(follows, model, [look], datetime.now(UTC))
        await self._decider.carry_out(decide, cause=cause, journey=cause, hops=state.hops)

    # --- again

    async def refill(self, model: str, evaluator: str, since: datetime | None, actor: str) -> MeasuresRefilled:
        """Evaluate again what is kept, add what the table does not have, and say so. Raises NotFound and PlugInFailed."""
        async with self._refilling:
            refilled, failed = await self._follower.refill(model, evaluator, since, actor)
            cause = uuid4().hex
            await self._decider.carry_out(lambda _: [refilled], cause=cause, journey=cause)
            await self._tell(model, evaluator, failed=failed, whole=since is None)
        return refilled


def _troubled(before: _Trouble | None, error: Exception) -> _Trouble:
    pause = min(2 * before.pause, PAUSE_AT_MOST) if before else EVERY
    failures = before.failures + 1 if before else 1
    return _Trouble(str(error) or type(error).__name__, failures, pause, time.monotonic() + pause)


def _undecided(model: str, evaluator: str, session: Session) -> list[tuple[MeasureWindowRow, int]]:
    """The windows from which nothing was concluded yet, with the hops of what follows from them."""
    hops = store.state(session, model).hops
    return [(row, hops) for row in measure_store.undecided(session, model, evaluator)]

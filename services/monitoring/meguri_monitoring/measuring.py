"""Says how good the versions of a plan are, whenever labels or predictions came: the second half of the handler of labels.

Counted anew each time, from the labels and the tables of predictions; so it does not matter what was counted before, by which
replica, or how often a message came.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from functools import partial

import polars as pl
from sqlmodel import Session

from meguri_chassis.bus import hears
from meguri_chassis.deciding import Decider
from meguri_chassis.log import EventLog, Message
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database, utc
from meguri_contracts.errors import TemporaryError
from meguri_contracts.events import ArmQuality, Event, LabelsArrived, QualityMeasured
from meguri_contracts.names import derived_id
from meguri_monitoring import quality, store, tables
from meguri_monitoring.quality import Measured

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Least seconds between two looks."""
REST = 4
"""How many times as long as a look took it is waited before the next."""


class Measurer:
    """Looks at models that have challengers, soon after something came that may be counted."""

    def __init__(
        self, *, log: EventLog, database: Database, projection: Projection, decider: Decider, data_url: str
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._decider = decider
        self._data_url = data_url
        self._due: set[str] = set()
        self._something = asyncio.Event()
        self._settled: dict[str, tuple[int, int]] = {}
        """By model the rollout and the last label as of which every label is counted: more predictions change nothing."""
        self._troubles: dict[str, str] = {}

    @hears(LabelsArrived)
    async def take(self, event: LabelsArrived, message: Message) -> None:
        """Look once the labels are in the tables, where the projection puts them."""
        await self._projection.reached(message.sequence)
        self.look([event.model])

    def look(self, models: Iterable[str]) -> None:
        """Have models looked at: labels or predictions of theirs came."""
        self._due.update(models)
        self._something.set()

    def trouble(self) -> str | None:
        """Why labels are not counted at the moment, in words for an operator."""
        return "; ".join(self._troubles.values()) or None

    async def run(self) -> None:
        """Look for ever."""
        await self._begin()
        while True:
            await self._something.wait()
            self._something.clear()
            due, self._due = self._due, set()
            began = time.monotonic()
            for model in sorted(due):
                await self._try(model)
            await asyncio.sleep(max(EVERY, REST * (time.monotonic() - began)))

    async def _begin(self) -> None:
        """A replica that died may have left something unsaid, so everything is due."""
        while True:
            try:
                await self._projection.reached(await self._log.last_sequence())
                self.look(await self._database.ask(store.with_challengers))
            except TemporaryError as error:
                logger.warning("labels are not counted yet: %s", error)
                await asyncio.sleep(EVERY)
            else:
                return

    async def _try(self, model: str) -> None:
        try:
            await self._measure(model)
        except Exception as error:
            # Whatever it is, it must not keep other models from being looked at, nor this one once it is over.
            self._troubles[model] = f"labels of {model} cannot be counted: {error}"
            logger.warning(self._troubles[model], exc_info=error)
            self.look([model])
        else:
            self._troubles.pop(model, None)

    async def _measure(self, model: str) -> None:
        plan, latest = await self._database.ask(lambda session: _standing(session, model))
        if plan is None or not plan.challengers or latest <= plan.rollout:
            return
        if self._settled.get(model) == (plan.rollout, latest):
            return
        measured = await asyncio.to_thread(self.count, plan)
        cause = _cause(plan, latest, measured)
        decide = partial(_follows, model, plan.rollout, latest, measured)
        await self._decider.carry_out(decide, cause=cause, journey=cause, hops=plan.hops)
        if measured.counted == measured.labels:
            self._settled[model] = (plan.rollout, latest)

    def count(self, plan: store.PlanRow) -> Measured:
        """Count the labels that came since the plan is what it is, of answers that were given since then."""
        with self._database.read() as session:
            labels = quality.label_frame(store.labels(session, plan.model, plan.rollout))
        since = pl.col("time") >= utc(plan.since)
        uris = {version: tables.table_uri(self._data_url, plan.model, version) for version in plan.versions}
        scanned = {version: tables.scan(uri) for version, uri in uris.items()}
        arms = (
            quality.of_version(version, None if rows is None else rows.filter(since), labels)
            for version, rows in scanned.items()
        )
        return Measured(tuple(arms), labels.height)


def _standing(session: Session, model: str) -> tuple[store.PlanRow | None, int]:
    return store.plan(session, model), store.latest_label(session, model)


def _cause(plan: store.PlanRow, latest: int, measured: Measured) -> str:
    """The same for the same labels and predictions, whoever counted them."""
    arms = (arm.model_dump_json() for arm in measured.arms)
    return derived_id(plan.model, "quality", str(plan.rollout), str(latest), *arms)


def _follows(model: str, rollout: int, latest: int, measured: Measured, session: Session) -> list[Event]:
    """Say what was measured if it is news: more labels than were said, or others with nothing newer to count."""
    plan = store.plan(session, model)
    if plan is None or plan.rollout != rollout:
        return []
    said = tuple(ArmQuality.model_validate(arm) for arm in plan.measured)
    more = measured.counted - quality.counted(said)
    # Of as many labels another replica may know later ones.
    corrected = more == 0 and said and measured.arms != said and store.latest_label(session, model) == latest
    return [QualityMeasured(model=model, arms=measured.arms)] if more > 0 or corrected else []

"""Keeps quality at the present: joins labels and predictions as they come, and says what follows for tests and episodes."""

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from sqlmodel import Session

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.bus import hears
from meguri_chassis.log import EventLog, Message
from meguri_chassis.profiles import Profile
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import PermanentError, TemporaryError
from meguri_contracts.events import Artifact, LabelsArrived
from meguri_monitoring import store
from meguri_monitoring.quality import slicing
from meguri_monitoring.quality.joining import Joiner, Limits
from meguri_monitoring.quality.measuring import Measurer
from meguri_monitoring.quality.performing import Performance

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Least seconds between two looks."""
REST = 2
"""How many times as long as a look took it is waited before the next."""
SWEEP = 30.0
"""Seconds after which everything is looked at: what was told to a replica that died is found by another."""


class Scorer:
    """Looks at models soon after labels or predictions of theirs came."""

    def __init__(
        self,
        *,
        log: EventLog,
        database: Database,
        projection: Projection,
        artifacts: Artifacts,
        data_url: str,
        measurer: Measurer,
        performance: Performance,
    ) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._artifacts = artifacts
        self._data_url = data_url
        self._measurer = measurer
        self._performance = performance
        self._due: set[str] = set()
        self._something = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._quarters: dict[tuple[str, str], tuple[float, ...]] = {}
        """By address of a reference and feature."""

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
        await self._look_at_all()
        while True:
            try:
                async with asyncio.timeout(SWEEP):
                    await self._something.wait()
            except TimeoutError:
                await self._look_at_all()
            self._something.clear()
            due, self._due = self._due, set()
            began = time.monotonic()
            for model in sorted(due):
                await self._try(model)
            await asyncio.sleep(max(EVERY, REST * (time.monotonic() - began)))

    async def limits(self, model: str) -> Limits:
        """Return the limits of the slices of a model, for each of its versions."""
        versions, slices = await self._database.ask(partial(_sliced, model=model))
        return {
            (row.version, feature): await self._quarters_of(Artifact.model_validate(row.profile), feature)
            for row in versions
            for feature in slices
        }

    async def _look_at_all(self) -> None:
        """A replica that died may have left something undone, so everything is due."""
        while True:
            try:
                await self._projection.reached(await self._log.last_sequence())
                self.look(row.name for row in await self._database.ask(store.models))
            except TemporaryError as error:
                logger.warning("labels are not counted yet: %s", error)
                await asyncio.sleep(EVERY)
            else:
                return

    async def _try(self, model: str) -> None:
        try:
            await self._score(model)
        except Exception as error:
            # Whatever it is, it must not keep other models from being looked at, nor this one once it is over.
            self._troubles[model] = f"labels of {model} cannot be counted: {error}"
            logger.warning(self._troubles[model], exc_info=error)
            self.look([model])
        else:
            self._troubles.pop(model, None)

    async def _score(self, model: str) -> None:
        _, slices = await self._database.ask(partial(_sliced, model=model))
        joiner = Joiner(self._database, self._data_url, model, slices, await self.limits(model))
        while await asyncio.to_thread(joiner.step):
            pass
        await self._measurer.measure(model)
        await self._performance.watch(model)

    async def _quarters_of(self, reference: Artifact, feature: str) -> tuple[float, ...]:
        key = (reference.uri, feature)
        if key not in self._quarters:
            # A reference that cannot be read leaves numbers to be told apart by their value.
            with suppress(PermanentError):
                profile = Profile.from_json(await self._artifacts.get(reference))
                self._quarters[key] = slicing.quarters(profile, feature)
        return self._quarters.get(key, ())


def _sliced(session: Session, model: str) -> tuple[list[store.VersionRow], tuple[str, ...]]:
    return list(store.versions(session, model)), store.rule(session, model).slices

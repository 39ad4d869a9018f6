"""The reference profiles of the versions that were rolled out, as they are asked for."""

import asyncio
import logging
from collections import OrderedDict

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.log import EventLog
from meguri_chassis.profiles import Profile
from meguri_chassis.projection import Projection
from meguri_chassis.store import Database
from meguri_contracts.errors import PermanentError
from meguri_contracts.events import Artifact
from meguri_monitoring import store

logger = logging.getLogger(__name__)

HELD = 200
"""Profiles that are held in memory: those that were asked for last."""


class References:
    """Knows the reference of each version."""

    def __init__(self, *, log: EventLog, database: Database, projection: Projection, artifacts: Artifacts) -> None:
        self._log = log
        self._database = database
        self._projection = projection
        self._artifacts = artifacts
        self._held: OrderedDict[tuple[str, int], Profile] = OrderedDict()
        self._lock = asyncio.Lock()

    async def of(self, model: str, version: int) -> Profile | None:
        """Return the reference of a version; None for one that was never rolled out, or whose file is lost."""
        key = (model, version)
        async with self._lock:
            if key not in self._held:
                profile = await self._get(model, version)
                if profile is None:
                    return None
                self._held[key] = profile
            self._held.move_to_end(key)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
            return self._held[key]

    async def _get(self, model: str, version: int) -> Profile | None:
        artifact = await self._artifact(model, version)
        if artifact is None:
            # The first predictions of a version can be faster than the news that it serves.
            await self._projection.reached(await self._log.last_sequence())
            artifact = await self._artifact(model, version)
        if artifact is None:
            logger.warning("predictions of %s version %d have no reference: kept, not judged", model, version)
            return None
        return await self.read(artifact)

    async def read(self, artifact: Artifact) -> Profile | None:
        """Return the profile in a file; None when that is lost."""
        try:
            return Profile.from_json(await self._artifacts.get(artifact))
        except PermanentError:
            # One model's lost reference must not keep the others from being watched; it is asked for again each time.
            logger.exception("predictions are kept and not judged: their reference profile cannot be read")
            return None

    async def _artifact(self, model: str, version: int) -> Artifact | None:
        return await self._database.ask(lambda session: store.reference(session, model, version))

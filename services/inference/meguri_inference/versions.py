"""Versions that may not be in service: found in the log by their number, loaded when they are needed, the latest kept."""

import asyncio
from collections import OrderedDict

from meguri_chassis.artifacts import Artifacts
from meguri_chassis.lookup import Lookup
from meguri_contracts.errors import NotFound
from meguri_contracts.events import Deployed, ModelRegistered, ModelTrained, RolloutChanged
from meguri_inference.predicting import LoadedModel

KEPT = 2
"""Versions that stay loaded: as many as are compared."""


class NoSuchVersion(NotFound):
    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"model {model!r} has no version {version} in the log")


class NoChampion(NotFound):
    def __init__(self, model: str) -> None:
        super().__init__(f"model {model!r} had no champion yet")


class Versions:
    """All versions of all models that the log knows."""

    def __init__(self, lookup: Lookup, artifacts: Artifacts) -> None:
        self._lookup = lookup
        self._artifacts = artifacts
        self._known: dict[tuple[str, int], Deployed] = {}
        self._loaded: OrderedDict[tuple[str, str], LoadedModel] = OrderedDict()
        self._one_by_one = asyncio.Lock()

    async def champion(self, model: str, *, before: int) -> Deployed:
        """Return who was champion at a sequence of the log: the same whoever asks, and however often. Raises NoChampion."""
        found: Deployed | None = None
        async for sequence, rollout in self._lookup.said(RolloutChanged, model):
            if sequence >= before:
                break
            found = rollout.plan.champion
        if found is None:
            raise NoChampion(model)
        return found

    async def find(self, model: str, version: int) -> Deployed:
        """Return what serving a version needs. Raises NoSuchVersion."""
        if (found := self._known.get((model, version))) is None:
            run = await self._run(model, version)
            found = self._known[model, version] = await self._trained(model, version, run)
        return found

    async def load(self, model: str, deployed: Deployed) -> LoadedModel:
        """Return a version ready to answer. Raises NotFound, Damaged, Unservable, ArtifactsUnavailable."""
        key = (model, f"{deployed.version} {deployed.served.digest}")
        async with self._one_by_one:
            if (loaded := self._loaded.pop(key, None)) is None:
                content = await self._artifacts.get(deployed.served)
                loaded = await asyncio.to_thread(LoadedModel.load, deployed, model, content)
            self._loaded[key] = loaded
            if len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        return loaded

    async def _run(self, model: str, version: int) -> str:
        async for _, registered in self._lookup.said(ModelRegistered, model):
            if registered.version == version:
                return registered.run
        raise NoSuchVersion(model, version)

    async def _trained(self, model: str, version: int, run: str) -> Deployed:
        async for _, trained in self._lookup.said(ModelTrained, model):
            if trained.run == run:
                return Deployed.model_validate(trained.model_dump() | {"version": version})
        raise NoSuchVersion(model, version)

"""What is served: the traffic plan of every model, and the versions in memory, as many as there is room for."""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from meguri_contracts.errors import Busy, NotFound, TemporaryError
from meguri_contracts.events import Deployed, Plan, Role
from meguri_contracts.spec import PredictionLog as Logging
from meguri_inference.batching import Batcher
from meguri_inference.predicting import LoadedModel
from meguri_inference.protocol import Codec
from meguri_inference.tallies import Tallies, Tally

if TYPE_CHECKING:
    from meguri_inference.answering import Ask

logger = logging.getLogger(__name__)

Load = Callable[[str, Deployed], Awaitable[LoadedModel]]
"""Fetches and loads a version of a model. Raises MeguriError."""

_Key = tuple[str, int, str]
"""Model, version, and digest of its file."""

MAX_WAITING = 1000
"""Requests that may wait for a version that is being loaded."""


class NotServed(NotFound):
    def __init__(self, name: str, served: Sequence[str]) -> None:
        super().__init__(f"no model {name!r} is served here; served are: {', '.join(served) or 'none yet'}")


class VersionNotServed(NotFound):
    def __init__(self, name: str, version: str, served: Sequence[str]) -> None:
        have = f"versions {', '.join(served)} are" if len(served) > 1 else f"version {served[0]} is"
        super().__init__(f"version {version} of model {name!r} is not served here; {have}")


class Seat:
    """A version in a traffic plan. Its model is in memory, or on its way there while requests wait."""

    def __init__(self, name: str, deployed: Deployed, role: Role, tally: Tally) -> None:
        self.name = name
        self.deployed = deployed
        self.version = deployed.version
        self.role: Role = role
        self.tally = tally
        self.codec = Codec(name, deployed.version, deployed.signature)
        self.batcher: Batcher[Ask] | None = None
        """None while its model is not in memory."""
        self.waiting: list[Ask] = []
        self.instead: Seat | None = None
        """Who is asked where this one has no answer: a challenger's champion."""
        self.reads_alike = True
        """Whether a request that the champion has read means the same here."""


class Served:
    """One model's traffic plan, ready to choose from. Replaced as a whole when the plan changes."""

    def __init__(self, name: str, plan: Plan, rollout: str, tallies: Tallies) -> None:
        self.name = name
        self.plan = plan
        self.rollout = rollout
        """Id of the event that this plan came with."""
        self.logging = Logging()
        self.champion = self._seat(plan.champion, "champion", tallies)
        self.challengers: list[tuple[float, Seat]] = []
        """Each with the share of the traffic that is its own or of those before it."""
        self.shadows: list[tuple[float, Seat]] = []
        """Each with the share of the requests that it is asked too."""
        bound = 0.0
        if plan.canary:
            bound += plan.canary.weight
            self.challengers.append((bound, self._seat(plan.canary.candidate, "canary", tallies)))
        for arm in plan.trial.arms if plan.trial else ():
            bound += arm.weight
            self.challengers.append((bound, self._seat(arm.candidate, "arm", tallies)))
        self.shadows = [(one.share, self._seat(one.candidate, "shadow", tallies)) for one in plan.shadows]
        for _, seat in self.challengers:
            seat.instead, seat.reads_alike = self.champion, _read_alike(seat, self.champion)
        runs = "/".join(one.run for one in (plan.champion, *plan.challengers))
        self._salt = blake2b(runs.encode()).digest()
        self._by_version = {str(seat.version): seat for seat in reversed(self.seats)}

    def _seat(self, deployed: Deployed, role: Role, tallies: Tallies) -> Seat:
        return Seat(self.name, deployed, role, tallies.of(self.name, deployed.version, role))

    @property
    def seats(self) -> list[Seat]:
        """All versions of the plan, the champion first."""
        beside = [seat for _, seat in (*self.challengers, *self.shadows) if seat is not self.champion]
        return [self.champion, *beside]

    def choose(self, entity: str | None) -> Seat:
        """Return who answers: for the same entity always the same version while champion and challengers are these."""
        place = random.random() if entity is None else self._place(entity)  # noqa: S311 - no secret
        return next((seat for bound, seat in self.challengers if place < bound), self.champion)

    def version(self, version: str) -> Seat:
        """Return a version of the plan. Raises VersionNotServed."""
        if (seat := self._by_version.get(version)) is None:
            raise VersionNotServed(self.name, version, list(dict.fromkeys(str(seat.version) for seat in self.seats)))
        return seat

    def leave_out(self, seat: Seat) -> None:
        """Ask a challenger or a shadow nothing: its share is the champion's, as that of nobody has changed."""
        self.challengers = [(bound, self.champion if one is seat else one) for bound, one in self.challengers]
        self.shadows = [(share, one) for share, one in self.shadows if one is not seat]
        self._by_version = {str(one.version): one for one in reversed(self.seats)}

    def _place(self, entity: str) -> float:
        digest = blake2b(entity.encode(errors="replace"), key=self._salt, digest_size=8).digest()
        return int.from_bytes(digest) / 2**64


class Models:
    """Plans by model, and loaded versions up to `max_bytes`, beyond which those that were asked longest ago make room.

    A version that had to make room is loaded again when somebody asks for it. Versions of earlier plans stay as long as
    there is room, so that going back to them takes no time.
    """

    def __init__(self, load: Load, *, max_bytes: int) -> None:
        self.seated: Callable[[Seat, LoadedModel], None] = _nobody
        """Gives a seat whose model was loaded its batcher."""
        self._load = load
        self._max_bytes = max_bytes
        self._served: dict[str, Served] = {}
        self._loaded: OrderedDict[_Key, LoadedModel] = OrderedDict()
        self._loading: dict[_Key, asyncio.Task[LoadedModel]] = {}

    def get(self, name: str) -> Served:
        """Return the plan of a model. Raises NotServed."""
        try:
            return self._served[name]
        except KeyError:
            raise NotServed(name, self.names) from None

    @property
    def names(self) -> list[str]:
        """The models served, in alphabetical order."""
        return sorted(self._served)

    def swap(self, served: Served) -> Served | None:
        """Follow another plan from now on, in one step; return the one before. Its versions should have been loaded."""
        before = self._served.get(served.name)
        for seat in served.seats:
            if (model := self._loaded.get(_key(seat.name, seat.deployed))) is not None:
                self._sit(seat, model)
        self._served[served.name] = served
        self._make_room(keep=served.champion)
        return before

    async def loaded(self, name: str, deployed: Deployed) -> LoadedModel:
        """Return a version in memory, loading it if need be; those who ask at once share the work. Raises MeguriError."""
        key = _key(name, deployed)
        if (model := self._loaded.get(key)) is not None:
            self._loaded.move_to_end(key)
            return model
        if (task := self._loading.get(key)) is None:
            task = self._loading[key] = asyncio.create_task(self._fetch(name, deployed))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        # Who no longer waits must not take it from others who do.
        return await asyncio.shield(task)

    def used(self, seat: Seat) -> None:
        """Note that a version was asked: it is the last to make room."""
        key = _key(seat.name, seat.deployed)
        if key in self._loaded:
            self._loaded.move_to_end(key)

    def bring(self, seat: Seat, ask: "Ask") -> None:
        """Have `ask` wait until its version is back in memory. Raises Busy when too many do."""
        if len(seat.waiting) >= MAX_WAITING:
            raise Busy(f"{seat.name} version {seat.version} is being loaded and {MAX_WAITING} requests wait for it", 1)
        seat.waiting.append(ask)
        if len(seat.waiting) == 1:
            asyncio.create_task(self._bring(seat)).add_done_callback(_log_failure)

    async def _bring(self, seat: Seat) -> None:
        try:
            self._sit(seat, await self.loaded(seat.name, seat.deployed))
            self._make_room(keep=seat)
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits for an answer is told
            waiting, seat.waiting = seat.waiting, []
            for ask in waiting:
                ask.fail(seat, TemporaryError(f"{seat.name} version {seat.version} could not be loaded again: {error}"))

    async def _fetch(self, name: str, deployed: Deployed) -> LoadedModel:
        model = await self._load(name, deployed)
        self._loaded[_key(name, deployed)] = model
        return model

    def _sit(self, seat: Seat, model: LoadedModel) -> None:
        self.seated(seat, model)
        waiting, seat.waiting = seat.waiting, []
        for ask in waiting:
            seat.batcher.submit(ask)  # type: ignore[union-attr]  # it was just given one

    def _make_room(self, keep: Seat | None = None) -> None:
        total = sum(model.bytes for model in self._loaded.values())
        needed = {_key(s.name, s.deployed) for one in self._served.values() for _, s in one.shadows}
        needed |= {_key(keep.name, keep.deployed)} if keep else set()
        # What no plan needs goes first, and then who was asked longest ago.
        planned = {_key(seat.name, seat.deployed) for one in self._served.values() for seat in one.seats}
        for key in sorted(self._loaded, key=lambda key: key in planned):
            if total <= self._max_bytes or key in needed:
                continue
            total -= self._loaded.pop(key).bytes
            self._unseat(key)
            logger.info("%s version %d made room", *key[:2])

    def _unseat(self, key: _Key) -> None:
        if (served := self._served.get(key[0])) is None:
            return
        for seat in served.seats:
            if _key(seat.name, seat.deployed) == key:
                seat.batcher = None


def _read_alike(one: Seat, other: Seat) -> bool:
    names = [[tensor.name for tensor in seat.deployed.signature.outputs] for seat in (one, other)]
    return names[0] == names[1] and one.codec.like(other.codec)


def _nobody(seat: Seat, model: LoadedModel) -> None:
    raise RuntimeError("nobody answers for these models")


def _key(name: str, deployed: Deployed) -> _Key:
    return name, deployed.version, deployed.served.digest


def _log_failure(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("loading failed", exc_info=error)

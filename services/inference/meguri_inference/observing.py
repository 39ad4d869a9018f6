"""Says in the log how the versions of a plan are doing, so that the registry can decide on it."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence

from meguri_contracts.errors import MeguriError
from meguri_contracts.events import ArmObserved, RolloutObserved
from meguri_inference.models import Served
from meguri_inference.tallies import since

logger = logging.getLogger(__name__)

Say = Callable[[RolloutObserved, str, int], Awaitable[None]]
"""Appends a report to the log: also journey and hops of the rollout that it is about. Raises MeguriError."""

SOONEST = 1.0
"""Seconds between two reports about a young plan."""
OF_AGE = 0.05
"""Share of a plan's age between two reports about it, if that is more: an old plan fills no log."""


class Observer:
    """Reports on every plan that has more than a champion, when there is something new, and never twice the same."""

    def __init__(self, say: Say, replica: str) -> None:
        self._say = say
        self._life = f"{replica}-{os.urandom(3).hex()}"
        self._watching: dict[str, asyncio.Task[None]] = {}

    def follow(self, served: Served, journey: str, hops: int) -> None:
        """Report on this plan from now on, and no longer on the one before. `journey` and `hops` are those of its event."""
        if before := self._watching.pop(served.name, None):
            before.cancel()
        if len(served.seats) > 1:
            self._watching[served.name] = asyncio.create_task(self._watch(served, _numbers(served), journey, hops))

    async def close(self) -> None:
        """Stop reporting."""
        for task in self._watching.values():
            task.cancel()
        await asyncio.gather(*self._watching.values(), return_exceptions=True)

    async def _watch(self, served: Served, baseline: Sequence[ArmObserved], journey: str, hops: int) -> None:
        began, number = time.monotonic(), 0
        said = [since(one, one) for one in baseline]
        while True:
            await asyncio.sleep(max(SOONEST, OF_AGE * (time.monotonic() - began)))
            arms = [since(now, before) for now, before in zip(_numbers(served), baseline, strict=True)]
            if arms == said:
                continue
            number += 1
            try:
                await self._say(self._report(served, arms, number, time.monotonic() - began), journey, hops)
                said = arms
            except MeguriError as error:
                # The numbers only grow: the next report has what this one would have said.
                logger.warning("what was observed of %s is not said yet: %s", served.name, error)

    def _report(self, served: Served, arms: Sequence[ArmObserved], number: int, seconds: float) -> RolloutObserved:
        return RolloutObserved(
            model=served.name,
            rollout=served.rollout,
            replica=self._life,
            number=number,
            seconds=seconds,
            arms=tuple(arms),
        )


def _numbers(served: Served) -> list[ArmObserved]:
    return [seat.tally.observed() for seat in served.seats]

"""How much waits to be taken in, and when whoever sends more should come back."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meguri_contracts.errors import Busy

LOOK_EVERY = 1.0
"""Seconds between looks at the backlog."""
FIRST_GUESS = 5
"""Seconds to wait while it is not known how fast the backlog is worked off."""
LONGEST = 60
"""Seconds to wait at most."""


@dataclass(frozen=True)
class Look:
    """The backlog at a time: arrivals that wait or are in hand, and how many were ever dealt with."""

    at: float
    waiting: int
    done: int


class Backlog:
    """Looks at the backlog when somebody sends, at most once a second, and counts what was taken in between.

    `look` asks the broker. Up to `limit` arrivals may wait.
    """

    def __init__(self, look: Callable[[], Awaitable[Look]], clock: Callable[[], float], *, limit: int) -> None:
        self._look = look
        self._clock = clock
        self._limit = limit
        self._looking = asyncio.Lock()
        self._last: Look | None = None
        self._taken = 0
        self._rate = 0.0

    async def require_room(self) -> None:
        """Raises Busy when too much waits, with the seconds after which there should be room again."""
        async with self._looking:
            if self._last is None or self._clock() - self._last.at >= LOOK_EVERY:
                self._learn(await self._look())
        if self._waiting >= self._limit:
            raise Busy(f"{self._full()}: send it again after the time that Retry-After says", self._seconds())

    def took(self) -> None:
        """Say that one more waits."""
        self._taken += 1

    def warning(self) -> str | None:
        """What an operator should know about the backlog, as it was when somebody sent last."""
        is_old = self._last is None or self._clock() - self._last.at > LONGEST
        return (
            None
            if is_old or self._waiting < self._limit
            else f"{self._full()}: whoever sends over HTTP is told to wait"
        )

    @property
    def _waiting(self) -> int:
        return self._taken + (self._last.waiting if self._last else 0)

    def _full(self) -> str:
        return f"{self._waiting:,} arrivals wait, at most {self._limit:,} may"

    def _learn(self, look: Look) -> None:
        if self._last and look.at > self._last.at:
            self._rate = max(0, look.done - self._last.done) / (look.at - self._last.at)
        self._last, self._taken = look, 0

    def _seconds(self) -> int:
        if not self._rate:
            return FIRST_GUESS
        return min(math.ceil((self._waiting - self._limit + 1) / self._rate), LONGEST)

"""How a long computation beside live work goes on: half of the time, and only as long as somebody waits for it."""

import time
from threading import Event

from meguri_contracts.errors import TemporaryError

LONGEST = 1.0
"""Seconds of a rest at most."""


class Abandoned(TemporaryError):
    """Nobody waits for the answer any more."""


class Pace:
    """Shared by who computes, in a thread, and who waits."""

    def __init__(self) -> None:
        self._left = Event()
        self._since = time.monotonic()

    def begin(self) -> None:
        """Work from now on. Raises Abandoned."""
        if self._left.is_set():
            raise Abandoned("whoever asked has left")
        self._since = time.monotonic()

    def leave(self) -> None:
        """Nobody waits any more."""
        self._left.set()

    def rest(self) -> None:
        """Rest as long as was worked since the last time. Raises Abandoned."""
        worked = time.monotonic() - self._since
        self._left.wait(min(worked, LONGEST))
        self.begin()

"""A budget of memory: what does not fit waits its turn, and what is larger than all of it gets through alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """So many bytes may be held at once. Who waits for some must hold none, or two could wait for each other."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    def try_take(self, size: int) -> bool:
        """Take some bytes if they are left and nobody waits."""
        if self._turn.locked() or not self._fits(size):
            return False
        self._held += size
        return True

    async def take(self, size: int) -> None:
        """Take some bytes once they are left; first come, first served."""
        async with self._turn:
            while not self._fits(size):
                self._freed.clear()
                await self._freed.wait()
            self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size
        self._freed.set()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Hold some bytes until the block is left."""
        await self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    def _fits(self, size: int) -> bool:
        return self._held == 0 or self._held + size <= self._size

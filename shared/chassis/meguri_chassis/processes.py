"""A process that works for a service: spawned, kept warm, replaced when it dies or is stuck, ended when it has nothing to do or
the service ends, however that is."""

import asyncio
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from meguri_chassis import telemetry
from meguri_chassis.settings import ServiceSettings
from meguri_contracts.errors import TemporaryError

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class ProcessDied(TemporaryError):
    def __init__(self, name: str) -> None:
        super().__init__(f"the process {name} died in the middle of its work")


class TookTooLong(TemporaryError):
    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(f"the process {name} was ended: it took longer than {seconds:g} s")


@dataclass(frozen=True)
class Home:
    """Where a process belongs: what its telemetry needs to know."""

    service: str
    replica: str
    var: Path
    log_level: str

    @classmethod
    def of(cls, settings: ServiceSettings) -> "Home":
        return cls(settings.service, settings.replica, settings.var, settings.log_level)


def _nothing() -> None:
    """Warms nothing up."""


class WorkerProcess:
    """One process, for one piece of work at a time. `warm_up` is done first in each; `memory` is in bytes.

    It ends `idle` seconds after its latest work, or stays. The next piece of work starts another one.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        *,
        warm_up: Callable[[], None] = _nothing,
        memory: int | None = None,
        idle: float | None = None,
    ) -> None:
        self._home = home
        self._name = name
        self._warm_up = warm_up
        self._memory = memory
        self._idle = idle
        self._ending: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._ready: Future[None]

    def start(self) -> None:
        """Start the process, if it is not there; the first piece of work would do so, too."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            about = (self._home, self._name, self._memory)
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=about)
            self._ready = self._pool.submit(self._warm_up)

    def end(self) -> None:
        """End the process at once, whatever it does. The next piece of work starts another one."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    async def do(self, work: Callable[[*Arguments], T], *arguments: *Arguments, seconds: float | None = None) -> T:
        """Have `work` done there. Raises what it raises, ProcessDied, and TookTooLong; starting does not count."""
        async with self._turn:
            if self._ending:
                self._ending.cancel()
            try:
                return await self._do(work, *arguments, seconds=seconds)
            finally:
                if self._idle is not None:
                    self._ending = asyncio.get_running_loop().call_later(self._idle, self.end)

    async def _do(self, work: Callable[[*Arguments], T], *arguments: *Arguments, seconds: float | None) -> T:
        self.start()
        assert self._pool is not None
        try:
            await asyncio.wrap_future(self._ready)
            future = asyncio.wrap_future(self._pool.submit(work, *arguments))
            done, _ = await asyncio.wait([future], timeout=seconds)
            if done:
                return future.result()
            future.cancel()
        except BrokenProcessPool as error:
            self.end()
            raise ProcessDied(self._name) from error
        self.end()
        raise TookTooLong(self._name, seconds or 0.0)


def _begin(home: Home, name: str, memory: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    telemetry.set_up(home.service, f"{home.replica}-{name}-{os.getpid()}", home.var, home.log_level)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
    # A kill -9 of the service leaves no time to say goodbye; another replica does the work again.
    os._exit(1)

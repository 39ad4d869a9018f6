"""The process that fits: spawned, kept warm, its spans part of the trace; ends when the service ends, however that is."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from meguri_chassis import telemetry
from meguri_contracts.errors import TemporaryError
from meguri_training import fitting
from meguri_training.fitting import Fitted, Job


class WorkerDied(TemporaryError):
    """The process of a fit ended in the middle of it."""


@dataclass(frozen=True)
class Home:
    """Where a worker belongs: what its telemetry needs to know."""

    service: str
    replica: str
    var: Path
    log_level: str


class Workers:
    """One warm worker process; replaced when it dies."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._pool = self._spawn()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Warm the worker up while the service starts; end it when the service ends."""
        warming = asyncio.wrap_future(self._pool.submit(_warm_up))
        try:
            yield self
        finally:
            warming.cancel()
            self._end()

    async def fit(self, job: Job) -> Fitted:
        """Do a fit in the worker. Raises what the fit raises, and WorkerDied."""
        try:
            return await asyncio.wrap_future(self._pool.submit(_fit, job, telemetry.carrier()))
        except BrokenProcessPool as error:
            self._end()
            self._pool = self._spawn()
            raise WorkerDied(f"the process of run {job.run} died in the middle of the fit") from error

    def _spawn(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(self._home,))

    def _end(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _begin(home: Home) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    telemetry.set_up(home.service, f"{home.replica}-fit-{os.getpid()}", home.var, home.log_level)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        wait([parent.sentinel])
    # A kill -9 of the service leaves no time to say goodbye; another replica does the fit again.
    os._exit(1)


def _warm_up() -> None:
    fitting.warm_up()


def _fit(job: Job, carrier: dict[str, str]) -> Fitted:
    attributes = {"meguri.run.id": job.run, "meguri.model": job.spec.model}
    with telemetry.continued("fit", carrier, attributes) as span:
        fitted = fitting.fit(job)
        span.set_attribute("meguri.fit.seconds", fitted.fit_seconds)
        return fitted

"""The process that fits: its spans are part of the trace that asked for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

from meguri_chassis import telemetry
from meguri_chassis.processes import Home, ProcessDied, WorkerProcess
from meguri_contracts.errors import TemporaryError
from meguri_training import fitting
from meguri_training.fitting import Fitted, Job


class WorkerDied(TemporaryError):
    """The process of a fit ended in the middle of it."""


class Workers:
    """One warm worker process; replaced when it dies."""

    def __init__(self, home: Home) -> None:
        self._process = WorkerProcess(home, "fit", warm_up=fitting.warm_up)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """Warm the worker up while the service starts; end it when the service ends."""
        self._process.start()
        try:
            yield self
        finally:
            self._process.end()

    async def fit(self, job: Job) -> Fitted:
        """Do a fit in the worker. Raises what the fit raises, and WorkerDied."""
        try:
            return await self._process.do(_fit, job, telemetry.carrier())
        except ProcessDied as error:
            raise WorkerDied(f"the process of run {job.run} died in the middle of the fit") from error


def _fit(job: Job, carrier: dict[str, str]) -> Fitted:
    attributes = {"meguri.run.id": job.run, "meguri.model": job.spec.model}
    with telemetry.continued("fit", carrier, attributes) as span:
        fitted = fitting.fit(job)
        span.set_attribute("meguri.fit.seconds", fitted.fit_seconds)
        return fitted

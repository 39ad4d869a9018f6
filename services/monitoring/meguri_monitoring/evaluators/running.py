"""Plug-ins at work, each in a process of its own: one that never comes back, crashes, ends itself or takes all memory harms
nobody else. Rows go there and back as Arrow; nothing of a plug-in's is imported here.
"""

import asyncio
import io
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Self, TypeVar, TypeVarTuple

import polars as pl

from meguri_chassis import telemetry
from meguri_chassis.processes import Home, ProcessDied, TookTooLong, WorkerProcess
from meguri_contracts.errors import MeguriError, TemporaryError
from meguri_monitoring.evaluators import plugins

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
REASON_LENGTH = 500
IDLE = 600.0
"""Seconds without work after which a plug-in's process ends. It holds about 100 MB; another one takes about 2 s to start."""


class PlugInFailed(TemporaryError):
    """A plug-in raised, was ended, or gave rows that are not as they must be; the message says which and why."""


class OutOfMemory(PlugInFailed):
    """A plug-in wanted more memory than it may have; its process may still hold it."""


class PlugIns:
    """A process for each plug-in that has work, until it had none for `idle` seconds. Each call may take `seconds` and its
    process `memory` bytes."""

    def __init__(self, home: Home, *, seconds: float, memory: int, idle: float = IDLE) -> None:
        self._home = home
        self._seconds = seconds
        self._memory = memory
        self._idle = idle
        self._processes: dict[str, WorkerProcess] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Self]:
        """End the processes when the service ends."""
        try:
            yield self
        finally:
            for process in self._processes.values():
                process.end()

    async def evaluated(self, name: str, predictions: Mapping[int, pl.DataFrame]) -> pl.DataFrame | None:
        """Return the rows for predictions of several versions; None if there are none. Raises PlugInFailed."""
        sent = {version: await asyncio.to_thread(_arrow, rows) for version, rows in predictions.items()}
        rows = await self._do(name, _evaluated, name, sent, telemetry.carrier())
        return pl.read_ipc_stream(rows) if rows else None

    async def written(self, name: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Return what the plug-in's writer leaves of the rows. Raises PlugInFailed."""
        return pl.read_ipc_stream(await self._do(name, _written, name, _arrow(rows), telemetry.carrier()))

    async def _do(self, name: str, work: Callable[[*Arguments], T], *arguments: *Arguments) -> T:
        process = self._processes.get(name)
        if process is None:
            if not plugins.is_installed(name):
                raise PlugInFailed(str(plugins.NotInstalled(name)))
            process = WorkerProcess(self._home, f"evaluator-{name}", memory=self._memory, idle=self._idle)
            self._processes[name] = process
        try:
            return await process.do(work, *arguments, seconds=self._seconds)
        except TookTooLong as error:
            limit = "more is MEGURI_MONITORING_EVALUATOR_SECONDS"
            raise PlugInFailed(f"it took longer than {self._seconds:g} s and was ended ({limit})") from error
        except ProcessDied as error:
            raise PlugInFailed("its process died: it crashed, ended itself, or was killed from outside") from error
        except OutOfMemory as error:
            process.end()
            limit = f"it may use {self._memory / 1024**2:,.0f} MiB, more is MEGURI_MONITORING_EVALUATOR_MEMORY"
            raise OutOfMemory(f"{error} ({limit})") from error


def _evaluated(name: str, predictions: Mapping[int, bytes], carrier: Mapping[str, str]) -> bytes:
    with _plug_in(carrier):
        read = {version: pl.read_ipc_stream(rows) for version, rows in predictions.items()}
        rows = plugins.evaluated(plugins.load(name), read)
        return b"" if rows is None else _arrow(rows)


def _written(name: str, rows: bytes, carrier: Mapping[str, str]) -> bytes:
    with _plug_in(carrier):
        return _arrow(plugins.written(plugins.load(name), pl.read_ipc_stream(rows)))


@contextmanager
def _plug_in(carrier: Mapping[str, str]) -> Iterator[None]:
    """What a plug-in logs carries the trace; what it raises, `SystemExit` too, is told in words that its caller can read."""
    with telemetry.within(carrier):
        try:
            yield
        except MemoryError as error:
            raise OutOfMemory(_said(error)) from error
        except BaseException as error:
            raise PlugInFailed(_said(error)) from error


def _said(error: BaseException) -> str:
    said = str(error) if isinstance(error, MeguriError) else "".join(traceback.format_exception_only(error)).strip()
    return said[:REASON_LENGTH]


def _arrow(rows: pl.DataFrame) -> bytes:
    stream = io.BytesIO()
    rows.write_ipc_stream(stream)
    return stream.getvalue()

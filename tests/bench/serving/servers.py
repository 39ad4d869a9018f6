"""Servers as processes on a core of their own, and what they take of the processor."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil

from infra.local.processes import ROOT

CORES = sorted(os.sched_getaffinity(0))
SERVER, CLIENT = CORES[0], CORES[-1]
"""The core of the server that is measured, and the one of everybody else; the same one where there is only one."""
READY_WITHIN = 60.0
QUIET = 0.02
"""Share of a core below which a server has nothing left to do."""


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Have what is started inside run on that core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A running server: where it listens, and its processes."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.port = port
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of processor time that its processes took so far."""
        top = psutil.Process(self._process.pid)
        return sum(sum(process.cpu_times()[:2]) for process in (top, *top.children(recursive=True)))

    def rest(self) -> None:
        """Wait until it has finished what it does behind its answers, so that this counts for whom it was done."""
        used, at = self.cpu(), time.monotonic()
        while True:
            time.sleep(0.2)
            now, then = self.cpu(), time.monotonic()
            if (now - used) / (then - at) <= QUIET:
                return
            used, at = now, then


@contextmanager
def running(
    module: str,
    *arguments: str,
    port: int,
    ready: str,
    log: Path,
    env: Mapping[str, str] = MappingProxyType({}),
    core: int = SERVER,
) -> Iterator[Server]:
    """Run a Python module on one core until the block is left; it is ready when `ready` answers 200."""
    with log.open("wb") as file, on_core(core):
        command = [sys.executable, "-m", module, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(env), stdout=file, stderr=file)
    try:
        wait(lambda: _answers(f"http://127.0.0.1:{port}{ready}"), process, log)
        yield Server(port, process, log)
    finally:
        process.terminate()
        process.wait()


def wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the condition holds. Raises RuntimeError with what the process wrote when it does not."""
    end = time.monotonic() + READY_WITHIN
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} does not get ready:\n{log.read_text()[-2000:]}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False

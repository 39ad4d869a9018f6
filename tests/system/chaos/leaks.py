"""Memory and file handles of every process, before and after the same work."""

from dataclasses import dataclass

import psutil

from tests.system.chaos.checks import Finding
from tests.system.chaos.system import System

MEGABYTE = 1024 * 1024
GROWS = 32
"""MB that a process may grow over a small burst, and MOST_MEGABYTES that it may have at all."""
MOST_MEGABYTES = 1024
MORE_HANDLES = 12
"""File handles that may come over a small burst, connections that linger among them, and MOST_HANDLES that there may be."""
MOST_HANDLES = 256


@dataclass(frozen=True)
class Footprint:
    """What one process holds."""

    pid: int
    megabytes: float
    handles: int


def footprints(system: System) -> dict[str, Footprint]:
    """Return what every process holds, by its name, the processes of fits included."""
    found = {}
    for name, pid in system.pids().items():
        process = psutil.Process(pid)
        for number, one in enumerate([process, *process.children(recursive=True)]):
            found[f"{name}/{number}" if number else name] = _footprint(one)
    return found


def of_leaks(before: dict[str, Footprint], after: dict[str, Footprint]) -> list[Finding]:
    """Hold what the same processes held before against what they hold after the same work again."""
    same = {name: (one, after[name]) for name, one in before.items() if name in after and after[name].pid == one.pid}
    memory = {name: now.megabytes - then.megabytes for name, (then, now) in same.items()}
    handles = {name: now.handles - then.handles for name, (then, now) in same.items()}
    most = max(after, key=lambda name: after[name].megabytes)
    open_ = max(after, key=lambda name: after[name].handles)
    return [
        Finding(
            "memory grows",
            max(memory.values()) <= GROWS and after[most].megabytes <= MOST_MEGABYTES,
            f"{_largest(memory)} MB over a burst; {most} has most, {after[most].megabytes:.0f} MB",
        ),
        Finding(
            "file handles grow",
            max(handles.values()) <= MORE_HANDLES and after[open_].handles <= MOST_HANDLES,
            f"{_largest(handles)} over a burst; {open_} has most, {after[open_].handles}",
        ),
    ]


def _footprint(process: psutil.Process) -> Footprint:
    return Footprint(process.pid, process.memory_info().rss / MEGABYTE, process.num_fds())


def _largest(grown: dict[str, float] | dict[str, int]) -> str:
    name = max(grown, key=lambda one: grown[one])
    return f"at most {grown[name]:+.0f} ({name})"
